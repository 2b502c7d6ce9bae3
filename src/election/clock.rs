//! The clock that leadership is measured by.
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Since boot, time in suspend included (CLOCK_BOOTTIME): unlike the wall clock
/// nobody sets it, unlike CLOCK_MONOTONIC it does not stop while we sleep.
pub(super) fn now() -> Duration {
    let t = clock_gettime(ClockId::Boottime);
    let (s, n) = (u64::try_from(t.tv_sec), u32::try_from(t.tv_nsec));
    Duration::new(s.unwrap_or(0), n.unwrap_or(0))
}
