//! The objects of one kind that this version cannot decode.
//!
//! Invariant: an object is here from the version that could not be decoded until a later
//! version could be, or until it is deleted.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::domain::unread::Unread;

/// The objects that cannot be decoded, by name.
#[derive(Debug, Default, PartialEq)]
pub(super) struct UnreadObjects(BTreeMap<Arc<str>, Unread>);

impl UnreadObjects {
    /// Adds an object unless this version of it or a later one is known. Reports whether it was
    /// added.
    pub(super) fn insert(&mut self, object: Unread) -> bool {
        let known = self.0.get(&object.name);
        if known.is_some_and(|known| known.version >= object.version) {
            return false;
        }
        self.0.insert(object.name.clone(), object);
        true
    }

    /// Removes the object of this name if a later `version` of it could be decoded.
    pub(super) fn remove_older_than(&mut self, name: &str, version: u64) {
        if self
            .0
            .get(name)
            .is_some_and(|known| known.version < version)
        {
            self.0.remove(name);
        }
    }

    /// Removes a deleted object and reports whether it was here.
    pub(super) fn remove(&mut self, name: &str, uid: &str) -> bool {
        let is_here = self.contains(name, uid);
        if is_here {
            self.0.remove(name);
        }
        is_here
    }

    pub(super) fn contains(&self, name: &str, uid: &str) -> bool {
        self.0.get(name).is_some_and(|known| known.uid == uid)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Unread> {
        self.0.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Unread> {
        self.0.values()
    }

    /// Removes and returns the objects that are missing from a complete list as of `version`.
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
