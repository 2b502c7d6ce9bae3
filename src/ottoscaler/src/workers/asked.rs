//! Who plans asks for the same delete until the watch has told of it; here each is known.
//!
//! What holds: what was asked for is known while it waits or is under way, and once done
//! for [`TOLD`] more: the watch may be on its way with the news.
use std::{
    collections::{HashSet, VecDeque},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

use super::effect::End;

/// So long a watch may be behind an answer; then it is deleted again.
pub(super) const TOLD: Duration = Duration::from_secs(10);

pub(super) struct Asked<K> {
    known: HashSet<K>,
    /// What is done, and until when that is known.
    done: VecDeque<(K, Instant)>,
}

impl<K> Default for Asked<K> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            done: VecDeque::new(),
        }
    }
}

impl<K: Eq + Hash> Asked<K> {
    /// Whether it is new.
    pub(super) fn insert(&mut self, key: K) -> bool {
        self.known.insert(key)
    }

    pub(super) fn ended(&mut self, key: K, end: &End) {
        if matches!(end, End::Done) {
            self.done.push_back((key, Instant::now() + TOLD));
        } else {
            // Whoever plans asks again.
            self.known.remove(&key);
        }
    }

    pub(super) fn forget_told(&mut self) {
        let now = Instant::now();
        while let Some((key, _)) = self.done.pop_front_if(|(_, until)| *until <= now) {
            self.known.remove(&key);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.done.is_empty()
    }
}
