//! Plans which pods of a worker are deleted.
use super::{Action, Planner};
use crate::{
    failure::{self, Outlook},
    pod::Pod,
    stage::Stage,
    task::WorkerRecord,
};

impl Planner<'_> {
    /// Decides which pods of a worker are deleted. A pod whose worker runs is deleted at once
    /// if the stored record is done with its attempt or stops it. One whose worker has ended
    /// is deleted once its attempt is over and its logs are drained, or the stored record says
    /// that they were not drained in time.
    pub(super) fn deletions(&mut self, stored: &WorkerRecord, record: &mut WorkerRecord) {
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
    pub(super) fn is_silent(&mut self, pod: &Pod) -> bool {
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
}
