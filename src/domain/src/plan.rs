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
use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;

use super::{
    conditions,
    failure::{self, Outlook, Timing},
    ledger::Waited,
    pod::{Pod, PodsByIndex},
    queue::Attempt,
    retry::{self, FailedAttempt, RetryDecision},
    stage::Stage,
    task::{self, Counts, Notified, Task, TaskPhase, TaskStatus, WorkerPhase, WorkerRecord},
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
    let urgency = urgency::of(&task.status, &status, &has_gone);
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

/// The message of a worker whose node does not report.
const LOST: &str = "its node has not been heard of";

/// A `NextCause` says why another attempt follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextCause {
    /// ScaleDown ended the attempt before, and growth wants the worker again.
    Grown,
    /// The attempt before failed. `counts` says whether that counts against the budget.
    Retried { counts: bool },
}

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
const LOOK_AGAIN: i64 = 3_600;

impl Planner<'_> {
    /// Asks for another plan at `at`, or earlier.
    fn wake(&mut self, at: i64) {
        let at = at.clamp(self.now + 1, self.now + LOOK_AGAIN);
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }

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

    /// Returns the record of a worker after what was observed, and asks for its pod if it
    /// needs one.
    fn worker(&mut self, stored: &WorkerRecord, wanted: bool) -> WorkerRecord {
        let mut record = stored.clone();
        let live = self.live.newest(record.index, record.attempt);
        let gone = self.gone.newest(record.index, record.attempt);
        for pod in gone.into_iter().chain(live) {
            view::observe(&mut record, pod);
        }
        let live = live.filter(|p| p.attempt == record.attempt);
        let was_final = stored.phase.is_final() && stored.attempt == record.attempt;
        if !wanted {
            if !record.phase.is_final() {
                self.stop(&mut record, live.map(|pod| &**pod));
            }
            return record;
        }
        let is_over = live.is_none_or(|p| p.worker_has_ended());
        match record.phase {
            // ScaleDown ended the worker and growth wants it again, with a new attempt.
            WorkerPhase::Terminated if is_over => {
                self.next_attempt(&mut record, 0, NextCause::Grown)
            }
            WorkerPhase::Failed if !was_final => self.failed(&mut record),
            _ => {}
        }
        if !record.phase.is_final() {
            match live {
                Some(pod) => self.stuck(&mut record, pod),
                None if record.stopping => self.next_attempt(&mut record, 0, NextCause::Grown),
                None if record.uid.is_some() => self.lost(&mut record),
                None => {}
            }
        }
        if !record.phase.is_final() && record.uid.is_none() {
            record.queued = record.queued.or(Some(self.now));
            self.create(&mut record);
        }
        let first_line = |uid: &String| (self.seen.first_line)(uid);
        record.first_line = record
            .first_line
            .or_else(|| record.uid.as_ref().and_then(first_line));
        view::clamp_timestamps(&mut record);
        record
    }

    /// Asks for the pod of a worker, unless something is in its way.
    fn create(&mut self, record: &mut WorkerRecord) {
        if let Some(why) = (self.seen.refused)(record.index) {
            record.phase = WorkerPhase::Failed;
            "Refused".clone_into(&mut record.reason);
            record.message = why;
            record.finished = Some(self.now);
            return;
        }
        if let Some(at) = self.backoff_end(record).filter(|at| *at > self.now) {
            self.wake(at);
            return;
        }
        // A pod of an earlier attempt blocks this one until its worker has ended.
        let mut earlier = self.live.of(record.index);
        let blocks = |p: &&Arc<Pod>| p.attempt < record.attempt && !p.worker_has_ended();
        if let Some(pod) = earlier.find(blocks).cloned() {
            if self.is_silent(&pod) {
                record.phase = WorkerPhase::Failed;
                "NodeLost".clone_into(&mut record.reason);
                LOST.clone_into(&mut record.message);
                record.finished = Some(self.now);
            }
            return;
        }
        self.creates.push(Attempt {
            index: record.index,
            attempt: record.attempt,
        });
    }

    /// Returns the end of a worker's backoff. The leader that set it may have had another
    /// clock, so a new leader waits no longer than the delay itself.
    fn backoff_end(&self, record: &WorkerRecord) -> Option<i64> {
        let at = record.not_before?;
        let waited = (self.seen.waited)(record.index).filter(|w| w.attempt == record.attempt);
        let delay = retry::backoff(record.failures, record.tries);
        Some(waited.map_or(at, |w| at.min(w.seen.saturating_add(delay))))
    }

    /// Ends a worker that is not wanted any more. One whose pod may still run ends when that
    /// pod does.
    fn stop(&mut self, record: &mut WorkerRecord, live: Option<&Pod>) {
        record.stopping = true;
        if let Some(pod) = live {
            if !self.is_silent(pod) {
                return;
            }
            LOST.clone_into(&mut record.message);
        }
        record.phase = WorkerPhase::Terminated;
        "ScaledDown".clone_into(&mut record.reason);
        record.finished = Some(self.now);
    }

    /// Retries a failed worker if that is allowed. Attempts that never start do not count
    /// against the budget; they end with the time in which a worker must start.
    fn failed(&mut self, record: &mut WorkerRecord) {
        let started = record.started.is_some();
        let ending = FailedAttempt {
            reason: &record.reason,
            message: &record.message,
            started,
            failures: record.failures,
            tries: record.tries,
            budget: self
                .task
                .spec
                .retry_limit()
                .unwrap_or(retry::DEFAULT_BUDGET),
        };
        let RetryDecision::Retry { delay, counts } = retry::decide(ending) else {
            return;
        };
        if started {
            return self.next_attempt(record, delay, NextCause::Retried { counts });
        }
        let left = self.waits_since(record) + self.limits.pending_timeout - self.now;
        if left > 0 {
            self.next_attempt(record, delay.min(left), NextCause::Retried { counts });
        }
    }

    /// Returns the time since which a worker whose attempt never started waits for its start.
    fn waits_since(&self, record: &WorkerRecord) -> i64 {
        let waited = (self.seen.waited)(record.index).filter(|_| record.tries > 0);
        let pod = || {
            let newest =
                |pods: &PodsByIndex<'_>| pods.newest(record.index, record.attempt).cloned();
            let pod = newest(self.live).or_else(|| newest(self.gone))?;
            Some((self.seen.since)(&pod, Stage::Waiting))
        };
        waited.map(|w| w.since).or_else(pod).unwrap_or(self.now)
    }

    /// Fails a worker whose pod is gone without a final state: that is never a success.
    fn lost(&mut self, record: &mut WorkerRecord) {
        record.phase = WorkerPhase::Failed;
        "Lost".clone_into(&mut record.reason);
        "the pod went without a final status".clone_into(&mut record.message);
        record.finished = Some(self.now);
        self.failed(record);
    }

    fn next_attempt(&mut self, record: &mut WorkerRecord, delay: i64, next: NextCause) {
        let unstarted = matches!(next, NextCause::Retried { .. }) && record.started.is_none();
        let counts = next == NextCause::Retried { counts: true };
        *record = WorkerRecord {
            index: record.index,
            attempt: record.attempt + 1,
            failures: record.failures + u32::from(counts),
            tries: if unstarted {
                record.tries.saturating_add(1)
            } else {
                0
            },
            notified: record.notified,
            cut: record.cut,
            not_before: (delay > 0).then_some(self.now + delay),
            queued: Some(self.now),
            // They say why there is a new attempt until its pod gives a reason itself.
            reason: std::mem::take(&mut record.reason),
            message: std::mem::take(&mut record.message),
            ..WorkerRecord::default()
        };
    }

    /// Fails a worker whose pod cannot start or does not report: at a deadline, or at once if
    /// waiting cannot help. The pod may still run, so no attempt follows.
    fn stuck(&mut self, record: &mut WorkerRecord, pod: &Pod) {
        let seen = self.seen;
        let since = |stage| (seen.since)(pod, stage);
        match failure::outlook(pod, self.timing(&since)) {
            Outlook::Fine => {}
            Outlook::FailsAt(at) => self.wake(at),
            Outlook::Failed(reason) => {
                record.phase = WorkerPhase::Failed;
                if record.message.is_empty() {
                    let lost = reason == "NodeLost";
                    let message = if lost { LOST } else { pod.reason.as_str() };
                    message.clone_into(&mut record.message);
                }
                record.reason = reason;
                record.finished = Some(self.now);
            }
        }
    }

    /// Decides which pods of a worker are deleted. A pod whose worker runs is deleted at once
    /// if the stored record is done with its attempt or stops it. One whose worker has ended
    /// is deleted once its attempt is over and its logs are drained, or the stored record says
    /// that they were not drained in time.
    fn deletions(&mut self, stored: &WorkerRecord, record: &mut WorkerRecord) {
        let live = self.live;
        for pod in live.of(stored.index) {
            // Once true this stays true: attempts only grow, and a final record keeps its uid.
            let over = pod.attempt < stored.attempt
                || (pod.attempt == stored.attempt && stored.phase.is_final());
            if pod.deleting {
                let is_absent = pod.worker_has_ended() && pod.others_run || self.is_silent(pod);
                self.absent += usize::from(over && is_absent);
                continue;
            }
            let current = stored.uid.as_deref() == Some(pod.uid.as_str());
            let goes = if pod.worker_has_ended() {
                over && (self.is_drained(pod) || self.is_given_up(pod, stored, record))
            } else {
                over || (current && stored.stopping)
            };
            if goes {
                self.actions.push(Action::Delete(pod.clone()));
            }
        }
    }

    /// Reports whether the pod's node has not reported for NODE_LOST_TIMEOUT.
    fn is_silent(&mut self, pod: &Pod) -> bool {
        let seen = self.seen;
        let since = |stage| (seen.since)(pod, stage);
        match failure::node_outlook(pod, self.timing(&since)) {
            Outlook::Fine => false,
            Outlook::FailsAt(at) => {
                self.wake(at);
                false
            }
            Outlook::Failed(_) => true,
        }
    }

    /// Reports whether the logs of a pod that has ended were not drained in time and the
    /// stored record says so. If only the former holds, the new record says so.
    fn is_given_up(&mut self, pod: &Pod, stored: &WorkerRecord, record: &mut WorkerRecord) -> bool {
        let overdue = self.is_overdue(pod);
        if overdue {
            record.cut = record.cut.max(Some(pod.attempt));
        }
        overdue && stored.cut >= Some(pod.attempt)
    }

    fn is_drained(&self, pod: &Pod) -> bool {
        !pod.has_logs() || (self.seen.drained)(pod)
    }

    /// Reports whether the time to drain the logs of a pod that has ended is over.
    fn is_overdue(&mut self, pod: &Pod) -> bool {
        let cap = (self.seen.since)(pod, Stage::Ended) + self.limits.log_drain_timeout;
        if cap > self.now {
            self.wake(cap);
        }
        cap <= self.now
    }

    /// Returns the status of the task, given the new records of its workers.
    fn status(&self, mut workers: Vec<WorkerRecord>) -> TaskStatus {
        task::fit(&mut workers);
        let mut counts = Counts::default();
        let stored = &self.task.status;
        let mut everything_final = true;
        for w in &workers {
            counts.total += 1;
            match w.phase {
                WorkerPhase::Queued | WorkerPhase::Pending => counts.pending += 1,
                WorkerPhase::Running | WorkerPhase::Unknown => counts.running += 1,
                WorkerPhase::Succeeded => counts.succeeded += 1,
                WorkerPhase::Failed | WorkerPhase::Terminated => counts.failed += 1,
            }
            everything_final &= w.phase.is_final();
        }
        let failed = workers.iter().any(|w| w.phase == WorkerPhase::Failed);
        let phase = match () {
            () if stored.phase.is_finished() => stored.phase,
            () if everything_final && self.task.spec.workers == 0 => TaskPhase::Cancelled,
            () if everything_final && failed => TaskPhase::Failed,
            () if everything_final => TaskPhase::Succeeded,
            () if counts.running + counts.succeeded + counts.failed > 0 => TaskPhase::Running,
            () => TaskPhase::Pending,
        };
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
