//! The clocks that leadership reads; a test may put its own in their place.
use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Where the time comes from.
pub trait Time: Send + Sync + 'static {
    /// Since boot, time in suspend included: nobody sets it. All that leadership
    /// decides is decided by this.
    fn boot(&self) -> Duration;

    /// What people set: only compared with what this node's kubelet says.
    fn wall(&self) -> Timestamp;
}

/// Cheap to clone; the system's clocks by default.
#[derive(Clone)]
pub struct Clock(Arc<dyn Time>);

impl Clock {
    pub fn new(time: Arc<dyn Time>) -> Self {
        Self(time)
    }

    pub(super) fn boot(&self) -> Duration {
        self.0.boot()
    }

    pub(super) fn wall(&self) -> Timestamp {
        self.0.wall()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(System))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// CLOCK_BOOTTIME (CLOCK_MONOTONIC would stop while the machine sleeps) and the
/// system's wall clock.
#[derive(Debug)]
pub struct System;

impl Time for System {
    fn boot(&self) -> Duration {
        let t = clock_gettime(ClockId::Boottime);
        let (s, n) = (u64::try_from(t.tv_sec), u32::try_from(t.tv_nsec));
        Duration::new(s.unwrap_or(0), n.unwrap_or(0))
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_clocks_tell_the_time() {
        let clock = Clock::default();
        let (boot, wall) = (clock.boot(), clock.wall());
        assert!(boot > Duration::ZERO && clock.boot() >= boot);
        let now = Timestamp::now();
        assert!(wall <= now && now.duration_since(wall).as_secs() < 60);
    }
}
