//! `plan(task, observed, limits, now) → status and actions`: level-triggered, so
//! any order of events, a restart or a new leader comes to the same pods.
//!
//! What holds: an attempt gets at most one pod, for its name follows from task,
//! index and attempt; no attempt is made before its predecessor's worker has ended or
//! gone; a pod that lives is deleted only once the *stored* status says that its uid is
//! to be stopped or its attempt is over, one that has ended only once its attempt is over
//! and its logs are drained or were given up; a final record never changes but for what
//! was notified and that its logs were cut; a finished task is never revived. What the
//! leader decides by time counts from when it first saw what it judges ([`super::ledger`]);
//! an end that it decides is told only once it is stored.
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
    urgency::{self, Change},
    view,
};

/// What is known beside the task itself.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    pub pods: &'a [Arc<Pod>],
    /// Last states of pods that went.
    pub gone: &'a [Arc<Pod>],
    /// The logs of this pod are acknowledged to the last line.
    pub drained: &'a dyn Fn(&Pod) -> bool,
    /// When this leader first saw the pod in that stage.
    pub since: &'a dyn Fn(&Pod, Stage) -> i64,
    /// What this leader knows of a worker that waits for another try.
    pub waited: &'a dyn Fn(u32) -> Option<Waited>,
    /// The API server's time, whether its clock agrees with the leader's or not; None: not
    /// known yet.
    pub api_now: Option<i64>,
    /// What otto-handler took of this worker, newer than the stored record.
    pub notified: &'a dyn Fn(u32) -> Option<Notified>,
    /// The API server refused this worker's pod for good, and why.
    pub refused: &'a dyn Fn(u32) -> Option<String>,
    /// When the first line of this pod's log was written (Unix seconds).
    pub first_line: &'a dyn Fn(&str) -> Option<i64>,
    /// What workers without a pod wait for, for people.
    pub lacks: &'a dyn Fn() -> conditions::Lack,
}

impl std::fmt::Debug for Observed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observed")
            .field("pods", &self.pods)
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

/// Durations in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub pending_timeout: i64,
    pub node_lost_timeout: i64,
    pub log_drain_timeout: i64,
    pub task_ttl: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Exactly this pod.
    Delete(Arc<Pod>),
    /// The finished task itself: after TASK_TTL, and when no logs wait.
    Forget,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub status: TaskStatus,
    /// What it says beyond the stored one.
    pub change: Change,
    pub actions: Vec<Action>,
    /// Pods to be created, as places become free ([`super::queue`]).
    pub creates: Vec<Attempt>,
    /// Workers whose end the leader decides and has yet to store: until then their pods may
    /// tell another end, so nobody is told.
    pub unstored_ends: BTreeSet<u32>,
    /// Pods that are done with and still there: on nodes that do not answer, or because
    /// containers of others take their time to end. They hold no place.
    pub absent: usize,
    /// When to plan again though nothing changed (seconds of the leader's clock).
    pub wake_at: Option<i64>,
}

/// What a task's objects ask for at `now` (seconds of the leader's clock).
pub fn plan(task: &Task, seen: Observed<'_>, limits: Limits, now: i64) -> Plan {
    if task.status.phase == TaskPhase::Unknown {
        // A newer version looks after it.
        return Plan {
            status: task.status.clone(),
            change: Change::Nothing,
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
            // A newer version looks after it and its pods.
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
    let change = urgency::change(&task.status, &status, &has_gone);
    Plan {
        status,
        change,
        actions: p.actions,
        creates: p.creates,
        unstored_ends,
        absent: p.absent,
        wake_at: p.wake_at,
    }
}

/// Told of a pod whose node does not answer.
const LOST: &str = "its node has not been heard of";

/// Why another attempt follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// ScaleDown took the one before, and growth wants the worker again.
    Grown,
    /// It failed; `counts` against the budget.
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

/// To look again at what no change tells of, however far away it seems to be.
const LOOK_AGAIN: i64 = 3_600;

impl Planner<'_> {
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

    /// Whether this end is the leader's own decision, and not yet stored. What a pod told
    /// can be read again by whoever leads next.
    fn is_unstored_end(&self, stored: &WorkerRecord, record: &WorkerRecord) -> bool {
        let is_stored = stored.attempt == record.attempt && stored.phase.is_final();
        let of = |pods: &PodsByIndex<'_>| pods.newest(record.index, record.attempt).cloned();
        let pods = of(self.live).into_iter().chain(of(self.gone));
        let ended = |p: Arc<Pod>| p.attempt == record.attempt && p.worker_has_ended();
        record.phase.is_final() && !is_stored && !pods.into_iter().any(ended)
    }

    /// A finished task goes when the leader's clock and the API server's both say that its
    /// time is over: one of them may have been set. Whoever stored its end took the later
    /// of the two, and it cannot have ended before it was made.
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
        // Its pods would go with it, and the logs that otto-handler has yet to take.
        let waits = self.seen.pods.iter().any(|p| !p.deleting);
        if !waits && !self.task.deleting {
            self.actions.push(Action::Forget);
        }
    }

    /// The record after what was seen, and the create it asks for.
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
            // ScaleDown took it, growth wants it again: the attempt is used up.
            WorkerPhase::Terminated if is_over => self.next_attempt(&mut record, 0, Next::Grown),
            WorkerPhase::Failed if !was_final => self.failed(&mut record),
            _ => {}
        }
        if !record.phase.is_final() {
            match live {
                Some(pod) => self.stuck(&mut record, pod),
                None if record.stopping => self.next_attempt(&mut record, 0, Next::Grown),
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

    fn create(&mut self, record: &mut WorkerRecord) {
        if let Some(why) = (self.seen.refused)(record.index) {
            record.phase = WorkerPhase::Failed;
            "Refused".clone_into(&mut record.reason);
            record.message = why;
            record.finished = Some(self.now);
            return;
        }
        if let Some(at) = self.backoff(record).filter(|at| *at > self.now) {
            self.wake(at);
            return;
        }
        // By an earlier attempt whose worker has neither ended nor gone.
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

    /// Until when the worker waits. The leader that set the time may have had another
    /// clock: whoever took over waits no longer than the delay itself.
    fn backoff(&self, record: &WorkerRecord) -> Option<i64> {
        let at = record.not_before?;
        let waited = (self.seen.waited)(record.index).filter(|w| w.attempt == record.attempt);
        let delay = retry::backoff(record.failures, record.tries);
        Some(waited.map_or(at, |w| at.min(w.seen.saturating_add(delay))))
    }

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

    /// Tries again what may be tried again. Attempts that never start are free of the
    /// budget, and come to an end with the time that a worker has to start.
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
            return self.next_attempt(record, delay, Next::Retried { counts });
        }
        let left = self.waits_since(record) + self.limits.pending_timeout - self.now;
        if left > 0 {
            self.next_attempt(record, delay.min(left), Next::Retried { counts });
        }
    }

    /// Since when a worker whose attempt never started waits for its start.
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

    /// The pod went, and nobody saw it end: never a success.
    fn lost(&mut self, record: &mut WorkerRecord) {
        record.phase = WorkerPhase::Failed;
        "Lost".clone_into(&mut record.reason);
        "the pod went without a final status".clone_into(&mut record.message);
        record.finished = Some(self.now);
        self.failed(record);
    }

    fn next_attempt(&mut self, record: &mut WorkerRecord, delay: i64, next: Next) {
        let unstarted = matches!(next, Next::Retried { .. }) && record.started.is_none();
        let counts = next == Next::Retried { counts: true };
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
            // Why, until the new pod says something itself.
            reason: std::mem::take(&mut record.reason),
            message: std::mem::take(&mut record.message),
            ..WorkerRecord::default()
        };
    }

    /// A pod that cannot start or cannot be heard of is failed in the end, or at
    /// once where waiting cannot help. It may still run: no attempt follows.
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

    /// Pods that live go at once where the stored record is done with their attempt or
    /// stops them. Those that have ended go by the rules for logs alone: once their attempt
    /// is over, and their logs are drained or the stored record says that they were not in
    /// time.
    fn deletions(&mut self, stored: &WorkerRecord, record: &mut WorkerRecord) {
        let live = self.live;
        for pod in live.of(stored.index) {
            // Stays true: attempts only grow, and a final record keeps its uid.
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

    /// Its node has not answered for NODE_LOST_TIMEOUT.
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

    /// The logs of a pod that has ended were not taken in time, and the stored record says
    /// so; else the new record does once they are not.
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

    /// The logs of a pod that has ended were not acknowledged in time.
    fn is_overdue(&mut self, pod: &Pod) -> bool {
        let cap = (self.seen.since)(pod, Stage::Ended) + self.limits.log_drain_timeout;
        if cap > self.now {
            self.wake(cap);
        }
        cap <= self.now
    }

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
        // The later of the two clocks, one of which may be behind.
        let latest = self.seen.api_now.map_or(self.now, |api| api.max(self.now));
        let finished_at = phase
            .is_finished()
            .then(|| stored.finished_at.unwrap_or(latest));
        let seen = conditions::Seen {
            phase,
            workers: &workers,
            lacks: self.seen.lacks,
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
