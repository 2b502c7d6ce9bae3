//! Reconciles a task: `plan(task, observed, limits, now)` returns the status to store and the
//! actions to take. It is level-triggered, so that any order of events, a restart or a new
//! leader comes to the same pods.
//!
//! Invariants:
//! - An attempt gets at most one pod, for the name of the pod follows from task, index and
//!   attempt.
//! - An attempt gets no pod before the worker of the attempt before has ended, or its pod is
//!   gone.
//! - A pod whose worker runs is deleted only once the *stored* status says that its uid is to
//!   be stopped or its attempt is over.
//! - A pod whose worker has ended is deleted only once its attempt is over and its logs are
//!   drained or given up.
//! - A final record changes only in what was notified and in that its logs were cut.
//! - A finished task is never revived.
//! - Deadlines count from when this leader first saw the state that they limit
//!   ([`super::ledger`]).
//! - An end that the leader decides is notified only once it is stored.
mod attempts;
mod deletions;

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;

use super::{
    conditions,
    failure::Timing,
    ledger::Waited,
    pod::{Pod, PodsByIndex},
    queue::Attempt,
    stage::Stage,
    task::{self, Notified, Task, TaskPhase, TaskStatus, WorkerPhase, WorkerRecord},
    transition,
    urgency::{self, WriteUrgency},
    view,
};

/// An `Observed` holds what is known beside the task itself. Workers are given by index, and
/// times are seconds of the leader's clock unless a field says otherwise.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The pods of the task that exist.
    pub pods: &'a [Arc<Pod>],
    /// The last states of pods that were deleted.
    pub gone: &'a [Arc<Pod>],
    /// Reports whether otto-handler has acknowledged the logs of a pod to the last line.
    pub drained: &'a dyn Fn(&Pod) -> bool,
    /// Returns the time at which this leader first saw the pod in a stage.
    pub since: &'a dyn Fn(&Pod, Stage) -> i64,
    /// Returns since when a worker waits for another attempt, or None if it does not.
    pub waited: &'a dyn Fn(u32) -> Option<Waited>,
    /// The API server's time in Unix seconds, whether its clock agrees with the leader's or
    /// not. None if it is not known yet.
    pub api_now: Option<i64>,
    /// Returns the newest transition of a worker that otto-handler has acknowledged, which may
    /// be newer than the stored one.
    pub notified: &'a dyn Fn(u32) -> Option<Notified>,
    /// Returns the reason if the API server refused the worker's pod for good.
    pub refused: &'a dyn Fn(u32) -> Option<String>,
    /// Returns the time of the first line of the log of a pod, by uid, in Unix seconds.
    pub first_line: &'a dyn Fn(&str) -> Option<i64>,
    /// What workers without a pod wait for, for people.
    pub wait_reason: &'a dyn Fn() -> conditions::WaitReason,
}

impl std::fmt::Debug for Observed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observed")
            .field("pods", &self.pods)
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

/// A `Limits` holds the timeouts of the configuration that a plan applies, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The time in which a worker must start (PENDING_TIMEOUT).
    pub pending_timeout: i64,
    /// The time after which a node that does not report is lost (NODE_LOST_TIMEOUT).
    pub node_lost_timeout: i64,
    /// The time for which a pod that has ended waits for otto-handler to acknowledge its logs
    /// (LOG_DRAIN_TIMEOUT).
    pub log_drain_timeout: i64,
    /// The time for which a finished task is kept (TASK_TTL).
    pub task_ttl: i64,
}

/// An `Action` is something to do beside storing the status and creating pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Delete exactly this pod, with its uid as a precondition.
    Delete(Arc<Pod>),
    /// Delete the finished task itself: its time is over, and no pod of it is left.
    Forget,
}

/// A `Plan` is what is to be done about a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The status to store.
    pub status: TaskStatus,
    /// How soon the status must be stored.
    pub urgency: WriteUrgency,
    /// The actions to take.
    pub actions: Vec<Action>,
    /// The attempts that need a pod, which are created as places become free
    /// ([`super::queue`]).
    pub creates: Vec<Attempt>,
    /// The indices of workers whose end the leader decides and has yet to store. Until then
    /// their pods may come to another end, so otto-handler must not be notified.
    pub unstored_ends: BTreeSet<u32>,
    /// The number of deleted pods that still exist because their node does not report, or
    /// because containers of others take their time to end. They hold no place.
    pub absent: usize,
    /// The time at which to plan again even if nothing changes, in seconds of the leader's
    /// clock.
    pub wake_at: Option<i64>,
}

/// Plans what a task needs at `now`, in seconds of the leader's clock.
pub fn plan(task: &Task, seen: Observed<'_>, limits: Limits, now: i64) -> Plan {
    if task.status.phase == TaskPhase::Unknown {
        // A newer version looks after the task.
        return Plan {
            status: task.status.clone(),
            urgency: WriteUrgency::Nothing,
            actions: Vec::new(),
            creates: Vec::new(),
            unstored_ends: BTreeSet::new(),
            absent: 0,
            wake_at: None,
        };
    }
    let (live, gone) = (PodsByIndex::new(seen.pods), PodsByIndex::new(seen.gone));
    let mut p = Planner {
        task,
        seen,
        live: &live,
        gone: &gone,
        limits,
        now,
        actions: Vec::new(),
        creates: Vec::new(),
        absent: 0,
        wake_at: None,
    };
    let finished = task.status.phase.is_finished();
    let top = view::top(task).max(p.live.top()).max(p.gone.top());
    let top = top.min(task::MAX_TASK_WORKERS);
    let mut workers = Vec::new();
    let mut unstored_ends = BTreeSet::new();
    for index in 1..=top {
        let stored = view::record(task, index);
        if stored.phase == WorkerPhase::Unknown {
            // A newer version looks after the worker and its pods.
            workers.push(stored.into_owned());
            continue;
        }
        let mut record = p.worker(&stored, task.spec.wants(index) && !finished);
        if p.is_unstored_end(&stored, &record) {
            unstored_ends.insert(index);
        }
        let pods = transition::TaskPods {
            live: p.live,
            gone: p.gone,
        };
        transition::carry(&mut record, &stored, (seen.notified)(index), pods);
        p.deletions(&stored, &mut record);
        workers.push(record);
    }
    let status = p.status(workers);
    if let Some(end) = status
        .finished_at
        .filter(|_| task.status.finished_at.is_some())
    {
        p.forget(end);
    }
    let has_gone = |index, attempt| p.gone.newest(index, attempt).is_some();
    let mut urgency = urgency::of(&task.status, &status, &has_gone);
    // otto-handler hears of a decided end once it is stored, and a pod that is to stop is
    // deleted then.
    let is_awaited = !unstored_ends.is_empty() || urgency::stops_workers(&task.status, &status);
    if is_awaited && urgency != WriteUrgency::Nothing {
        urgency = WriteUrgency::Awaited;
    }
    Plan {
        status,
        urgency,
        actions: p.actions,
        creates: p.creates,
        unstored_ends,
        absent: p.absent,
        wake_at: p.wake_at,
    }
}

/// A `Planner` is a plan in the making.
struct Planner<'a> {
    task: &'a Task,
    seen: Observed<'a>,
    live: &'a PodsByIndex<'a>,
    gone: &'a PodsByIndex<'a>,
    limits: Limits,
    now: i64,
    actions: Vec<Action>,
    creates: Vec<Attempt>,
    absent: usize,
    wake_at: Option<i64>,
}

/// The longest time after which a task that waits for a deadline is planned again, in seconds.
/// Deadlines may be days away, and clocks are set meanwhile; a plan costs microseconds.
const LOOK_AGAIN: i64 = 3_600;

impl Planner<'_> {
    /// Asks for another plan at `at`, or earlier.
    fn wake(&mut self, at: i64) {
        let at = at.clamp(self.now + 1, self.now + LOOK_AGAIN);
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }

    /// Returns the limits of a pod's stages.
    fn timing<'b>(&self, since: &'b dyn Fn(Stage) -> i64) -> Timing<'b> {
        Timing {
            since,
            now: self.now,
            pending_timeout: self.limits.pending_timeout,
            node_lost_timeout: self.limits.node_lost_timeout,
        }
    }

    /// Reports whether this end is the leader's own decision and not yet stored. An end that a
    /// pod shows can be read again by the next leader.
    fn is_unstored_end(&self, stored: &WorkerRecord, record: &WorkerRecord) -> bool {
        let is_stored = stored.attempt == record.attempt && stored.phase.is_final();
        let of = |pods: &PodsByIndex<'_>| pods.newest(record.index, record.attempt).cloned();
        let pods = of(self.live).into_iter().chain(of(self.gone));
        let ended = |p: Arc<Pod>| p.attempt == record.attempt && p.worker_has_ended();
        record.phase.is_final() && !is_stored && !pods.into_iter().any(ended)
    }

    /// Deletes a finished task once the leader's clock and the API server's both say that its
    /// time is over, because one of them may have been set. The leader that stored the end
    /// took the later of the two clocks, and a task cannot have ended before it was created.
    fn forget(&mut self, end: i64) {
        let forget_at = end
            .max(self.task.created)
            .saturating_add(self.limits.task_ttl);
        let left = self
            .seen
            .api_now
            .map(|api_now| forget_at.saturating_sub(api_now.min(self.now)));
        if left.is_none_or(|left| left > 0) {
            self.wake(self.now.saturating_add(left.unwrap_or(LOOK_AGAIN / 60)));
            return;
        }
        // Its pods would be deleted with it, and the logs that otto-handler has yet to
        // acknowledge.
        let waits = self.seen.pods.iter().any(|p| !p.deleting);
        if !waits && !self.task.deleting {
            self.actions.push(Action::Forget);
        }
    }

    /// Returns the status of the task, given the new records of its workers.
    fn status(&self, mut workers: Vec<WorkerRecord>) -> TaskStatus {
        task::fit(&mut workers);
        let stored = &self.task.status;
        let (counts, phase) = view::progress(self.task, &workers);
        // It is the later of the two clocks, one of which may be behind.
        let latest = self.seen.api_now.map_or(self.now, |api| api.max(self.now));
        let finished_at = phase
            .is_finished()
            .then(|| stored.finished_at.unwrap_or(latest));
        let seen = conditions::Seen {
            phase,
            workers: &workers,
            wait_reason: self.seen.wait_reason,
        };
        let now = Timestamp::from_second(self.now).unwrap_or_default();
        let conditions = conditions::conditions(seen, &stored.conditions, &now.to_string());
        TaskStatus {
            term: stored.term.clone(),
            phase,
            counts,
            conditions,
            workers,
            finished_at,
            kept: stored.kept.clone(),
        }
    }
}

#[cfg(test)]
#[path = "plan_history_tests.rs"]
mod history_tests;
#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "plan_time_tests.rs"]
mod time_tests;
