//! When a task's status may be written: each write is the whole object for the API
//! server and every watch.
//!
//! What holds: between two writes of a task lie at least [`INTERVAL`] and
//! [`PER_WORKER`] for each of its workers; what is not urgent waits longer with each
//! write, up to [`SELDOM`].
use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_secs(1);
const PER_WORKER: Duration = Duration::from_millis(2);
/// The first of the longer intervals; each is twice the one before.
const RELAXED: Duration = Duration::from_secs(8);
const SELDOM: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Paces {
    by_task: HashMap<Arc<str>, Pace>,
    hurried: bool,
}

#[derive(Debug)]
struct Pace {
    urgent: Instant,
    relaxed: Instant,
    /// The last one that was waited for.
    interval: Duration,
}

impl Paces {
    /// From when this task's status may be written; its first one is put off so long.
    pub(super) fn next(
        &mut self,
        task: &Arc<str>,
        is_urgent: bool,
        now: Instant,
        put_off: Duration,
    ) -> Instant {
        if self.hurried {
            return now;
        }
        let first = now + put_off;
        let pace = self.by_task.entry(task.clone()).or_insert(Pace {
            urgent: first,
            relaxed: first,
            interval: Duration::ZERO,
        });
        if is_urgent { pace.urgent } else { pace.relaxed }
    }

    /// A write of so many workers' records begins.
    pub(super) fn wrote(&mut self, task: &Arc<str>, workers: u32, now: Instant) {
        if let Some(pace) = self.by_task.get_mut(task) {
            let least = INTERVAL + PER_WORKER * workers;
            pace.interval = (pace.interval * 2).clamp(RELAXED, SELDOM);
            pace.urgent = now + least;
            pace.relaxed = now + pace.interval.max(least);
        }
    }

    pub(super) fn forget(&mut self, task: &str) {
        self.by_task.remove(task);
    }

    /// From now on nothing waits.
    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: Duration = Duration::ZERO;
    const FIRST: Duration = Duration::from_millis(250);

    #[test]
    fn what_is_not_urgent_waits_ever_longer() {
        let (mut paces, task, start) = (Paces::default(), Arc::from("t"), Instant::now());
        let mut now = paces.next(&task, false, start, FIRST);
        assert_eq!(now, start + FIRST);
        let mut waited = Vec::new();
        for _ in 0..6 {
            paces.wrote(&task, 100, now);
            let urgent = paces.next(&task, true, now, NO);
            assert_eq!(urgent - now, Duration::from_millis(1_200));
            let next = paces.next(&task, false, now, NO);
            waited.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waited, [8, 16, 30, 30, 30, 30]);
    }

    #[test]
    fn a_big_task_is_written_less_often() {
        let (mut paces, task, start) = (Paces::default(), Arc::from("t"), Instant::now());
        paces.next(&task, true, start, NO);
        paces.wrote(&task, 1_000, start);
        let next = paces.next(&task, true, start, NO);
        assert_eq!(next - start, Duration::from_secs(3));
    }

    #[test]
    fn another_task_of_that_name_waits_for_nothing() {
        let (mut paces, task, start) = (Paces::default(), Arc::from("t"), Instant::now());
        paces.next(&task, true, start, NO);
        paces.wrote(&task, 1, start);
        assert_ne!(paces.next(&task, false, start, NO), start);
        paces.forget("t");
        assert_eq!(paces.next(&task, false, start, NO), start);
    }

    #[test]
    fn at_the_end_nothing_waits() {
        let (mut paces, task, start) = (Paces::default(), Arc::from("t"), Instant::now());
        paces.next(&task, true, start, NO);
        paces.wrote(&task, 1, start);
        paces.hurry();
        for task in [task, Arc::from("new")] {
            assert_eq!(paces.next(&task, false, start, FIRST), start);
        }
    }
}
