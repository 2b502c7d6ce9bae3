//! The status writer says when a task's status is written, and writes it.
//!
//! A status is the whole object for the API server and every watch, so its changes are
//! coalesced: a status is written some time after the *first* change that is not stored,
//! with all that came meanwhile. The time is [`STATUS_URGENT`] for what only the leader
//! knows, failures, and beginnings and ends of tasks, [`STATUS_RELAXED`] for what the pods
//! tell themselves ([`crate::domain::urgency`]), and [`STATUS_PER_WORKER`] for each worker
//! on top. Only the last of them counts where others wait for the write: otto-handler, to hear
//! of an end that the leader decided, or workers that ScaleDown ends. It is written at once where others wait for the places of workers that
//! have ended, and at a drain.
//!
//! Invariants: of a task one write is in flight (the loop's keys); what was not stored, for
//! the write failed, is tried again with backoff; each write carries the resourceVersion
//! that it was decided on, so a late one of a former leader fails.
use std::{collections::HashMap, sync::Arc, time::Duration};

use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::{
    outcome::WriteResult,
    shared::Shared,
    tasks,
    tuning::{STATUS_PER_WORKER, STATUS_RELAXED, STATUS_URGENT, WRITE_BACKOFF},
};
use crate::{
    cluster::{crd::WorkerTask, events::Note},
    domain::{
        events::{self, TaskEvent},
        task::{Task, TaskPhase, TaskStatus},
        urgency::WriteUrgency,
    },
};

/// The `StatusSchedule` knows the tasks whose stored status lacks something.
#[derive(Debug, Default)]
pub(super) struct StatusSchedule {
    by_task: HashMap<Arc<str>, PendingStatus>,
    is_draining: bool,
}

#[derive(Debug, Default)]
struct PendingStatus {
    /// The first time that any of the changes asks for.
    write_at: Option<Instant>,
    /// So many writes failed in a row, and the next is tried then.
    failures: u32,
    retry_at: Option<Instant>,
}

impl StatusSchedule {
    /// Returns when a status of so many workers, with changes of that urgency, is to be
    /// written.
    pub(super) fn due(
        &mut self,
        task: &Arc<str>,
        urgency: WriteUrgency,
        workers: u32,
        now: Instant,
    ) -> Instant {
        if self.is_draining {
            return now;
        }
        let pending = self.by_task.entry(task.clone()).or_default();
        let asked = now
            + match urgency {
                WriteUrgency::Awaited => Duration::ZERO,
                WriteUrgency::Urgent => STATUS_URGENT,
                WriteUrgency::Relaxed | WriteUrgency::Nothing => STATUS_RELAXED,
            };
        let write_at = pending.write_at.map_or(asked, |known| known.min(asked));
        pending.write_at = Some(write_at);
        let due = write_at + STATUS_PER_WORKER * workers;
        pending.retry_at.unwrap_or(due)
    }

    /// Returns when a write that others wait for may begin: now, unless the one before failed.
    pub(super) fn at_once(&self, task: &str, now: Instant) -> Instant {
        let pending = self.by_task.get(task).filter(|_| !self.is_draining);
        pending.and_then(|p| p.retry_at).unwrap_or(now)
    }

    /// Takes in that the write has ended. What changed since it began is a first change again.
    pub(super) fn ended(&mut self, task: &Arc<str>, is_done: bool, now: Instant) {
        if is_done {
            self.by_task.remove(task);
            return;
        }
        let pending = self.by_task.entry(task.clone()).or_default();
        pending.failures = pending.failures.saturating_add(1);
        pending.retry_at = Some(now + WRITE_BACKOFF.after(pending.failures));
    }

    pub(super) fn forget(&mut self, task: &str) {
        self.by_task.remove(task);
    }

    /// Lets nothing wait from now on.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
    }
}

/// Stores a status that was planned on `task`.
pub(super) async fn write(shared: &Shared, task: &Task, planned: TaskStatus) -> WriteResult {
    let patch = json!({
        "metadata": { "uid": task.uid, "resourceVersion": task.resource_version.to_string() },
        "status": planned,
    });
    let answer = shared
        .client
        .api::<WorkerTask>()
        .patch_status(&task.name, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    match answer {
        Ok(object) => {
            tasks::wrote(shared, object);
            for event in events::events(&task.status, &planned) {
                shared.tell(task, note(event));
            }
            WriteResult::Done
        }
        Err(kube::Error::Api(status)) if status.code == 404 => WriteResult::Done,
        Err(error) => WriteResult::of_write(&error),
    }
}

fn note(event: TaskEvent) -> Note {
    let (warning, reason, action, text) = match event {
        TaskEvent::Retried(text) => (true, "WorkerRetried", "Retry", text),
        TaskEvent::Failed(text) => (true, "WorkerFailed", "Run", text),
        TaskEvent::Finished(TaskPhase::Succeeded, text) => (false, "TaskSucceeded", "Run", text),
        TaskEvent::Finished(TaskPhase::Cancelled, text) => {
            (false, "TaskCancelled", "ScaleDown", text)
        }
        TaskEvent::Finished(_, text) => (true, "TaskFailed", "Run", text),
    };
    Note {
        warning,
        reason,
        action: action.into(),
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        WriteUrgency::{Awaited, Relaxed, Urgent},
        *,
    };

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn schedule() -> (StatusSchedule, Arc<str>, Instant) {
        (StatusSchedule::default(), "t".into(), Instant::now())
    }

    #[test]
    fn a_status_is_written_some_time_after_its_first_change() {
        let (mut schedule, task, start) = schedule();
        let relaxed = schedule.due(&task, Relaxed, 100, start);
        assert_eq!(relaxed - start, STATUS_RELAXED + STATUS_PER_WORKER * 100);
        // However often it changes.
        assert_eq!(schedule.due(&task, Relaxed, 100, start + S(9)), relaxed);
        let urgent = schedule.due(&task, Urgent, 100, start + S(10));
        let later = STATUS_URGENT + STATUS_PER_WORKER * 100;
        assert_eq!(urgent, start + S(10) + later);
        // What is urgent stays so, though the next change is not.
        assert_eq!(schedule.due(&task, Relaxed, 100, start + S(11)), urgent);
        schedule.ended(&task, true, start + S(12));
        let next = schedule.due(&task, Urgent, 0, start + S(12));
        assert_eq!(next, start + S(12) + STATUS_URGENT);
    }

    #[test]
    fn what_others_wait_for_is_written_without_delay() {
        let (mut schedule, task, start) = schedule();
        let first = schedule.due(&task, Awaited, 100, start);
        // However often it is planned until then.
        let due = schedule.due(&task, Awaited, 100, start + S(1));
        assert_eq!((first, due), (due, start + STATUS_PER_WORKER * 100));
        // The write that fails waits all the same.
        schedule.ended(&task, false, start + S(2));
        let next = schedule.due(&task, Urgent, 100, start + S(2));
        assert!(next > start + S(2));
    }

    #[test]
    fn what_is_urgent_never_makes_a_write_later() {
        let (mut schedule, task, start) = schedule();
        let relaxed = schedule.due(&task, Relaxed, 0, start);
        let almost = relaxed - S(1) / 2;
        assert_eq!(schedule.due(&task, Urgent, 0, almost), relaxed);
    }

    #[test]
    fn a_write_that_fails_is_tried_again_with_backoff() {
        let (mut schedule, task, start) = schedule();
        schedule.due(&task, Relaxed, 0, start);
        for (n, wait) in [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]
            .into_iter()
            .enumerate()
        {
            let now = start + S(60 * (n as u64 + 1));
            schedule.ended(&task, false, now);
            let next = now + Duration::from_millis(wait);
            assert_eq!(schedule.due(&task, Urgent, 0, now), next);
            assert_eq!(schedule.at_once("t", now), next);
        }
        schedule.ended(&task, true, start);
        assert_eq!(schedule.at_once("t", start), start);
    }

    #[test]
    fn another_task_of_that_name_waits_for_nothing() {
        let (mut schedule, task, start) = schedule();
        schedule.due(&task, Relaxed, 0, start);
        schedule.ended(&task, false, start);
        schedule.forget("t");
        let due = schedule.due(&task, Urgent, 0, start + S(30));
        assert_eq!(due, start + S(30) + STATUS_URGENT);
    }

    #[test]
    fn at_a_drain_nothing_waits() {
        let (mut schedule, task, start) = schedule();
        schedule.ended(&task, false, start);
        schedule.drain();
        assert_eq!(schedule.at_once("t", start), start);
        assert_eq!(schedule.due(&task, Relaxed, 0, start), start);
    }
}
