//! The clocks that leadership reads. A test may put its own in their place.
use std::{fmt, fs, sync::Arc, time::Duration};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// A source of time.
pub trait Time: Send + Sync + 'static {
    /// Returns the time since boot, time in suspend included. Nobody sets this clock, so
    /// everything that leadership decides is decided by it.
    fn boot(&self) -> Duration;

    /// Returns when this process was forked, by the wall clock. It is only compared with
    /// what this node's kubelet reports.
    fn started(&self) -> Timestamp;

    /// Returns the wall clock. It is only compared with the API server's, and reported.
    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A shared [`Time`]; the system's clocks by default. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Time>);

impl Clock {
    /// Creates a clock that reads `time`.
    pub fn new(time: Arc<dyn Time>) -> Self {
        Self(time)
    }

    /// Returns the time since boot; see [`Time::boot`].
    pub fn boot(&self) -> Duration {
        self.0.boot()
    }

    pub(crate) fn started(&self) -> Timestamp {
        self.0.started()
    }

    pub(crate) fn wall(&self) -> Timestamp {
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

/// The clocks of a Linux system: `CLOCK_BOOTTIME`, because `CLOCK_MONOTONIC` stops while the
/// machine sleeps, and the wall clock.
#[derive(Debug)]
pub struct System;

impl Time for System {
    fn boot(&self) -> Duration {
        let t = clock_gettime(ClockId::Boottime);
        let (s, n) = (u64::try_from(t.tv_sec), u32::try_from(t.tv_nsec));
        Duration::new(s.unwrap_or(0), n.unwrap_or(0))
    }

    /// The container runtime forks the process before it stamps the container as started.
    /// Where /proc says nothing, the present is near enough.
    fn started(&self) -> Timestamp {
        let age = fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|stat| forked_at(&stat))
            .map(|forked| self.boot().saturating_sub(forked));
        let age = age.unwrap_or_default();
        let now = Timestamp::now();
        now.checked_sub(age).unwrap_or(now)
    }
}

/// Reads when a process was forked, since boot, from its `stat` (proc_pid_stat(5), field 22,
/// in hundredths of a second on every architecture).
fn forked_at(stat: &str) -> Option<Duration> {
    // The second field is the program's name, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_systems_clocks_tell_the_time() {
        let clock = Clock::default();
        let boot = clock.boot();
        assert!(boot > Duration::ZERO && clock.boot() >= boot);
        let age = Timestamp::now().duration_since(clock.started());
        assert!((0..86_400).contains(&age.as_secs()), "{age:?}");
        let off = Timestamp::now().duration_since(clock.wall());
        assert!((0..60).contains(&off.as_secs()), "{off:?}");
    }

    #[test]
    fn a_process_began_when_it_was_forked() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 98";
        assert_eq!(forked_at(stat), Some(Duration::from_millis(123_450)));
        assert_eq!(forked_at("7 (a) S 1"), None);
        // A child that sleeps for a while is as old as that.
        let boot = Clock::default().boot();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        let forked = forked_at(&stat).unwrap();
        assert!(forked + Duration::from_millis(20) > boot && forked <= Clock::default().boot());
    }
}
