//! The memory of entries that are not acknowledged, for each worker and in all.
//!
//! Invariants: what was added is given back, at the latest when the [`Held`] is dropped. The
//! sum may exceed the limit by one entry for each worker, because each may always have one.
use std::sync::atomic::AtomicI64;

use prometheus_client::{
    metrics::gauge::Gauge,
    registry::{Registry, Unit},
};

/// The most bytes of one worker in memory: a few of the longest lines of 1 MiB, or some ten
/// thousand ordinary ones.
const OF_A_WORKER: i64 = 4 * 1024 * 1024;
/// The most bytes of all workers in memory: an eighth of 512 MiB. What does not fit waits on the
/// disk or on its node.
const OF_ALL: i64 = 64 * 1024 * 1024;

/// The budget that all sessions share.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget(Gauge<i64, AtomicI64>);

impl Budget {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "ottoscaler_log_held",
            "Memory of log entries that are not acknowledged",
            Unit::Bytes,
            self.0.clone(),
        );
    }

    pub(super) fn hold(&self) -> Held {
        Held {
            of_all: self.clone(),
            own: 0,
        }
    }
}

/// The share of one worker.
#[derive(Debug)]
pub(super) struct Held {
    of_all: Budget,
    own: i64,
}

impl Held {
    pub(super) fn has_room(&self) -> bool {
        self.own < OF_A_WORKER && self.of_all.0.get() < OF_ALL
    }

    pub(super) fn add(&mut self, bytes: i64) {
        self.own += bytes;
        self.of_all.0.inc_by(bytes);
    }

    pub(super) fn sub(&mut self, bytes: i64) {
        self.own -= bytes;
        self.of_all.0.dec_by(bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of_all.0.dec_by(self.own);
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
        assert_eq!(budget.0.get(), 0);
    }
}
