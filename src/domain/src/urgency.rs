//! Decides how soon a task's status is to be stored.
//!
//! What a pod shows can be read again for as long as the pod exists, and no pod is deleted
//! before its record is stored. Such a record may lag.
//!
//! Invariants:
//! - What the leader decided is urgent, and so is what a pod showed that somebody else
//!   deleted.
//! - What people wait for is urgent: failures, reasons, phases and conditions of the task.
//! - What otto-handler acknowledged is not urgent: at worst it is notified twice.
//! - What somebody waits for until it is stored is written without delay: see
//!   [`WriteUrgency::Awaited`] and [`makes_room`].
use super::{
    conditions::{CREATED, DELIVERED, FINISHED},
    task::{Condition, TaskStatus, WorkerPhase, WorkerRecord},
};

/// A `WriteUrgency` says how soon a status is to be stored, by what it says beyond the stored
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WriteUrgency {
    /// The status says nothing more than the stored one.
    Nothing,
    /// The status may lag.
    Relaxed,
    /// The status is to be stored soon.
    Urgent,
    /// Something is done once the status is stored, and not before.
    Awaited,
}

/// Judges what `new` says beyond `stored`. `has_gone` reports whether the pod of a worker's
/// attempt, given by index and attempt, is gone.
pub fn of(
    stored: &TaskStatus,
    new: &TaskStatus,
    has_gone: &dyn Fn(u32, u32) -> bool,
) -> WriteUrgency {
    let tells_more = stored.phase != new.phase
        || stored.finished_at != new.finished_at
        || stored.workers.len() != new.workers.len();
    if tells_more {
        return WriteUrgency::Urgent;
    }
    let of_worker = |(known, worker): (&WorkerRecord, &WorkerRecord)| match () {
        () if known == worker => WriteUrgency::Nothing,
        () if known.index != worker.index || is_urgent(known, worker) => WriteUrgency::Urgent,
        () if has_gone(worker.index, worker.attempt) && says_more(known, worker) => {
            WriteUrgency::Urgent
        }
        () => WriteUrgency::Relaxed,
    };
    // Both are sorted by index.
    let workers = std::iter::zip(&stored.workers, &new.workers).map(of_worker);
    let conditions = of_conditions(&stored.conditions, &new.conditions);
    workers.fold(conditions, WriteUrgency::max)
}

/// Judges what the conditions `new` say beyond `old`; counts may differ. That all workers have
/// their pods by now, or wait for something else, is stored with the next change.
pub(super) fn of_conditions(old: &[Condition], new: &[Condition]) -> WriteUrgency {
    let of_kind = |kind| match (said(old, kind), said(new, kind)) {
        (was, is) if was == is => WriteUrgency::Nothing,
        (Some(_), Some(("True", _))) if kind == CREATED => WriteUrgency::Relaxed,
        (Some(("False", _)), Some(("False", _))) if kind == CREATED => WriteUrgency::Relaxed,
        _ => WriteUrgency::Urgent,
    };
    let all = [CREATED, FINISHED, DELIVERED].map(of_kind);
    all.into_iter().max().unwrap_or(WriteUrgency::Nothing)
}

/// Returns the status and the reason of a condition.
fn said<'a>(all: &'a [Condition], kind: &str) -> Option<(&'a str, &'a str)> {
    let found = all.iter().find(|c| c.kind == kind);
    found.map(|c| (c.status.as_str(), c.reason.as_str()))
}

/// Reports whether pods can be deleted once `new` is stored. That is urgent if others wait for
/// their places.
pub fn makes_room(stored: &TaskStatus, new: &TaskStatus) -> bool {
    std::iter::zip(&stored.workers, &new.workers)
        .any(|(known, worker)| worker.phase.is_final() && !known.phase.is_final())
}

/// Reports whether workers end once `new` is stored, and not before: somebody asked for it, and
/// their pods are deleted only when the record says so.
pub(crate) fn stops_workers(stored: &TaskStatus, new: &TaskStatus) -> bool {
    let is_stored = |n: usize| stored.workers.get(n).is_some_and(|known| known.stopping);
    let mut workers = new.workers.iter().enumerate();
    workers.any(|(n, worker)| worker.stopping && !is_stored(n))
}

/// Reports whether the pod showed more than is stored.
fn says_more(known: &WorkerRecord, new: &WorkerRecord) -> bool {
    let pods = |w: &WorkerRecord| WorkerRecord {
        notified: None,
        past: Vec::new(),
        ..w.clone()
    };
    pods(known) != pods(new)
}

/// Reports whether the leader decided something, or people wait for it.
fn is_urgent(known: &WorkerRecord, new: &WorkerRecord) -> bool {
    let decided = |w: &WorkerRecord| (w.attempt, w.failures, w.not_before, w.stopping, w.cut);
    let failed = |w: &WorkerRecord| w.phase.is_final() && w.phase != WorkerPhase::Succeeded;
    decided(known) != decided(new)
        || failed(known) != failed(new)
        || (known.reason != new.reason && !new.reason.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Condition, Notified, NotifiedState, TaskPhase};

    fn status(change: impl FnOnce(&mut WorkerRecord)) -> TaskStatus {
        let mut worker = WorkerRecord {
            index: 1,
            attempt: 1,
            ..Default::default()
        };
        change(&mut worker);
        TaskStatus {
            workers: vec![worker],
            ..Default::default()
        }
    }

    fn told(stored: &TaskStatus, new: &TaskStatus) -> WriteUrgency {
        of(stored, new, &|_, _| false)
    }

    fn urgent(change: impl FnOnce(&mut WorkerRecord)) -> bool {
        told(&status(|_| {}), &status(change)) == WriteUrgency::Urgent
    }

    #[test]
    fn a_worker_that_is_stopped_waits_for_its_record() {
        let (running, stopped) = (status(|_| {}), status(|w| w.stopping = true));
        assert!(stops_workers(&running, &stopped));
        assert!(
            stops_workers(&TaskStatus::default(), &stopped),
            "the first status"
        );
        assert!(!stops_workers(&stopped, &stopped));
        assert!(!stops_workers(&stopped, &running));
    }

    #[test]
    fn what_the_pod_tells_again_may_wait() {
        let may_wait = |change: fn(&mut WorkerRecord)| {
            told(&status(|_| {}), &status(change)) == WriteUrgency::Relaxed
        };
        assert!(may_wait(|w| w.uid = Some("u".into())));
        assert!(may_wait(|w| w.phase = WorkerPhase::Running));
        assert!(may_wait(|w| w.phase = WorkerPhase::Succeeded));
        assert!(may_wait(|w| w.node = "n".into()));
        assert!(may_wait(|w| w.first_line = Some(1)));
        // Told twice at worst, with the same event id.
        assert!(may_wait(|w| {
            let state = NotifiedState::Created;
            w.notified = Some(Notified { attempt: 1, state });
        }));
    }

    #[test]
    fn what_is_stored_already_is_not_stored_again() {
        let same = status(|w| w.reason = "OOMKilled".into());
        assert_eq!(told(&same, &same), WriteUrgency::Nothing);
        // The counts follow from the records.
        let mut counted = same.clone();
        counted.counts.total = 1;
        assert_eq!(told(&same, &counted), WriteUrgency::Nothing);
    }

    #[test]
    fn what_only_the_leader_knows_is_urgent() {
        assert!(urgent(|w| w.attempt = 2));
        assert!(urgent(|w| w.failures = 1));
        assert!(urgent(|w| w.not_before = Some(9)));
        assert!(urgent(|w| w.stopping = true));
        assert!(urgent(|w| w.cut = Some(1)));
    }

    #[test]
    fn an_end_makes_room() {
        let with = |phase| status(|w| w.phase = phase);
        let (running, done) = (with(WorkerPhase::Running), with(WorkerPhase::Succeeded));
        assert!(makes_room(&running, &done));
        assert!(!makes_room(&running, &running) && !makes_room(&done, &done));
    }

    #[test]
    fn what_people_wait_for_is_urgent() {
        assert!(urgent(|w| w.phase = WorkerPhase::Failed));
        assert!(urgent(|w| w.phase = WorkerPhase::Terminated));
        assert!(urgent(|w| w.reason = "ImagePullBackOff".into()));
        let stored = status(|w| w.reason = "ImagePullBackOff".into());
        let now = status(|_| {});
        assert_eq!(told(&stored, &now), WriteUrgency::Relaxed, "it went away");

        let (before, mut after) = (status(|_| {}), status(|_| {}));
        after.phase = TaskPhase::Running;
        assert_eq!(told(&before, &after), WriteUrgency::Urgent);
        after.phase = before.phase;
        after.conditions = vec![Condition {
            kind: "Created".into(),
            ..Default::default()
        }];
        assert_eq!(told(&before, &after), WriteUrgency::Urgent);
        after.conditions.clear();
        after.finished_at = Some(1);
        assert_eq!(told(&before, &after), WriteUrgency::Urgent);
    }

    #[test]
    fn a_worker_that_is_not_on_the_record_is_urgent() {
        for stored in [TaskStatus::default(), status(|w| w.index = 2)] {
            assert_eq!(told(&stored, &status(|_| {})), WriteUrgency::Urgent);
        }
    }

    /// Nobody can read it again.
    #[test]
    fn what_a_pod_told_that_has_gone_is_urgent() {
        let stored = status(|_| {});
        let urgent = |change: fn(&mut WorkerRecord), gone: (u32, u32)| {
            let has_gone = |index, attempt| (index, attempt) == gone;
            of(&stored, &status(change), &has_gone) == WriteUrgency::Urgent
        };
        for told in [
            |w: &mut WorkerRecord| w.phase = WorkerPhase::Succeeded,
            |w: &mut WorkerRecord| w.uid = Some("u".into()),
        ] {
            assert!(urgent(told, (1, 1)));
            assert!(!urgent(told, (2, 1)) && !urgent(told, (1, 2)));
        }
        let (attempt, state) = (1, NotifiedState::Created);
        let notified = status(|w| w.notified = Some(Notified { attempt, state }));
        let told = of(&stored, &notified, &|_, _| true);
        assert_eq!(told, WriteUrgency::Relaxed);
    }
}
