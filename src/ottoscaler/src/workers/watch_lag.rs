//! A create stays in flight until the watch has shown its pod, so that the limit follows the slower of the API server and its watch: whatever else the watch
//! has to tell waits behind them.
//!
//! Invariants: a create stays for [`WATCH_SILENT`] at most, so a watch that is dead holds
//! nobody up for good.
use tokio::time::Instant;

use super::{
    outcome::WriteResult,
    scheduler::Permit,
    tuning::{PLAN_INTERVAL, WATCH_SILENT},
};

/// The `WatchLag` holds the creates whose pods the watch has yet to show.
#[derive(Debug, Default)]
pub(super) struct WatchLag {
    unseen: Vec<Unseen>,
}

#[derive(Debug)]
struct Unseen {
    /// The pod's resourceVersion.
    version: u64,
    answered: Instant,
    permit: Permit,
}

impl WatchLag {
    /// Adds a create that was answered with that version of its pod.
    pub(super) fn answered(&mut self, version: u64, permit: Permit) {
        self.unseen.push(Unseen {
            version,
            answered: Instant::now(),
            permit,
        });
    }

    /// Ends the creates whose pods the watch has shown: everything up to that version.
    pub(super) fn shown(&mut self, version: u64) {
        let now = Instant::now();
        let is_over = |u: &mut Unseen| u.version <= version || u.answered + WATCH_SILENT <= now;
        for unseen in self.unseen.extract_if(.., is_over) {
            if unseen.version <= version {
                unseen.permit.ended(&WriteResult::Done, true);
            } else {
                unseen.permit.unseen();
            }
        }
    }

    /// Returns when to look again, which is as often as a task is planned.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        (!self.unseen.is_empty()).then(|| Instant::now() + PLAN_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::workers::scheduler::{Class, Scheduler};

    #[tokio::test(start_paused = true)]
    async fn a_create_is_in_flight_until_the_watch_shows_its_pod_or_is_silent() {
        let (scheduler, mut lag) = (Arc::new(Scheduler::default()), WatchLag::default());
        let all = scheduler.room(Class::Create);
        assert_eq!(lag.wake_at(), None);
        // Answers come in any order.
        for version in (1..=4).rev() {
            lag.answered(version, scheduler.enter_now(Class::Create));
        }
        assert_eq!(scheduler.room(Class::Create), all - 4);
        assert_eq!(lag.wake_at(), Some(Instant::now() + PLAN_INTERVAL));
        lag.shown(3);
        assert_eq!(scheduler.room(Class::Create), all - 1);
        tokio::time::sleep(WATCH_SILENT).await;
        lag.shown(3);
        assert_eq!(scheduler.room(Class::Create), all);
        assert_eq!(lag.wake_at(), None);
    }
}
