//! What otto-handler has yet to be told of a worker, in order.
use super::task::{Notified, NotifiedState, WorkerPhase, WorkerRecord};

/// The next transition to tell, or None when otto-handler knows all.
///
/// Of each attempt Created, Running (if it ran) and its end (if none follows)
/// are told, also when the watch showed only the end.
///
/// Of a worker that a newer version looks after, that tells.
pub fn next(record: &WorkerRecord) -> Option<Notified> {
    if record.phase == WorkerPhase::Unknown {
        return None;
    }
    let told = record
        .notified
        .filter(|n| n.attempt >= record.attempt)
        .map(|n| n.state);
    passed(record)
        .into_iter()
        .flatten()
        .find(|state| told.is_none_or(|told| *state > told))
        .map(|state| Notified {
            attempt: record.attempt,
            state,
        })
}

/// The last transition that the worker has passed, told or not.
pub fn latest(record: &WorkerRecord) -> Option<Notified> {
    let state = passed(record).into_iter().flatten().last()?;
    Some(Notified {
        attempt: record.attempt,
        state,
    })
}

/// Nothing more will come of this worker, and all is told.
pub fn is_done(record: &WorkerRecord) -> bool {
    record.phase.is_final() && next(record).is_none()
}

fn passed(record: &WorkerRecord) -> [Option<NotifiedState>; 3] {
    // One end only: the three ends are ordered for comparison, not in time.
    let ended = record
        .notified
        .is_some_and(|n| n.attempt == record.attempt && n.state.is_end());
    let ran = record.started.is_some() || record.phase == WorkerPhase::Running;
    [
        record.uid.as_ref().map(|_| NotifiedState::Created),
        ran.then_some(NotifiedState::Running),
        record.phase.end().filter(|_| !ended),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
