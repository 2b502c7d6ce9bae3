//! Decides which transitions of a worker otto-handler has yet to be notified of, and in
//! which order.
//!
//! Invariants: of each attempt that had a pod, Created is notified, then Running if it ran,
//! then its end if no attempt follows or if ScaleDown ended it. That holds even if the watch
//! showed only the end, and even if another attempt has followed by then.
use std::sync::Arc;

use super::{
    pod::{Pod, PodsByIndex},
    task::{MAX_PAST, Notified, NotifiedState, PastAttempt, WorkerPhase, WorkerRecord},
    view,
};

/// Returns the next transition to notify otto-handler of, or None when it has acknowledged
/// all of them. A worker that a newer version looks after has none: that version notifies.
pub fn next(record: &WorkerRecord) -> Option<Notified> {
    if record.phase == WorkerPhase::Unknown {
        return None;
    }
    let acked = record.notified;
    passed(record).find(|n| acked.is_none_or(|acked| acked.is_before(*n)))
}

/// Returns the last transition that the worker has passed, acknowledged or not.
pub fn latest(record: &WorkerRecord) -> Option<Notified> {
    passed(record).last()
}

/// Reports whether the worker has ended and otto-handler has acknowledged all of its
/// transitions.
pub fn is_done(record: &WorkerRecord) -> bool {
    record.phase.is_final() && next(record).is_none()
}

/// Returns the transitions that the worker has passed, in order.
fn passed(record: &WorkerRecord) -> impl Iterator<Item = Notified> {
    let past = record.past.iter().filter(|p| p.attempt < record.attempt);
    let past = past.flat_map(|p| p.passed().map(|state| (p.attempt, state)));
    // An attempt has one end only, even if the record came to another one since that was
    // acknowledged.
    let ended = record
        .notified
        .is_some_and(|n| n.attempt == record.attempt && n.state.is_end());
    let ran = record.started.is_some() || record.phase == WorkerPhase::Running;
    let newest = [
        record.uid.as_ref().map(|_| NotifiedState::Created),
        ran.then_some(NotifiedState::Running),
        record.phase.end().filter(|_| !ended),
    ];
    let newest = newest.into_iter().flatten();
    past.chain(newest.map(|state| (record.attempt, state)))
        .map(|(attempt, state)| Notified { attempt, state })
}

/// A `TaskPods` holds what is known of a task's pods.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskPods<'a> {
    /// The pods that exist.
    pub(crate) live: &'a PodsByIndex<'a>,
    /// The last states of pods that were deleted.
    pub(crate) gone: &'a PodsByIndex<'a>,
}

impl TaskPods<'_> {
    fn of(&self, index: u32, attempt: u32) -> impl Iterator<Item = &Arc<Pod>> {
        let all = self.gone.of(index).chain(self.live.of(index));
        all.filter(move |pod| pod.attempt == attempt)
    }
}

/// Carries over to `record` what otto-handler has acknowledged, and the transitions that it
/// has yet to be notified of, of attempts that `record` has left behind since `stored`.
/// `acked` is the newest acknowledged transition, which may not be stored yet.
pub(crate) fn carry(
    record: &mut WorkerRecord,
    stored: &WorkerRecord,
    acked: Option<Notified>,
    pods: TaskPods<'_>,
) {
    let acked = acked.filter(|acked| acked.attempt <= record.attempt);
    record.notified = Notified::latest(stored.notified, acked);
    if record.attempt > stored.attempt {
        record.past.clone_from(&stored.past);
        let few = record.attempt.saturating_sub(MAX_PAST as u32);
        let left = stored.attempt.max(few)..record.attempt;
        record
            .past
            .extend(left.map(|attempt| past(stored, attempt, pods)));
    }
    let acked = record.notified;
    let is_unacked = |attempt, state| {
        let next = Notified { attempt, state };
        acked.is_none_or(|acked| acked.is_before(next))
    };
    record
        .past
        .retain(|p| p.passed().any(|state| is_unacked(p.attempt, state)));
    let surplus = record.past.len().saturating_sub(MAX_PAST);
    record.past.drain(..surplus);
}

/// Returns what is known of an attempt that another one has followed.
fn past(stored: &WorkerRecord, attempt: u32, pods: TaskPods<'_>) -> PastAttempt {
    let mut record = if attempt == stored.attempt {
        stored.clone()
    } else {
        WorkerRecord {
            index: stored.index,
            attempt,
            ..WorkerRecord::default()
        }
    };
    for pod in pods.of(stored.index, attempt) {
        view::observe(&mut record, pod);
    }
    let terminated = record.stopping || record.phase == WorkerPhase::Terminated;
    PastAttempt::of(&record, terminated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::PodPhase;

    fn told(mut record: WorkerRecord) -> Vec<NotifiedState> {
        let mut all = Vec::new();
        while let Some(n) = next(&record) {
            all.push(n.state);
            record.notified = Some(n);
        }
        all
    }

    fn record(phase: WorkerPhase, started: Option<i64>) -> WorkerRecord {
        WorkerRecord {
            index: 1,
            attempt: 1,
            phase,
            uid: Some("u".into()),
            started,
            ..Default::default()
        }
    }

    #[test]
    fn a_worker_seen_only_at_its_end_is_told_from_the_start() {
        use NotifiedState::{Completed, Created, Running};
        assert_eq!(
            told(record(WorkerPhase::Succeeded, Some(1))),
            [Created, Running, Completed]
        );
    }

    #[test]
    fn a_worker_that_never_ran_was_not_running() {
        use NotifiedState::{Created, Failed};
        assert_eq!(told(record(WorkerPhase::Failed, None)), [Created, Failed]);
    }

    #[test]
    fn a_retry_is_created_again() {
        let mut r = record(WorkerPhase::Pending, None);
        r.attempt = 2;
        r.notified = Some(Notified {
            attempt: 1,
            state: NotifiedState::Running,
        });
        assert_eq!(
            next(&r),
            Some(Notified {
                attempt: 2,
                state: NotifiedState::Created
            })
        );
    }

    #[test]
    fn the_latest_is_what_it_came_to_whatever_was_told() {
        let latest = |r: &WorkerRecord| latest(r).map(|n| n.state);
        let mut r = record(WorkerPhase::Running, Some(1));
        assert_eq!(latest(&r), Some(NotifiedState::Running));
        r.notified = super::latest(&r);
        assert_eq!(latest(&r), Some(NotifiedState::Running));
        r.phase = WorkerPhase::Failed;
        assert_eq!(latest(&r), Some(NotifiedState::Failed));
        r.uid = None;
        r.started = None;
        r.phase = WorkerPhase::Queued;
        assert_eq!(latest(&r), None);
    }

    #[test]
    fn a_worker_ended_before_its_pod_was_made_is_terminated() {
        let r = WorkerRecord {
            index: 1,
            attempt: 1,
            phase: WorkerPhase::Terminated,
            ..Default::default()
        };
        assert_eq!(told(r), [NotifiedState::Terminated]);
    }

    fn notified(record: &WorkerRecord) -> Vec<(u32, NotifiedState)> {
        let (mut record, mut all) = (record.clone(), Vec::new());
        while let Some(n) = next(&record) {
            all.push((n.attempt, n.state));
            record.notified = Some(n);
        }
        all
    }

    fn none(of: &[Arc<Pod>]) -> PodsByIndex<'_> {
        PodsByIndex::new(of)
    }

    /// Returns a worker that is queued for this attempt.
    fn retried(attempt: u32) -> WorkerRecord {
        WorkerRecord {
            attempt,
            uid: None,
            ..record(WorkerPhase::Queued, None)
        }
    }

    #[test]
    fn attempts_that_were_left_behind_are_told_from_their_start() {
        use NotifiedState::{Created, Running};
        let stored = record(WorkerPhase::Running, Some(5));
        let pod = |attempt, phase| {
            Arc::new(Pod {
                index: 1,
                attempt,
                phase,
                uid: format!("u{attempt}"),
                started: (phase == PodPhase::Failed).then_some(9),
                created: Some(8),
                ..Pod::default()
            })
        };
        let (live, gone) = ([pod(2, PodPhase::Failed)], [pod(3, PodPhase::Pending)]);
        let (live, gone) = (PodsByIndex::new(&live), PodsByIndex::new(&gone));
        let pods = TaskPods {
            live: &live,
            gone: &gone,
        };
        let mut now = retried(4);
        carry(&mut now, &stored, None, pods);
        let all = [
            (1, Created),
            (1, Running),
            (2, Created),
            (2, Running),
            (3, Created),
        ];
        assert_eq!(notified(&now), all);
        assert_eq!(now.past[1].started, Some(9));
        // What otto-handler acknowledged meanwhile is left out, and another leader goes on there.
        let told = Notified {
            attempt: 2,
            state: Created,
        };
        let stored = now.clone();
        carry(&mut now, &stored, Some(told), pods);
        assert_eq!(notified(&now), all[3..]);
        let attempts: Vec<u32> = now.past.iter().map(|p| p.attempt).collect();
        assert_eq!(attempts, [2, 3]);
    }

    #[test]
    fn an_attempt_that_scale_down_ended_is_terminated_before_the_next_one_begins() {
        use NotifiedState::{Created, Running, Terminated};
        let mut stored = record(WorkerPhase::Running, Some(5));
        stored.stopping = true;
        let (live, gone) = (none(&[]), none(&[]));
        let pods = TaskPods {
            live: &live,
            gone: &gone,
        };
        let mut now = WorkerRecord {
            attempt: 2,
            ..record(WorkerPhase::Pending, None)
        };
        carry(&mut now, &stored, None, pods);
        let all = [(1, Created), (1, Running), (1, Terminated), (2, Created)];
        assert_eq!(notified(&now), all);
        // An attempt whose pod was never created has an end only.
        (stored.uid, stored.started) = (None, None);
        stored.phase = WorkerPhase::Terminated;
        carry(&mut now, &stored, None, pods);
        assert_eq!(notified(&now), [(1, Terminated), (2, Created)]);
    }

    #[test]
    fn an_attempt_of_which_nothing_is_left_is_told_to_have_begun() {
        use NotifiedState::Created;
        let (live, gone) = (none(&[]), none(&[]));
        let pods = TaskPods {
            live: &live,
            gone: &gone,
        };
        let mut now = retried(3);
        carry(&mut now, &retried(1), None, pods);
        assert_eq!(notified(&now), [(1, Created), (2, Created)]);
        // Of many attempts only a few are remembered.
        let mut now = retried(500);
        carry(&mut now, &retried(1), None, pods);
        assert_eq!(now.past.len(), MAX_PAST);
        assert_eq!(now.past[MAX_PAST - 1].attempt, 499);
    }
}
