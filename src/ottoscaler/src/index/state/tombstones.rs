//! Tombstones: the last states of pods that were deleted before their task's record was final.
//!
//! A leader that has not stored how a worker ended learns it from the tombstone.
//!
//! Invariants:
//! - `tombstones_by_task` holds the uid of each tombstone exactly once.
//! - A tombstone is dropped when the record of its attempt is final, when its task is deleted,
//!   or when another task has the name of its task.
//! - There are at most [`MAX_TOMBSTONES`]. The workers of pods beyond that count as lost.
use std::{collections::BTreeSet, sync::Arc};

use super::{IndexState, TaskChanged};
use crate::domain::{
    pod::Pod,
    task::{Task, WorkerRecord},
    view,
};

/// The maximum number of tombstones: twice the 10,000 workers that a replica is measured with. The
/// oldest go first, whose watch events have long come.
const MAX_TOMBSTONES: usize = 20_000;

impl IndexState {
    /// Returns the tombstones of all tasks of this name.
    pub(in crate::index) fn tombstones_of(&self, task: &str) -> Vec<Arc<Pod>> {
        let uids = self.tombstones_by_task.get(task).into_iter().flatten();
        uids.filter_map(|uid| self.tombstones.get(uid).cloned())
            .collect()
    }

    /// Drops the tombstones of tasks that are still unknown although all changes of tasks up to
    /// `version` have been received, so that these tasks must have been deleted. Tasks and pods
    /// share one sequence of versions.
    pub(in crate::index) fn prune_unclaimed_tombstones(
        &mut self,
        version: u64,
    ) -> Vec<TaskChanged> {
        let mut orphaned = BTreeSet::new();
        while self.unclaimed.first().is_some_and(|(v, _)| *v <= version) {
            let Some((_, uid)) = self.unclaimed.pop_first() else {
                break;
            };
            if let Some(pod) = self.tombstones.get(&uid).filter(|p| !self.knows_task_of(p)) {
                let pod = pod.clone();
                self.remove_tombstones(&pod.task, |pod| pod.uid == uid);
                if !pod.task_uid.is_empty() {
                    self.deleted_tasks.add_orphan(&pod);
                    orphaned.insert(pod.task.clone());
                }
            }
        }
        orphaned.into_iter().map(TaskChanged::other).collect()
    }

    /// Reports whether there are tombstones whose task is not known.
    pub(in crate::index) fn has_unclaimed_tombstones(&self) -> bool {
        !self.unclaimed.is_empty()
    }

    #[cfg(test)]
    pub(in crate::index) fn tombstone_count(&self) -> usize {
        self.tombstones.len()
    }

    #[cfg(test)]
    pub(in crate::index) fn describe_tombstones(&self) -> Vec<String> {
        let of = |p: &Arc<Pod>| format!("{} {} of {}", p.name, p.uid, p.task_uid);
        self.tombstones.values().map(of).collect()
    }

    /// Keeps the last state of a deleted pod, unless its record in the task is final.
    pub(super) fn add_tombstone(&mut self, pod: &Arc<Pod>) {
        let task = self.tasks.get(&pod.task);
        if self.tombstones.len() >= MAX_TOMBSTONES || task.is_some_and(|t| is_recorded(t, pod)) {
            return;
        }
        if !self.knows_task_of(pod) {
            self.unclaimed
                .insert((pod.resource_version, pod.uid.clone()));
        }
        if self
            .tombstones
            .insert(pod.uid.clone(), pod.clone())
            .is_none()
        {
            self.tombstones_by_task
                .entry(pod.task.clone())
                .or_default()
                .push(pod.uid.clone());
        }
    }

    /// Updates a tombstone from an event that is older than the list from which the pod was
    /// missing: the event may show how the pod ended.
    pub(super) fn update_tombstone(&mut self, late: Pod) -> Option<TaskChanged> {
        let tombstone = self.tombstones.get_mut(&late.uid)?;
        if tombstone.worker_has_ended() || tombstone.resource_version >= late.resource_version {
            return None;
        }
        let task = late.task.clone();
        *tombstone = Arc::new(late);
        Some(TaskChanged::other(task))
    }

    /// Drops the tombstones that are final in the task's new record, and those of older tasks of
    /// the same name.
    pub(super) fn prune_tombstones(&mut self, name: &Arc<str>, task: &Task) {
        self.remove_tombstones(name, |pod| {
            let is_own = *pod.task_uid == *task.uid;
            is_recorded(task, pod) || (!is_own && pod.resource_version < task.resource_version)
        });
    }

    /// Drops the tombstones of a task for which `needless` returns true.
    pub(super) fn remove_tombstones(&mut self, task: &Arc<str>, needless: impl Fn(&Pod) -> bool) {
        let Some(uids) = self.tombstones_by_task.get_mut(task) else {
            return;
        };
        uids.retain(|uid| {
            let keep = self.tombstones.get(uid).is_some_and(|pod| !needless(pod));
            if !keep {
                self.tombstones.remove(uid);
            }
            keep
        });
        if uids.is_empty() {
            self.tombstones_by_task.remove(task);
        }
    }
}

/// Reports whether the task's record of this pod's attempt is final.
fn is_recorded(task: &Task, pod: &Pod) -> bool {
    let record = view::find_record(&task.status.workers, pod.index);
    let over = |w: &WorkerRecord| {
        w.attempt > pod.attempt || (w.attempt == pod.attempt && w.phase.is_final())
    };
    *task.uid == *pod.task_uid && record.is_some_and(over)
}
