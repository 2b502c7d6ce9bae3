//! Derives the last states of the workers of a task that is gone or being deleted. No
//! attempt follows, so each worker that has begun comes to an end that otto-handler can be
//! notified of.
use std::sync::Arc;

use super::{
    pod::{Pod, PodsByIndex},
    retry::{self, FailedAttempt, RetryDecision},
    task::{Notified, Task, WorkerPhase, WorkerRecord},
    transition::{self, TaskPods},
    view,
};

/// The reason of a worker that ended because its task was deleted.
const REASON: &str = "TaskDeleted";

/// Returns the records of all workers, in ascending order of their indices.
///
/// `live` holds the pods of this task that still exist, and `gone` the last states of those
/// that were deleted. `acked` returns the newest transition of a worker that otto-handler has
/// acknowledged, by index. `now` is in Unix seconds.
///
/// A worker that ended by itself keeps its end. One that was interrupted, or would have been
/// retried, is terminated. One whose pod may still run has no end yet.
pub fn final_records(
    task: &Task,
    live: &[Arc<Pod>],
    gone: &[Arc<Pod>],
    acked: &dyn Fn(u32) -> Option<Notified>,
    now: i64,
) -> Vec<WorkerRecord> {
    let (live, gone) = (PodsByIndex::new(live), PodsByIndex::new(gone));
    let pods = TaskPods {
        live: &live,
        gone: &gone,
    };
    let top = view::top(task).max(live.top()).max(gone.top());
    let worker = |index| {
        let stored = view::record(task, index);
        let mut record = stored.clone().into_owned();
        let newest = [&gone, &live].map(|all| all.newest(index, record.attempt));
        for pod in newest.into_iter().flatten() {
            view::observe(&mut record, pod);
        }
        transition::carry(&mut record, &stored, acked(index), pods);
        let was_final = stored.phase.is_final() && stored.attempt == record.attempt;
        let lives = live.of(index).any(|p| !p.worker_has_ended());
        if !was_final && !lives {
            end(&mut record, now);
        }
        record
    };
    (1..=top).map(worker).collect()
}

fn end(record: &mut WorkerRecord, now: i64) {
    let ended_by_itself = match record.phase {
        WorkerPhase::Succeeded | WorkerPhase::Terminated | WorkerPhase::Unknown => true,
        WorkerPhase::Failed => !is_interrupted(record),
        WorkerPhase::Queued | WorkerPhase::Pending | WorkerPhase::Running => false,
    };
    let has_begun = record.uid.is_some() || record.notified.is_some() || !record.past.is_empty();
    if ended_by_itself || !has_begun {
        return;
    }
    record.phase = WorkerPhase::Terminated;
    REASON.clone_into(&mut record.reason);
    record.finished = record.finished.or(Some(now));
}

/// Reports whether the worker would have been retried if its task went on.
fn is_interrupted(record: &WorkerRecord) -> bool {
    let ending = FailedAttempt {
        reason: &record.reason,
        message: &record.message,
        started: record.started.is_some(),
        failures: 0,
        tries: 0,
        budget: 1,
    };
    matches!(retry::decide(ending), RetryDecision::Retry { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pod::PodPhase,
        task::{NotifiedState, TaskSpec},
    };

    fn task(stored: Vec<WorkerRecord>) -> Task {
        let mut task = Task {
            spec: TaskSpec {
                workers: 1,
                ..TaskSpec::default()
            },
            ..Task::default()
        };
        task.status.workers = stored;
        task
    }

    fn pod(phase: PodPhase, attempt: u32) -> Arc<Pod> {
        let has_ended = phase != PodPhase::Running;
        Arc::new(Pod {
            index: 1,
            attempt,
            phase,
            uid: format!("u{attempt}"),
            created: Some(1),
            started: Some(2),
            deleting: true,
            finished: has_ended.then_some(10),
            exit_code: has_ended.then_some(143),
            ..Pod::default()
        })
    }

    fn told(task: &Task, live: &[Arc<Pod>], gone: &[Arc<Pod>]) -> Vec<(u32, NotifiedState)> {
        let mut all = Vec::new();
        for mut record in final_records(task, live, gone, &|_| None, 100) {
            while let Some(next) = transition::next(&record) {
                all.push((next.attempt, next.state));
                record.notified = Some(next);
            }
        }
        all
    }

    const WHOLE: [(u32, NotifiedState); 3] = [
        (1, NotifiedState::Created),
        (1, NotifiedState::Running),
        (1, NotifiedState::Terminated),
    ];

    #[test]
    fn a_worker_whose_pod_is_ending_is_terminated_once_it_has_ended() {
        let running = [pod(PodPhase::Running, 1)];
        assert_eq!(told(&task(vec![]), &running, &[]), WHOLE[..2]);
        // The container ended by the signal, or nobody saw how it ended.
        assert_eq!(told(&task(vec![]), &[pod(PodPhase::Failed, 1)], &[]), WHOLE);
        assert_eq!(told(&task(vec![]), &[], &running), WHOLE);
        let ended = final_records(
            &task(vec![]),
            &[],
            &[pod(PodPhase::Failed, 1)],
            &|_| None,
            100,
        );
        assert_eq!(
            (ended[0].exit_code, ended[0].finished),
            (Some(143), Some(10))
        );
    }

    #[test]
    fn a_worker_that_had_ended_by_itself_keeps_its_end() {
        let by_itself = |phase, reason: &str| {
            let mut pod = Arc::unwrap_or_clone(pod(phase, 1));
            (pod.deleting, pod.reason) = (false, reason.to_owned());
            told(&task(vec![]), &[Arc::new(pod)], &[])
        };
        let last = |all: Vec<(u32, NotifiedState)>| all.last().map(|(_, state)| *state);
        let end = last(by_itself(PodPhase::Succeeded, ""));
        assert_eq!(end, Some(NotifiedState::Completed));
        let end = last(by_itself(PodPhase::Failed, "Error"));
        assert_eq!(end, Some(NotifiedState::Failed));
        // The worker would have been retried.
        let end = last(by_itself(PodPhase::Failed, "Evicted"));
        assert_eq!(end, Some(NotifiedState::Terminated));
    }

    #[test]
    fn a_worker_that_waits_for_its_next_attempt_is_terminated_and_one_that_never_began_is_not() {
        let told_of = |notified| {
            let waits = WorkerRecord {
                index: 1,
                attempt: 2,
                notified,
                ..WorkerRecord::default()
            };
            told(&task(vec![waits]), &[], &[])
        };
        let ran = Notified {
            attempt: 1,
            state: NotifiedState::Running,
        };
        assert_eq!(told_of(Some(ran)), [(2, NotifiedState::Terminated)]);
        assert_eq!(told_of(None), []);
    }
}
