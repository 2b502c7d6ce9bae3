//! Tasks are planned here: from what the index holds of a task and its pods follows what is
//! to be done.
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{Engine, Removal, tuning};
use crate::{
    domain::{
        deleted_task,
        plan::{self, Action, Limits, Observed, Plan},
        pod::Pod,
        stage::Stage,
        task::Task,
        unread::Unread,
        urgency::{self, WriteUrgency},
    },
    index::{self, TaskDeletion},
};

impl Engine {
    /// Plans the tasks that are due; `act`: their pods may be made and deleted.
    pub(super) async fn plan_due(&mut self, act: bool) {
        let now = Instant::now();
        while let Some(name) = self.due.pop(now) {
            if let Some(unread) = self.shared.index.unread_of(&name) {
                self.leave(&name, &unread);
                continue;
            }
            if self.shared.caught_up.is_cancelled() && self.shared.index.may_have_deletions(&name) {
                self.say_last_words(&name).await;
            }
            let task = self.shared.index.task(&name).filter(|t| !t.deleting);
            // Of a task that went, or was made anew under its name, nothing is remembered.
            let uid = task.as_ref().map(|t| t.uid.clone());
            if self.uids.get(&name) != uid.as_ref() {
                self.dropped(&name);
                if let Some(uid) = uid {
                    self.uids.insert(name.clone(), uid);
                }
            }
            match task {
                Some(task) if self.shared.may_judge(&task) => self.plan(name, task, act).await,
                Some(task) if act => self.adopt(name, task),
                _ => {}
            }
        }
    }

    /// Offers what there is to tell of tasks of this name that end by a deletion.
    async fn say_last_words(&mut self, name: &Arc<str>) {
        for TaskDeletion { task, live, gone } in self.shared.index.deletions(name) {
            let workers = {
                let notified = self.shared.notified();
                let told = notified.get(&*task.uid);
                let told = |index| told?.get(&index).copied();
                deleted_task::final_records(&task, &live, &gone, &told, self.time.now())
            };
            // There is nothing left that could store an end.
            let unstored = BTreeSet::new();
            self.outbox.offer(name, &task, &workers, &unstored).await;
        }
    }

    /// Leaves a task alone of which something cannot be decoded, and tells people of it, once
    /// for each version of the object.
    fn leave(&mut self, name: &Arc<str>, unread: &Unread) {
        self.admission.forget(name);
        let what = (unread.uid.clone(), unread.version);
        if self.left.insert(name.clone(), what.clone()) != Some(what) {
            self.shared.tell_of_unread(unread);
        }
    }

    /// Forgets all of a task that went.
    fn dropped(&mut self, name: &Arc<str>) {
        self.next_plan.remove(name);
        self.statuses.forget(name);
        self.ledger.forget(name);
        self.is_absent(name, 0);
        self.uids.remove(name);
        self.admission.forget(name);
        self.left.remove(name);
        self.shared.refused().remove(name);
    }

    async fn plan(&mut self, name: Arc<str>, task: Arc<Task>, act: bool) {
        // The task and its pods of one moment: what an older task lacks, its pods no
        // longer tell once a newer one has recorded it.
        let Some(seen) = self.shared.index.task_with_pods(&task) else {
            return;
        };
        let planned = Instant::now();
        let now = self.time.now();
        let plan = self.compute(&name, &seen, now);
        let task = seen.task;
        let next = planned + tuning::plan_interval(plan.status.counts.total);
        self.next_plan.insert(name.clone(), next);
        if let Some(at) = plan.wake_at {
            let seconds = u64::try_from(at - now).unwrap_or(0);
            self.due
                .by(name.clone(), planned + Duration::from_secs(seconds));
        }
        self.is_absent(&name, plan.absent);
        let (workers, unstored) = (&plan.status.workers, &plan.unstored_ends);
        if self.outbox.offer(&name, &task, workers, unstored).await {
            self.admission.heard_of_an_end();
        }
        let Plan {
            status,
            urgency,
            actions,
            creates,
            unstored_ends: _,
            absent: _,
            wake_at: _,
        } = plan;
        if act {
            self.admission.ask(&name, &task, creates);
            for action in actions {
                match action {
                    Action::Delete(pod) if pod.all_have_ended() => self.remove_ended(pod),
                    Action::Delete(pod) => self.remove(Removal::Pod(pod)),
                    Action::Forget => self.remove(Removal::Task(task.clone())),
                }
            }
        }
        if urgency == WriteUrgency::Nothing {
            return;
        }
        let (workers, now) = (status.counts.total, Instant::now());
        let is_waited_for =
            self.admission.waits_for_places() && urgency::makes_room(&task.status, &status);
        let write_at = if is_waited_for {
            self.statuses.at_once(&name, now)
        } else {
            self.statuses.due(&name, urgency, workers, now)
        };
        if write_at <= now {
            self.store(name, task, status);
        } else {
            self.due.by(name, write_at);
        }
    }

    /// Counts the pods of a task that hold no place.
    fn is_absent(&mut self, name: &Arc<str>, pods: usize) {
        let before = match pods {
            0 => self.absent.remove(name),
            _ => self.absent.insert(name.clone(), pods),
        };
        if before.unwrap_or(0) != pods {
            let all = self.absent.values().sum();
            self.shared.absent.store(all, Ordering::Relaxed);
        }
    }

    fn compute(&mut self, name: &Arc<str>, seen: &index::TaskWithPods, now: i64) -> Plan {
        let index::TaskWithPods { task, pods, gone } = seen;
        let clocks = &self.shared.clocks;
        let times = self.ledger.observe(task, &[pods, gone], now);
        let since = |pod: &Pod, stage| times.since(pod, stage).unwrap_or(now);
        let (notified, refused) = (self.shared.notified(), self.shared.refused());
        let (notified, refused) = (notified.get(&*task.uid), refused.get(name));
        let limits = &self.shared.limits;
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        let seen = Observed {
            pods,
            gone,
            drained: &|pod| self.shared.is_drained(pod, now - since(pod, Stage::Ended)),
            since: &since,
            waited: &|index| times.waited(index),
            api_now: clocks.api_now(),
            notified: &|index| notified?.get(&index).copied(),
            refused: &|index| {
                let refused = refused?;
                let attempt = crate::domain::view::record(task, index).attempt;
                refused.get(&(index, attempt)).cloned()
            },
            first_line: &|uid| self.shared.drained.first_line(uid),
            wait_reason: &|| self.shared.wait_reason(name),
        };
        let limits = Limits {
            pending_timeout: seconds(limits.pending_timeout),
            node_lost_timeout: seconds(limits.node_lost_timeout),
            log_drain_timeout: seconds(limits.log_drain_timeout),
            task_ttl: seconds(limits.task_ttl),
        };
        plan::plan(task, seen, limits, now)
    }
}
