//! When the workers that a ScaleUp asked for have their pods, and what it is answered.
//!
//! Invariants: an answer names pods that live, or have ended by themselves; none that
//! ScaleDown took or that somebody deletes, for another attempt follows it.
use std::{collections::HashSet, sync::Arc};

use tokio::time::{Instant, sleep_until, timeout_at};

use super::{manager::Manager, scale::outcome_of, tuning};
use crate::domain::{
    request::{Outcome, OutcomeKind},
    task::{Task, WorkerPhase},
    view::WorkerView,
};

/// The wanted workers of a task at one moment.
struct Wanted {
    /// They have, or had, their pods; or can have none.
    made: Vec<WorkerView>,
    /// Their pods are yet to come.
    missing: Vec<WorkerView>,
    /// The task is being deleted, or gone.
    is_deleted: bool,
}

impl Manager {
    /// Waits until each wanted worker has its pod, or can have none, and tells how far it
    /// came by `deadline`. `changed`: the request caused it.
    pub(super) async fn created(&self, task: &Task, changed: bool, deadline: Instant) -> Outcome {
        let mut changes = self.shared.index.follow(&task.name);
        // A look costs so much the more, the more workers there are.
        let between = tuning::plan_interval(task.spec.workers);
        loop {
            let next_look = Instant::now() + between;
            changes.mark_unchanged();
            let wanted = self.wanted(task);
            if wanted.missing.is_empty() || wanted.is_deleted {
                return self.outcome(task, &wanted, changed);
            }
            // Its other end is kept for as long as somebody follows; time ends the wait.
            let change = timeout_at(deadline, async {
                let _ = changes.changed().await;
                sleep_until(next_look).await;
            });
            if change.await.is_err() {
                return self.outcome(task, &self.wanted(task), changed);
            }
        }
    }

    fn wanted(&self, task: &Task) -> Wanted {
        let index = &self.shared.index;
        let known = index.task(&task.name).filter(|t| t.uid == task.uid);
        let is_deleted = known.as_ref().is_none_or(|t| t.deleting);
        // As it is by now: a ScaleDown may have come meanwhile.
        let current = known.unwrap_or_else(|| Arc::new(task.clone()));
        let (pods, _) = index.pods_of(&task.name);
        let alive = pods.iter().filter(|p| !p.deleting);
        let alive: HashSet<&str> = alive.map(|p| p.uid.as_str()).collect();
        let has_pod = |w: &WorkerView| match w.record.phase {
            WorkerPhase::Succeeded | WorkerPhase::Failed => true,
            // Wanted again: its next attempt follows.
            WorkerPhase::Terminated => false,
            // A newer version looks after it.
            WorkerPhase::Unknown => true,
            WorkerPhase::Queued | WorkerPhase::Pending | WorkerPhase::Running => {
                let uid = w.record.uid.as_deref();
                !w.record.stopping && uid.is_some_and(|uid| alive.contains(uid))
            }
        };
        let workers = index.workers_of(&current).into_iter();
        let wanted = workers.filter(|w| current.spec.wants(w.record.index));
        let (made, missing) = wanted.partition(has_pod);
        Wanted {
            made,
            missing,
            is_deleted,
        }
    }

    fn why_missing(&self, task: &Task, wanted: &Wanted) -> String {
        let refused = |w: &&WorkerView| w.record.uid.is_none() && w.record.phase.is_final();
        if let Some(refused) = wanted.made.iter().find(refused) {
            return format!("were refused: {}", refused.record.message);
        }
        let missing = &wanted.missing;
        if missing.iter().all(|w| w.record.uid.is_some()) {
            "wait for the end of the pods before them".to_owned()
        } else {
            self.shared.wait_reason(&task.name).text
        }
    }

    fn outcome(&self, task: &Task, wanted: &Wanted, changed: bool) -> Outcome {
        let all = wanted.made.len() + wanted.missing.len();
        let with_pods = wanted.made.iter().filter(|w| w.record.uid.is_some());
        let names: Vec<String> = with_pods.map(|w| w.pod_name.clone()).collect();
        let created = names.len();
        if wanted.is_deleted {
            let message = format!(
                "the task was deleted while {created} of {all} workers had their pods; these end"
            );
            return outcome_of(task, OutcomeKind::Partial, message, vec![], 0);
        }
        let versions = names
            .iter()
            .filter_map(|n| self.shared.index.pod(n))
            .map(|p| p.resource_version);
        let pod_version = versions.max().unwrap_or(0);
        let (kind, message) = if created < all {
            let missing = all - created;
            let why = self.why_missing(task, wanted);
            let message = format!("{missing} of {all} workers {why}");
            (OutcomeKind::Partial, message)
        } else if changed {
            let message = format!("{created} worker(s) created");
            (OutcomeKind::Success, message)
        } else {
            let message = format!("the task has these {created} worker(s)");
            (OutcomeKind::AlreadyProcessed, message)
        };
        outcome_of(task, kind, message, names, pod_version)
    }
}
