//! Derives a task's conditions, which `kubectl get workertasks` shows.
//!
//! The types follow the Kubernetes API conventions: `Created` (each wanted worker has, or had,
//! its pod), `Finished`, and `LogsDelivered`, which is present only if it is False.
//!
//! Invariants: the time of a condition changes only with its status; conditions that a newer
//! version added stay as they are.
use std::collections::BTreeMap;

use super::task::{Condition, TaskPhase, WorkerPhase, WorkerRecord};

pub(super) const CREATED: &str = "Created";
pub(super) const FINISHED: &str = "Finished";
pub(super) const DELIVERED: &str = "LogsDelivered";
/// The greatest number of workers that a message names. A person reads no more, and `ottoctl
/// status` lists all.
const NAMED: usize = 10;

/// A `WaitReason` says what workers without a pod wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitReason {
    /// The reason as one word in CamelCase.
    pub reason: &'static str,
    /// The rest of a sentence that begins with the number of workers.
    pub text: String,
}

/// The reason of a wait for the API server, or for room, that passes by itself.
pub const QUEUED: &str = "Queued";

impl WaitReason {
    /// Creates a reason from its parts.
    pub fn new(reason: &'static str, text: String) -> Self {
        Self { reason, text }
    }
}

impl Default for WaitReason {
    fn default() -> Self {
        Self::new(QUEUED, "wait for the API server".to_owned())
    }
}

/// A `Seen` holds what the conditions follow from.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// The phase of the task.
    pub phase: TaskPhase,
    /// The records of its workers.
    pub workers: &'a [WorkerRecord],
    /// Returns what workers without a pod wait for.
    pub wait_reason: &'a dyn Fn() -> WaitReason,
}

impl std::fmt::Debug for Seen<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen")
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// Returns the conditions at `now` (RFC 3339), given those that were stored `before`.
pub fn conditions(seen: Seen<'_>, before: &[Condition], now: &str) -> Vec<Condition> {
    let Seen {
        phase,
        workers,
        wait_reason,
    } = seen;
    let queued = workers
        .iter()
        .filter(|w| w.uid.is_none() && !w.phase.is_final() && w.phase != WorkerPhase::Unknown)
        .count();
    let created = if queued == 0 {
        (true, "AllCreated", String::new())
    } else {
        let WaitReason { reason, text } = wait_reason();
        let message = format!("{queued} of {} workers {text}", workers.len());
        (false, reason, message)
    };
    let reason = match phase {
        TaskPhase::Pending | TaskPhase::Running | TaskPhase::Unknown => "Working",
        TaskPhase::Succeeded => "Succeeded",
        TaskPhase::Failed => "Failed",
        TaskPhase::Cancelled => "Cancelled",
    };
    let finished = (phase.is_finished(), reason, tally(workers));
    let delivered = cut(workers).map(|message| (false, "LogDrainTimeout", message));
    let ours = [
        (CREATED, Some(created)),
        (FINISHED, Some(finished)),
        (DELIVERED, delivered),
    ]
    .into_iter()
    .filter_map(|(kind, told)| Some((kind, told?)))
    .map(|(kind, (is, reason, message))| {
        let status = if is { "True" } else { "False" };
        let known = before.iter().find(|c| c.kind == kind);
        let since = known
            .filter(|c| c.status == status)
            .map_or(now, |c| &c.last_transition_time);
        Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since.to_owned(),
            rest: known.map(|c| c.rest.clone()).unwrap_or_default(),
        }
    });
    // The conditions of a newer version stay as they are.
    let is_ours = |c: &&Condition| [CREATED, FINISHED, DELIVERED].contains(&c.kind.as_str());
    let others = before.iter().filter(|c| !is_ours(c)).cloned();
    ours.chain(others).collect()
}

/// Returns what the workers of a task without a pod wait for, as its conditions say; None if none
/// waits.
pub fn wait_message(conditions: &[Condition]) -> Option<&str> {
    let created = conditions.iter().find(|c| c.kind == CREATED)?;
    (created.status == "False").then_some(created.message.as_str())
}

/// Returns a message with the first workers whose pods were deleted before otto-handler
/// acknowledged all of their logs, or None if there are none.
fn cut(workers: &[WorkerRecord]) -> Option<String> {
    let all: Vec<String> = workers
        .iter()
        .filter(|w| w.cut.is_some())
        .map(|w| w.index.to_string())
        .collect();
    let more = if all.len() > NAMED { ", …" } else { "" };
    (!all.is_empty()).then(|| {
        format!(
            "otto-handler did not take the last lines of {} worker(s) in time: {}{more}",
            all.len(),
            all[..all.len().min(NAMED)].join(", ")
        )
    })
}

/// Returns how many workers are in each phase, as in `3 succeeded, 2 failed (OOMKilled)`.
pub(super) fn tally(workers: &[WorkerRecord]) -> String {
    let mut counts: BTreeMap<u8, (&str, usize)> = BTreeMap::new();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for w in workers {
        let (order, word) = match w.phase {
            WorkerPhase::Succeeded => (0, "succeeded"),
            // A newer version looks after a worker of an unknown phase.
            WorkerPhase::Running | WorkerPhase::Unknown => (1, "running"),
            WorkerPhase::Pending => (2, "pending"),
            WorkerPhase::Queued => (3, "queued"),
            WorkerPhase::Terminated => (4, "terminated"),
            WorkerPhase::Failed => {
                *reasons.entry(&w.reason).or_default() += 1;
                (5, "failed")
            }
        };
        counts.entry(order).or_insert((word, 0)).1 += 1;
    }
    let mut told: Vec<String> = counts
        .values()
        .map(|(word, n)| format!("{n} {word}"))
        .collect();
    let most = reasons
        .into_iter()
        .filter(|(r, _)| !r.is_empty())
        .max_by_key(|(_, n)| *n);
    if let (Some(failed), Some((reason, n))) = (told.last_mut(), most) {
        let all = counts.get(&5).is_some_and(|(_, failed)| *failed == n);
        failed.push_str(&format!(
            " ({}{reason})",
            if all { "" } else { "most of them " }
        ));
    }
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::urgency::{WriteUrgency, of_conditions as change};

    fn worker(phase: WorkerPhase, reason: &str) -> WorkerRecord {
        WorkerRecord {
            phase,
            reason: reason.into(),
            uid: (phase != WorkerPhase::Queued).then(|| "u".into()),
            ..WorkerRecord::default()
        }
    }

    fn of(
        phase: TaskPhase,
        workers: &[WorkerRecord],
        before: &[Condition],
        now: &str,
    ) -> Vec<Condition> {
        let wait_reason = &|| {
            let text = "wait for room (MAX_WORKERS is 1)".to_owned();
            WaitReason::new("Queued", text)
        };
        conditions(
            Seen {
                phase,
                workers,
                wait_reason,
            },
            before,
            now,
        )
    }

    #[test]
    fn a_task_tells_its_story() {
        let workers = [
            worker(WorkerPhase::Succeeded, ""),
            worker(WorkerPhase::Running, ""),
            worker(WorkerPhase::Queued, ""),
            worker(WorkerPhase::Failed, "OOMKilled"),
        ];
        let told = of(TaskPhase::Running, &workers, &[], "t1");
        let (created, finished) = (&told[0], &told[1]);
        assert_eq!(
            (&*created.status, &*created.message),
            ("False", "1 of 4 workers wait for room (MAX_WORKERS is 1)")
        );
        assert_eq!(
            (&*finished.status, &*finished.message),
            (
                "False",
                "1 succeeded, 1 running, 1 queued, 1 failed (OOMKilled)"
            )
        );
    }

    #[test]
    fn a_conditions_time_is_that_of_its_status() {
        let queued = [worker(WorkerPhase::Queued, "")];
        let first = of(TaskPhase::Pending, &queued, &[], "t1");
        let later = of(TaskPhase::Running, &queued, &first, "t2");
        assert_eq!(later[0].last_transition_time, "t1");
        let running = [worker(WorkerPhase::Running, "")];
        let then = of(TaskPhase::Running, &running, &later, "t3");
        assert_eq!(
            (
                &*then[0].last_transition_time,
                &*then[1].last_transition_time
            ),
            ("t3", "t1")
        );
        assert_eq!(change(&first, &later), WriteUrgency::Nothing);
        // All have their pods; and then one more is wanted.
        assert_eq!(change(&later, &then), WriteUrgency::Relaxed);
        assert_eq!(change(&then, &later), WriteUrgency::Urgent);
        let done = of(TaskPhase::Succeeded, &running, &then, "t4");
        assert_eq!(change(&then, &done), WriteUrgency::Urgent);
        assert_eq!(change(&[], &then), WriteUrgency::Urgent);
    }

    #[test]
    fn what_workers_wait_for_now_is_told_though_they_waited_before() {
        let queued = [worker(WorkerPhase::Queued, "")];
        let waits_for = |reason, text: &str| {
            let wait_reason = &|| WaitReason::new(reason, text.to_owned());
            let seen = Seen {
                phase: TaskPhase::Pending,
                workers: &queued,
                wait_reason,
            };
            conditions(seen, &[], "t")
        };
        let paused = waits_for("Paused", "wait for the end of the pause (x)");
        let room = waits_for("Queued", "wait for room");
        assert_eq!(change(&paused, &room), WriteUrgency::Relaxed);
        let places = waits_for("Queued", "wait for the API server");
        assert_eq!(change(&room, &places), WriteUrgency::Nothing);
    }

    #[test]
    fn several_reasons_are_told_by_the_most_frequent() {
        let failed = |reason| worker(WorkerPhase::Failed, reason);
        let told = tally(&[failed("Error"), failed("OOMKilled"), failed("Error")]);
        assert_eq!(told, "3 failed (most of them Error)");
    }
}
