//! The election's sign of life, for the liveness probe.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Clock;

/// When the loop last went round.
#[derive(Debug, Clone)]
pub struct Beat {
    /// Milliseconds since boot.
    at: Arc<AtomicU64>,
    clock: Clock,
}

impl Beat {
    /// One that has just gone round.
    pub fn new(clock: Clock) -> Self {
        let beat = Self {
            at: Arc::default(),
            clock,
        };
        beat.strike();
        beat
    }

    pub(crate) fn strike(&self) {
        self.at.store(
            u64::try_from(self.clock.boot().as_millis()).unwrap_or(0),
            Ordering::Relaxed,
        );
    }

    /// How long the election has shown no life.
    pub fn silence(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::Relaxed));
        self.clock.boot().saturating_sub(at)
    }
}
