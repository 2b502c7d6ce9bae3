//! A set of keys, each with the time when it is due.
//!
//! Invariants: each key is due once; both maps name the same keys and times.
use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Timetable<K> {
    times: HashMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
}

impl<K> Default for Timetable<K> {
    fn default() -> Self {
        Self {
            times: HashMap::new(),
            order: BTreeSet::new(),
        }
    }
}

impl<K: Clone + Ord + Hash> Timetable<K> {
    /// Makes a key due at this time, or before it if it was already.
    pub(super) fn by(&mut self, key: K, at: Instant) {
        if let Some(known) = self.times.get(&key) {
            if *known <= at {
                return;
            }
            self.order.remove(&(*known, key.clone()));
        }
        self.order.insert((at, key.clone()));
        self.times.insert(key, at);
    }

    /// Returns when the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes the first that is due at `now`.
    pub(super) fn pop(&mut self, now: Instant) -> Option<K> {
        self.next().filter(|at| *at <= now)?;
        let (_, key) = self.order.pop_first()?;
        self.times.remove(&key);
        Some(key)
    }

    /// Makes everything due now.
    pub(super) fn hurry(&mut self, now: Instant) {
        let keys: Vec<K> = self.times.keys().cloned().collect();
        keys.into_iter().for_each(|key| self.by(key, now));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_time_counts_and_each_is_taken_once() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut table = Timetable::default();
        table.by("a", at(5));
        table.by("a", at(9));
        table.by("b", at(3));
        assert_eq!((table.next(), table.pop(at(2))), (Some(at(3)), None));
        table.by("a", at(1));
        assert_eq!((table.pop(at(9)), table.pop(at(9))), (Some("a"), Some("b")));
        assert_eq!((table.pop(at(9)), table.next()), (None, None));
    }

    #[test]
    fn what_is_hurried_is_due_now() {
        let now = Instant::now();
        let mut table = Timetable::default();
        table.by("a", now + Duration::from_secs(5));
        table.hurry(now);
        assert_eq!((table.pop(now), table.pop(now)), (Some("a"), None));
    }
}
