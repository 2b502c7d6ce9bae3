//! Plans the record of one worker: whether its attempt goes on, ends, is retried, or needs a
//! pod.
use std::sync::Arc;

use super::Planner;
use crate::{
    failure::{self, Outlook},
    pod::{Pod, PodsByIndex},
    queue::Attempt,
    retry::{self, FailedAttempt, RetryDecision},
    stage::Stage,
    task::{WorkerPhase, WorkerRecord},
    template, view,
};

/// The message of a worker whose node does not report.
pub(super) const LOST: &str = "its node has not been heard of";

/// A `NextCause` says why another attempt follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextCause {
    /// ScaleDown ended the attempt before, and growth wants the worker again.
    Grown,
    /// The attempt before failed. `counts` says whether that counts against the budget.
    Retried { counts: bool },
}

impl Planner<'_> {
    /// Returns the record of a worker after what was observed, and asks for its pod if it
    /// needs one.
    pub(super) fn worker(&mut self, stored: &WorkerRecord, wanted: bool) -> WorkerRecord {
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
            budget: template::retry_limit(&self.task.spec.build_config)
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
}
