//! Objects that this version cannot decode, as the index knows them.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::domain::unread::Unread;

/// Objects of one kind, by name.
///
/// What holds: an object is here from the version that could not be decoded until a later
/// one could, or until it is deleted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Unreads(BTreeMap<Arc<str>, Unread>);

impl Unreads {
    /// Takes an object unless a later version of it is known; whether that was news.
    pub(super) fn take(&mut self, object: Unread) -> bool {
        let known = self.0.get(&object.name);
        if known.is_some_and(|known| known.version >= object.version) {
            return false;
        }
        self.0.insert(object.name.clone(), object);
        true
    }

    /// One of this version could be decoded.
    pub(super) fn read(&mut self, name: &str, version: u64) {
        if self
            .0
            .get(name)
            .is_some_and(|known| known.version < version)
        {
            self.0.remove(name);
        }
    }

    /// It was deleted; whether it was here.
    pub(super) fn forget(&mut self, name: &str, uid: &str) -> bool {
        let is_here = self.has(name, uid);
        if is_here {
            self.0.remove(name);
        }
        is_here
    }

    pub(super) fn has(&self, name: &str, uid: &str) -> bool {
        self.0.get(name).is_some_and(|known| known.uid == uid)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Unread> {
        self.0.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Unread> {
        self.0.values()
    }

    /// Drops those that a complete list as of `version` no longer has.
    pub(super) fn retain(&mut self, listed: &BTreeSet<String>, version: u64) -> Vec<Unread> {
        let missing = |object: &Unread| object.version <= version && !listed.contains(&object.uid);
        let names: Vec<_> = self
            .iter()
            .filter(|o| missing(o))
            .map(|o| o.name.clone())
            .collect();
        names
            .iter()
            .filter_map(|name| self.0.remove(name))
            .collect()
    }
}
