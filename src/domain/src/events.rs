//! Derives Kubernetes Events from what a status write changed. Workers that change in the
//! same way share an Event, so that there are few of them however many workers a task has.
use std::collections::BTreeMap;

use super::{
    conditions::tally,
    task::{TaskPhase, TaskStatus, WorkerPhase, WorkerRecord},
    view,
};

/// The greatest number of worker indices that an event names. A person reads no more, and an Event
/// holds 1,024 bytes.
const NAMED: usize = 8;

/// A `TaskEvent` is something that happened to a task, with its text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEvent {
    /// Attempts of workers failed, and new attempts follow.
    Retried(String),
    /// Workers failed, and no attempt follows.
    Failed(String),
    /// The whole task finished in this phase.
    Finished(TaskPhase, String),
}

/// Returns the events that turned the status `before` into `after`.
pub fn events(before: &TaskStatus, after: &TaskStatus) -> Vec<TaskEvent> {
    let mut retried: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    let mut failed: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    let fresh = WorkerRecord::default();
    for worker in &after.workers {
        let known = view::find_record(&before.workers, worker.index).unwrap_or(&fresh);
        if known == worker {
            continue;
        }
        if worker.attempt > known.attempt.max(1) && worker.phase == WorkerPhase::Queued {
            retried
                .entry(&worker.reason)
                .or_default()
                .push(worker.index);
        }
        if worker.phase == WorkerPhase::Failed && known.phase != WorkerPhase::Failed {
            failed.entry(&worker.reason).or_default().push(worker.index);
        }
    }
    let told = |(reason, workers): (&str, Vec<u32>), what: &str| {
        let named: Vec<String> = workers.iter().take(NAMED).map(u32::to_string).collect();
        let more = if workers.len() > NAMED { ", …" } else { "" };
        format!(
            "{} worker(s) {what}: {reason} (index {}{more})",
            workers.len(),
            named.join(", ")
        )
    };
    let retried = retried
        .into_iter()
        .map(|all| TaskEvent::Retried(told(all, "tried again")));
    let failed = failed
        .into_iter()
        .map(|all| TaskEvent::Failed(told(all, "failed")));
    let finished = (after.phase.is_finished() && !before.phase.is_finished())
        .then(|| TaskEvent::Finished(after.phase, tally(&after.workers)));
    retried.chain(failed).chain(finished).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: TaskPhase, workers: &[(u32, WorkerPhase, &str)]) -> TaskStatus {
        let workers = (1..)
            .zip(workers)
            .map(|(index, (attempt, phase, reason))| WorkerRecord {
                index,
                attempt: *attempt,
                phase: *phase,
                reason: (*reason).into(),
                ..WorkerRecord::default()
            });
        TaskStatus {
            phase,
            workers: workers.collect(),
            ..TaskStatus::default()
        }
    }

    #[test]
    fn one_event_tells_of_all_workers_that_went_the_same_way() {
        let before = status(TaskPhase::Running, &[(1, WorkerPhase::Running, ""); 10]);
        let mut after = before.clone();
        for worker in &mut after.workers[..9] {
            worker.phase = WorkerPhase::Failed;
            worker.reason = "OOMKilled".into();
        }
        after.workers[9].attempt = 2;
        after.workers[9].phase = WorkerPhase::Queued;
        after.workers[9].reason = "Evicted".into();
        assert_eq!(
            events(&before, &after),
            [
                TaskEvent::Retried("1 worker(s) tried again: Evicted (index 10)".into()),
                TaskEvent::Failed(
                    "9 worker(s) failed: OOMKilled (index 1, 2, 3, 4, 5, 6, 7, 8, …)".into()
                ),
            ]
        );
        assert_eq!(events(&after, &after), []);
    }

    #[test]
    fn an_end_is_told_once() {
        let before = status(TaskPhase::Running, &[(1, WorkerPhase::Running, "")]);
        let after = status(TaskPhase::Succeeded, &[(1, WorkerPhase::Succeeded, "")]);
        let told = [TaskEvent::Finished(
            TaskPhase::Succeeded,
            "1 succeeded".into(),
        )];
        assert_eq!(events(&before, &after), told);
        assert_eq!(events(&after, &after), []);
    }

    #[test]
    fn a_first_attempt_is_no_news() {
        let after = status(TaskPhase::Pending, &[(1, WorkerPhase::Queued, "")]);
        assert_eq!(events(&TaskStatus::default(), &after), []);
    }
}
