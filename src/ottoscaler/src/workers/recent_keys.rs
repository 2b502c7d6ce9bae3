//! The objects that have a write in flight, or had one that the watch may not have shown yet,
//! are known here: a plan asks for the same write until the watch has told of its effect.
//!
//! Invariants: of a key at most one write waits or is in flight; a delete is known for
//! [`WATCH_LAG_TTL`] after its answer, and then asked for again.
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use tokio::time::Instant;

use super::tuning::WATCH_LAG_TTL;
use crate::domain::queue::Attempt;

/// A `Key` names the object that is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The pod that an attempt is to get.
    Create(Arc<str>, Attempt),
    /// The metadata of a task.
    Seal(Arc<str>),
    /// The status of a task.
    Status(Arc<str>),
    /// The task itself.
    Task(Arc<str>),
    /// A pod as it was seen to live, by its uid.
    Pod(String),
    /// A pod that has ended, by its uid. That it was to be deleted before, and had ended by
    /// then, is no reason to wait.
    EndedPod(String),
}

/// The `RecentKeys` are those of writes that wait, are in flight, or were just answered.
#[derive(Debug, Default)]
pub(super) struct RecentKeys {
    known: HashSet<Key>,
    /// Deletes that were answered, and until when they are known.
    answered: VecDeque<(Key, Instant)>,
}

impl RecentKeys {
    /// Adds a key, and reports whether it was not known.
    pub(super) fn insert(&mut self, key: Key) -> bool {
        self.expire();
        self.known.insert(key)
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.known.contains(key)
    }

    /// Takes in that the write has ended, and whether it did what it was to do.
    pub(super) fn remove(&mut self, key: Key, is_done: bool) {
        match &key {
            Key::Task(_) | Key::Pod(_) | Key::EndedPod(_) if is_done => {
                self.answered
                    .push_back((key, Instant::now() + WATCH_LAG_TTL));
            }
            key => drop(self.known.remove(key)),
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((key, _)) = self.answered.pop_front_if(|(_, until)| *until <= now) {
            self.known.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_delete_is_known_until_the_watch_had_time_to_tell() {
        let pod = || Key::Pod("u".to_owned());
        let mut keys = RecentKeys::default();
        assert!(keys.insert(pod()) && !keys.insert(pod()));
        keys.remove(pod(), false);
        assert!(keys.insert(pod()), "what failed is asked for again");
        keys.remove(pod(), true);
        assert!(!keys.insert(pod()));
        tokio::time::sleep(WATCH_LAG_TTL).await;
        assert!(keys.insert(pod()));
        assert!(keys.answered.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_delete_may_be_written_again_at_once() {
        let status = || Key::Status("t".into());
        let mut keys = RecentKeys::default();
        assert!(keys.insert(status()) && keys.contains(&status()));
        keys.remove(status(), true);
        assert!(keys.insert(status()));
    }
}
