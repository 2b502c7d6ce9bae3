//! Memory of entries under way: of a worker, and of all together.
//!
//! What holds: what was added is given back, at the latest with the [`Held`]. The sum
//! may pass the limit by one entry a worker, for each may have one.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// In bytes.
const OF_A_WORKER: usize = 4 * 1024 * 1024;
const OF_ALL: usize = 64 * 1024 * 1024;

/// Shared by all sessions.
#[derive(Debug, Clone, Default)]
pub struct Budget(Arc<AtomicUsize>);

impl Budget {
    pub(super) fn hold(&self) -> Held {
        Held {
            of_all: self.clone(),
            own: 0,
        }
    }
}

/// A worker's share.
#[derive(Debug)]
pub(super) struct Held {
    of_all: Budget,
    own: usize,
}

impl Held {
    pub(super) fn has_room(&self) -> bool {
        self.own < OF_A_WORKER && self.of_all.0.load(Relaxed) < OF_ALL
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.own += bytes;
        self.of_all.0.fetch_add(bytes, Relaxed);
    }

    pub(super) fn sub(&mut self, bytes: usize) {
        self.own -= bytes;
        self.of_all.0.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of_all.0.fetch_sub(self.own, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_its_bounds_and_all_have_theirs() {
        let budget = Budget::default();
        let mut all: Vec<Held> = (0..17).map(|_| budget.hold()).collect();
        for held in &mut all[..16] {
            assert!(held.has_room());
            held.add(OF_A_WORKER);
            assert!(!held.has_room());
        }
        assert!(!all[16].has_room(), "the others took all");
        all[0].sub(OF_A_WORKER);
        assert!(all[16].has_room());
        drop(all);
        assert_eq!(budget.0.load(Relaxed), 0);
    }
}
