//! The sign of life of an election, for a liveness probe.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::Clock;

/// When the election last made progress.
///
/// A contender ticks at least once a second, whatever its timings and however long the API
/// server is away. A liveness probe should fail once [`age`](Self::age) exceeds some 20 s:
/// then the task has panicked or its thread is blocked.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// Milliseconds since boot.
    at: Arc<AtomicU64>,
    clock: Clock,
}

impl Heartbeat {
    /// Creates a heartbeat that has just ticked.
    pub fn new(clock: Clock) -> Self {
        let heartbeat = Self {
            at: Arc::default(),
            clock,
        };
        heartbeat.tick();
        heartbeat
    }

    /// Notes progress. A contender does so by itself.
    pub fn tick(&self) {
        self.at.store(millis(self.clock.boot()), Ordering::Relaxed);
    }

    /// Returns how long ago the last tick was.
    pub fn age(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::Relaxed));
        self.clock.boot().saturating_sub(at)
    }
}

/// A Duration as it is stored in an atomic.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(0)
}
