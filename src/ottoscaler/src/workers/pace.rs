//! When a task's status may be written: each write is the whole object for the API
//! server and every watch.
//!
//! What holds: between two writes of a task lie at least [`INTERVAL`] and
//! [`PER_WORKER`] for each of its workers; what is not urgent waits longer with each
//! write, up to [`SELDOM`]; a task's end waits [`ANSWER`] at most.
use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::domain::{
    task::{TaskPhase, TaskStatus, WorkerRecord},
    transition,
};

/// What has a reason waits this long for the pods of a new task, which are what is asked
/// for: both at once would only slow each other down. The first status waits longer for
/// each worker, until all have pods where the API server is quick: one write less.
const FIRST: Duration = Duration::from_millis(250);
/// That a task has begun, and what is not urgent, waits for more: a task may be over soon.
const BEGINS: Duration = Duration::from_secs(5);
/// Where there is nothing to tell but that none runs yet, a status waits for one that
/// does: until then the API server says `Pending` by itself.
const RUNS: Duration = SELDOM;
const INTERVAL: Duration = Duration::from_secs(1);
const PER_WORKER: Duration = Duration::from_millis(2);
/// The first of the longer intervals; each is thrice the one before.
const RELAXED: Duration = Duration::from_secs(20);
const SELDOM: Duration = Duration::from_secs(60);
/// So long a task's end waits for otto-handler to take it: one write less.
const ANSWER: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
pub(super) struct Paces {
    by_task: HashMap<Arc<str>, Pace>,
    hurried: bool,
}

#[derive(Debug)]
struct Pace {
    /// When it was first asked about what has yet to be written.
    began: Option<Instant>,
    urgent: Instant,
    relaxed: Instant,
    /// When it was first asked about an end that otto-handler does not know.
    ended: Option<Instant>,
    /// The last one that was waited for.
    interval: Duration,
}

impl Paces {
    /// From when this task's status may be written; `put_off` counts from when it was first
    /// asked about.
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
        let pace = self.by_task.entry(task.clone()).or_insert(Pace {
            began: None,
            urgent: now,
            relaxed: now,
            ended: None,
            interval: Duration::ZERO,
        });
        let paced = if is_urgent { pace.urgent } else { pace.relaxed };
        paced.max(*pace.began.get_or_insert(now) + put_off)
    }

    /// Until when a task's end that otto-handler does not know may be kept back.
    pub(super) fn answer(&mut self, task: &str, now: Instant) -> Instant {
        let pace = self.by_task.get_mut(task).filter(|_| !self.hurried);
        pace.map_or(now, |pace| *pace.ended.get_or_insert(now) + ANSWER)
    }

    /// A write of so many workers' records begins.
    pub(super) fn wrote(&mut self, task: &Arc<str>, workers: u32, now: Instant) {
        if let Some(pace) = self.by_task.get_mut(task) {
            let least = INTERVAL + PER_WORKER * workers;
            pace.began = None;
            pace.interval = (pace.interval * 3).clamp(RELAXED, SELDOM);
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

/// How long a status waits for more to tell, if no pod is removed by it; `lacks_places`:
/// who has no pod yet waits for more than the API server.
pub(super) fn put_off(
    stored: &TaskStatus,
    new: &TaskStatus,
    is_urgent: bool,
    lacks_places: bool,
) -> Duration {
    let workers = &new.workers;
    let is_first = stored.workers.is_empty();
    let begins = new.phase == TaskPhase::Running && stored.phase != new.phase;
    let moves = |w: &WorkerRecord| w.phase.is_final() || w.stopping;
    let has_reason = |w: &WorkerRecord| !w.reason.is_empty();
    let starts = |w: &WorkerRecord| !has_reason(w) && (w.uid.is_some() || !lacks_places);
    let least = match () {
        () if workers.iter().any(moves) => return Duration::ZERO,
        () if !is_first && is_urgent && !begins => return Duration::ZERO,
        () if is_first && workers.iter().any(has_reason) => FIRST,
        () if new.phase != TaskPhase::Running && workers.iter().all(starts) => RUNS,
        () => BEGINS,
    };
    least + PER_WORKER * new.counts.total
}

/// Whether the task ends with this status, and otto-handler does not know all of it.
pub(super) fn is_untold_end(stored: &TaskStatus, new: &TaskStatus) -> bool {
    new.phase.is_finished()
        && !stored.phase.is_finished()
        && !new.workers.iter().all(transition::is_done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::task::{Notified, NotifiedState, WorkerPhase};

    const NO: Duration = Duration::ZERO;

    fn status(change: impl FnOnce(&mut WorkerRecord)) -> TaskStatus {
        let mut worker = WorkerRecord {
            uid: Some("u".into()),
            ..WorkerRecord::default()
        };
        change(&mut worker);
        TaskStatus {
            workers: vec![worker],
            ..TaskStatus::default()
        }
    }

    #[test]
    fn the_first_status_waits_for_pods_and_for_one_that_runs() {
        let first = |new: &TaskStatus| put_off(&TaskStatus::default(), new, true, true);
        let has_pod = status(|_| {});
        assert_eq!(first(&has_pod), RUNS);
        let none = status(|w| w.uid = None);
        assert_eq!(first(&none), BEGINS);
        let has_places = put_off(&TaskStatus::default(), &none, true, false);
        assert_eq!(has_places, RUNS);
        assert_eq!(first(&status(|w| w.reason = "OOMKilled".into())), FIRST);
        let mut runs = has_pod.clone();
        runs.phase = TaskPhase::Running;
        runs.counts.total = 1_000;
        assert_eq!(first(&runs), BEGINS + PER_WORKER * 1_000);
        // Pods wait for it to go.
        assert_eq!(first(&status(|w| w.stopping = true)), NO);
        assert_eq!(first(&status(|w| w.phase = WorkerPhase::Succeeded)), NO);
    }

    #[test]
    fn a_later_status_waits_where_a_task_begins_or_nobody_asks() {
        let stored = status(|_| {});
        let later = |new: &TaskStatus, is_urgent| put_off(&stored, new, is_urgent, true);
        let mut runs = status(|_| {});
        runs.phase = TaskPhase::Running;
        assert_eq!(later(&runs, true), BEGINS);
        assert_eq!(later(&runs, false), BEGINS);
        // That it has its pods is told with what comes next.
        assert_eq!(later(&stored, false), RUNS);
        let reason = status(|w| w.reason = "ImagePullBackOff".into());
        assert_eq!(later(&reason, true), NO);
        assert_eq!(later(&status(|w| w.stopping = true), true), NO);
    }

    #[test]
    fn what_is_not_urgent_waits_ever_longer() {
        let (mut paces, task, start) = (Paces::default(), Arc::from("t"), Instant::now());
        let mut now = paces.next(&task, false, start, FIRST);
        assert_eq!(now, start + FIRST);
        // It is put off by less, now that it says more.
        let soon = paces.next(&task, true, start + FIRST / 2, NO);
        assert_eq!(soon, start);
        // Who asks again does not begin again; what comes after a write does.
        let again = paces.next(&task, true, start + FIRST, FIRST);
        assert_eq!(again, start + FIRST);
        paces.wrote(&task, 0, start);
        let after = start + SELDOM;
        assert_eq!(paces.next(&task, true, after, BEGINS), after + BEGINS);
        paces.forget("t");
        paces.next(&task, true, start, NO);
        let mut waited = Vec::new();
        for _ in 0..6 {
            paces.wrote(&task, 100, now);
            let urgent = paces.next(&task, true, now, NO);
            assert_eq!(urgent - now, Duration::from_millis(1_200));
            let next = paces.next(&task, false, now, NO);
            waited.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waited, [20, 60, 60, 60, 60, 60]);
    }

    #[test]
    fn an_end_waits_a_moment_for_otto_handler_to_know_it() {
        let ended = |state| {
            let mut new = status(|w| {
                (w.attempt, w.phase) = (1, WorkerPhase::Succeeded);
                w.notified = Some(Notified { attempt: 1, state });
            });
            new.phase = TaskPhase::Succeeded;
            new
        };
        let untold = ended(NotifiedState::Running);
        assert!(is_untold_end(&status(|_| {}), &untold));
        assert!(!is_untold_end(&untold, &untold), "stored before");
        let told = ended(NotifiedState::Completed);
        assert!(!is_untold_end(&status(|_| {}), &told));

        let (mut paces, task, start) = (Paces::default(), Arc::from("t"), Instant::now());
        paces.next(&task, true, start, NO);
        // However often it is asked about.
        for later in [NO, ANSWER, 2 * ANSWER] {
            assert_eq!(paces.answer("t", start + later), start + ANSWER);
        }
        paces.hurry();
        assert_eq!(paces.answer("t", start), start);
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
