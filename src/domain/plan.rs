//! `plan(task, observed, limits, now) → status and actions`: level-triggered, so
//! any order of events, a restart or a new leader comes to the same pods.
//!
//! What holds: an attempt gets at most one pod, for its name follows from task,
//! index and attempt; no attempt is made before its predecessor's worker has ended or
//! gone; a pod is deleted only once the *stored* status says that its uid is
//! done with, or that its attempt is and had another pod or none: then a former
//! leader's create took effect too late; a final record never changes but for what
//! was notified and that its logs were cut; a finished task is never revived.
use std::sync::Arc;

use jiff::Timestamp;

use super::{
    conditions,
    failure::{self, Outlook},
    pod::{ByIndex, Pod},
    queue::Attempt,
    retry::{self, Ending, Verdict},
    task::{self, Counts, Notified, Task, TaskPhase, TaskStatus, WorkerPhase, WorkerRecord},
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
    /// Since when this leader reads logs (Unix seconds).
    pub read_since: i64,
    /// What otto-handler took of this worker, newer than the stored record.
    pub notified: &'a dyn Fn(u32) -> Option<Notified>,
    /// The API server refused this worker's pod for good, and why.
    pub refused: &'a dyn Fn(u32) -> Option<String>,
    /// When the first line of this pod's log was written (Unix seconds).
    pub first_line: &'a dyn Fn(&str) -> Option<i64>,
    /// What workers without a pod wait for, for people.
    pub lacks: &'a dyn Fn() -> String,
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
    /// The finished task itself, after TASK_TTL.
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
    /// When to plan again though nothing changed (Unix seconds).
    pub wake_at: Option<i64>,
}

/// What a task's objects ask for at `now` (Unix seconds).
pub fn plan(task: &Task, seen: Observed<'_>, limits: Limits, now: i64) -> Plan {
    let (live, gone) = (ByIndex::new(seen.pods), ByIndex::new(seen.gone));
    let mut p = Planner {
        task,
        seen,
        live: &live,
        gone: &gone,
        limits,
        now,
        actions: Vec::new(),
        creates: Vec::new(),
        wake_at: None,
    };
    let finished = task.status.phase.is_finished();
    let top = view::top(task).max(p.live.top()).max(p.gone.top());
    let mut workers = Vec::new();
    for index in 1..=top {
        let stored = view::record(task, index);
        let mut record = p.worker(&stored, task.spec.wants(index) && !finished);
        if let Some(told) = (seen.notified)(index).filter(|t| t.attempt == record.attempt)
            && record
                .notified
                .is_none_or(|n| n.attempt < told.attempt || n.state < told.state)
        {
            record.notified = Some(told);
        }
        p.deletions(&stored, &mut record);
        workers.push(record);
    }
    let status = p.status(workers);
    if let Some(end) = status
        .finished_at
        .filter(|_| task.status.finished_at.is_some())
    {
        let forget_at = end + limits.task_ttl;
        if forget_at <= now && !task.deleting {
            p.actions.push(Action::Forget);
        } else {
            p.wake(forget_at);
        }
    }
    let has_gone = |index, attempt| p.gone.newest(index, attempt).is_some();
    let change = urgency::change(&task.status, &status, &has_gone);
    Plan {
        status,
        change,
        actions: p.actions,
        creates: p.creates,
        wake_at: p.wake_at,
    }
}

struct Planner<'a> {
    task: &'a Task,
    seen: Observed<'a>,
    live: &'a ByIndex<'a>,
    gone: &'a ByIndex<'a>,
    limits: Limits,
    now: i64,
    actions: Vec<Action>,
    creates: Vec<Attempt>,
    wake_at: Option<i64>,
}

impl Planner<'_> {
    fn wake(&mut self, at: i64) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)).max(self.now + 1));
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
                self.stop(&mut record, live.is_some());
            }
            return record;
        }
        match record.phase {
            // ScaleDown took it, growth wants it again: the attempt is used up.
            WorkerPhase::Terminated if live.is_none() => self.next_attempt(&mut record, 0, false),
            WorkerPhase::Failed if !was_final => self.failed(&mut record),
            _ => {}
        }
        if !record.phase.is_final() {
            match live {
                Some(pod) => self.stuck(&mut record, pod),
                None if record.stopping => self.next_attempt(&mut record, 0, false),
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
        view::in_order(&mut record);
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
        if let Some(at) = record.not_before.filter(|at| *at > self.now) {
            self.wake(at);
            return;
        }
        // By an earlier attempt whose worker has neither ended nor gone.
        let mut earlier = self.live.of(record.index);
        let blocked = earlier.any(|p| p.attempt < record.attempt && !p.worker_has_ended());
        if blocked {
            return;
        }
        self.creates.push(Attempt {
            index: record.index,
            attempt: record.attempt,
        });
    }

    fn stop(&mut self, record: &mut WorkerRecord, live: bool) {
        record.stopping = true;
        if !live {
            record.phase = WorkerPhase::Terminated;
            "ScaledDown".clone_into(&mut record.reason);
            record.finished = Some(self.now);
        }
    }

    fn failed(&mut self, record: &mut WorkerRecord) {
        let ending = Ending {
            reason: &record.reason,
            started: record.started.is_some(),
            failures: record.failures,
            budget: self.task.spec.retry_limit().unwrap_or(retry::BUDGET),
        };
        if let Verdict::Retry { delay, counts } = retry::judge(ending) {
            self.next_attempt(record, delay, counts);
        }
    }

    /// The pod went, and nobody saw it end: never a success.
    fn lost(&mut self, record: &mut WorkerRecord) {
        record.phase = WorkerPhase::Failed;
        "Lost".clone_into(&mut record.reason);
        "the pod went without a final status".clone_into(&mut record.message);
        record.finished = Some(self.now);
        self.failed(record);
    }

    fn next_attempt(&mut self, record: &mut WorkerRecord, delay: i64, counts: bool) {
        *record = WorkerRecord {
            index: record.index,
            attempt: record.attempt + 1,
            failures: record.failures + u32::from(counts),
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
        let limits = &self.limits;
        match failure::outlook(
            pod,
            self.now,
            limits.pending_timeout,
            limits.node_lost_timeout,
        ) {
            Outlook::Fine => {}
            Outlook::FailsAt(at) => self.wake(at),
            Outlook::Failed(reason) => {
                record.phase = WorkerPhase::Failed;
                if record.message.is_empty() {
                    record.message.clone_from(&pod.reason);
                }
                record.reason = reason;
                record.finished = Some(self.now);
            }
        }
    }

    /// Pods whose uid the stored record is done with go, once drained, or once it says
    /// that they were not in time; and so do pods that came into being when their attempt
    /// was over, those that still live at once.
    fn deletions(&mut self, stored: &WorkerRecord, record: &mut WorkerRecord) {
        let live = self.live;
        for pod in live.of(stored.index).filter(|p| !p.deleting) {
            // Stays true: attempts only grow, and a final record keeps its uid.
            let over = pod.attempt < stored.attempt
                || (pod.attempt == stored.attempt && stored.phase.is_final());
            if !over && !stored.stopping {
                continue;
            }
            let current = stored.uid.as_deref() == Some(pod.uid.as_str());
            let stopped = current && stored.stopping && !stored.phase.is_final();
            // A retry waits for the end of the attempt before: what lives came late.
            let stray = over && !current && !pod.worker_has_ended();
            let at_once = stopped || stray;
            let held = over && !at_once && !self.is_drained(pod);
            let end = pod.finished.or_else(|| stored.finished.filter(|_| current));
            let overdue = held && self.is_overdue(end);
            record.cut |= overdue;
            if at_once || (over && !held) || (overdue && stored.cut) {
                self.actions.push(Action::Delete(pod.clone()));
            }
        }
    }

    fn is_drained(&self, pod: &Pod) -> bool {
        !pod.has_logs() || (self.seen.drained)(pod)
    }

    /// The logs of a pod that has ended then were not acknowledged in time. What ended
    /// while nobody led has all of it still.
    fn is_overdue(&mut self, end: Option<i64>) -> bool {
        let begin = end.unwrap_or(self.now).max(self.seen.read_since);
        let cap = begin + self.limits.log_drain_timeout;
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
                WorkerPhase::Running => counts.running += 1,
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
        let finished_at = phase
            .is_finished()
            .then(|| stored.finished_at.unwrap_or(self.now));
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
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
