//! The objects that the index holds, and the changes to them.
//!
//! Invariants:
//! - Of each object the highest resourceVersion is held, in whatever order versions arrive.
//! - `pods`, `by_task` and `by_repository` hold the same pods.
//! - `bytes` is the sum over `tasks`.
//! - A pod that was deleted before its task's record was final is a tombstone
//!   (`state/tombstones.rs`).
mod tombstones;
mod unread;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    deleted_tasks::DeletedTasks, stored_bytes::StoredBytes, unread_objects::UnreadObjects,
};
use crate::domain::{pod::Pod, task::Task, unread::Unread};

/// A `TaskChanged` says that a task changed, or one of its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskChanged {
    /// The name of the task.
    pub task: Arc<str>,
    pub kind: ChangeKind,
}

/// What changed, as far as a reader may treat changes differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// A pod was created or changed that has yet to start, and that nothing holds up.
    PodWaits,
    /// A pod was deleted after the end of its worker was known.
    EndedPodDeleted,
    /// otto-handler acknowledged a transition that is not an end.
    ProgressAcknowledged,
    /// Anything else.
    Other,
}

impl TaskChanged {
    fn other(task: Arc<str>) -> Self {
        let kind = ChangeKind::Other;
        Self { task, kind }
    }
}

/// All that the index knows of tasks and pods.
#[derive(Debug, Default, PartialEq)]
pub(super) struct IndexState {
    /// The tasks by name.
    pub(super) tasks: BTreeMap<Arc<str>, Arc<Task>>,
    /// The live pods by name, sorted so that a test's seed repeats the same history.
    pub(super) pods: BTreeMap<Arc<str>, Arc<Pod>>,
    /// The live pods of each task, because most readers ask for all pods of a task.
    by_task: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<Pod>>>,
    /// The number of live pods of each repository.
    by_repository: HashMap<Arc<str>, usize>,
    /// The last states of pods that were deleted before their task's record was final, by uid.
    tombstones: HashMap<String, Arc<Pod>>,
    /// The uids of each task's tombstones.
    tombstones_by_task: HashMap<Arc<str>, Vec<String>>,
    /// The tombstones whose task is not known, by (version, uid). Either the watch of tasks
    /// lags behind, or the task was deleted before its pods.
    unclaimed: BTreeSet<(u64, String)>,
    /// The tasks that cannot be decoded. Their last decoded versions stay in `tasks`.
    unread_tasks: UnreadObjects,
    /// The pods that cannot be decoded. Their last decoded versions stay in `pods`.
    unread_pods: UnreadObjects,
    /// The space that the known tasks take in etcd.
    pub(super) bytes: StoredBytes,
    /// The tasks that were deleted before they had finished or before their pods were gone.
    pub(super) deleted_tasks: DeletedTasks,
}

impl IndexState {
    /// Stores a task; returns `None` if this version of it or a later one is known.
    pub(super) fn apply_task(&mut self, mut task: Task) -> Option<TaskChanged> {
        let name: Arc<str> = Arc::from(task.name.as_str());
        if let Some(known) = self.tasks.get(&name)
            && known.resource_version >= task.resource_version
        {
            return None;
        }
        self.remove_replaced_unread(&name, &task.uid, task.resource_version);
        self.unread_tasks
            .remove_older_than(&name, task.resource_version);
        let former = self.tasks.get(&name).filter(|t| t.uid != task.uid).cloned();
        if let Some(former) = former {
            self.remember_deleted(&former);
        }
        self.prune_tombstones(&name, &task);
        self.copy_task_fields_to_pods(&name, &task);
        task.bytes = task.stored_bytes();
        self.bytes.add(&task);
        task.drop_maps();
        let replaced = self.tasks.insert(name.clone(), Arc::new(task));
        if let Some(old) = &replaced {
            self.bytes.subtract(old);
        }
        // A list shows that a task was created again, but not that the first one was deleted.
        if let Some(old) = replaced.filter(|old| !self.knows_task(old)) {
            self.remove_tombstones(&name, |pod| *pod.task_uid == *old.uid);
        }
        Some(TaskChanged::other(name))
    }

    /// Removes a task and its tombstones; returns `None` if the task is not known.
    pub(super) fn delete_task(&mut self, name: &str, uid: &str) -> Option<TaskChanged> {
        let was_unread = self.unread_tasks.remove(name, uid);
        let is_known = self.tasks.get(name).is_some_and(|t| t.uid == uid);
        if !is_known && !was_unread {
            return None;
        }
        if let Some(task) = is_known.then(|| self.tasks.remove(name)).flatten() {
            self.bytes.subtract(&task);
            self.remember_deleted(&task);
        }
        let name = Arc::from(name);
        self.remove_tombstones(&name, |pod| *pod.task_uid == *uid);
        Some(TaskChanged::other(name))
    }

    /// Adds a task to the deleted ones if it has not finished or its pods are not gone.
    fn remember_deleted(&mut self, task: &Task) {
        let of_task = |p: &Arc<Pod>| *p.task_uid == *task.uid;
        let live = self.pods_of(&task.name).into_iter().filter(of_task);
        let gone = self.tombstones_of(&task.name).into_iter().filter(of_task);
        let pods: Vec<_> = gone.chain(live).collect();
        if !task.status.phase.is_finished() || !pods.is_empty() {
            self.deleted_tasks.add(task, pods);
        }
    }

    /// Adds the unknown owners of the pods of this task name to the deleted tasks. They were
    /// deleted before this replica started, because all changes of tasks up to `version` have been
    /// received.
    pub(super) fn remember_orphans(&mut self, name: &str, version: u64) {
        for pod in self.pods_of(name) {
            let is_covered = !pod.task_uid.is_empty() && pod.resource_version <= version;
            if is_covered && !self.knows_task_of(&pod) {
                self.deleted_tasks.add_orphan(&pod);
            }
        }
    }

    pub(super) fn knows_task(&self, task: &Task) -> bool {
        let known = self.tasks.get(task.name.as_str());
        known.is_some_and(|t| t.uid == task.uid)
    }

    pub(super) fn knows_pod(&self, pod: &Pod) -> bool {
        let known = self.pods.get(&pod.name);
        known.is_some_and(|p| p.uid == pod.uid)
    }

    /// Reports whether an object of this name and uid is known, decoded or not.
    pub(super) fn knows(&self, object: &Unread) -> bool {
        let (name, uid) = (&*object.name, &*object.uid);
        self.tasks.get(name).is_some_and(|t| t.uid == uid)
            || self.pods.get(name).is_some_and(|p| p.uid == uid)
            || self.unread_tasks.contains(name, uid)
            || self.unread_pods.contains(name, uid)
    }

    /// Reports whether there are pods of another task that had the name of this one.
    pub(super) fn has_pods_of_others(&self, task: &Task) -> bool {
        let pods = self.by_task.get(task.name.as_str()).into_iter();
        let mut pods = pods.flat_map(BTreeMap::values);
        pods.any(|p| *p.task_uid != *task.uid)
    }

    /// Reports whether the task that owns the pod is known, decoded or not.
    pub(super) fn knows_task_of(&self, pod: &Pod) -> bool {
        let task = self.tasks.get(&pod.task);
        task.is_some_and(|t| *t.uid == *pod.task_uid)
            || self.unread_tasks.contains(&pod.task, &pod.task_uid)
    }

    /// Stores a pod; returns `None` if this version of it or a later one is known.
    pub(super) fn apply_pod(&mut self, mut pod: Pod) -> Option<TaskChanged> {
        if self.tombstones.contains_key(&pod.uid) {
            return self.update_tombstone(pod);
        }
        if let Some(known) = self.pods.get(&pod.name) {
            if known.uid == pod.uid && known.resource_version >= pod.resource_version {
                return None;
            }
            if known.uid == pod.uid {
                pod.keep(known);
            } else {
                if known.resource_version > pod.resource_version {
                    return None;
                }
                let known = known.clone();
                self.add_tombstone(&known);
                self.remove_pod(&known.name, &known.task);
            }
        }
        self.unread_pods
            .remove_older_than(&pod.name, pod.resource_version);
        if let Some(task) = self
            .tasks
            .get(&pod.task)
            .filter(|t| *t.uid == *pod.task_uid)
        {
            pod.set_task_fields(&task.spec);
        }
        let of_task = self.by_task.entry(pod.task.clone()).or_default();
        if let Some((_, other)) = of_task.first_key_value() {
            pod.share(other);
        }
        let kind = if pod.waits() {
            ChangeKind::PodWaits
        } else {
            ChangeKind::Other
        };
        let task = pod.task.clone();
        let pod = Arc::new(pod);
        self.deleted_tasks.update_pod(&pod);
        of_task.insert(pod.name.clone(), pod.clone());
        *self
            .by_repository
            .entry(pod.repository.clone())
            .or_default() += 1;
        if let Some(old) = self.pods.insert(pod.name.clone(), pod) {
            self.decrement_count(&old);
        }
        Some(TaskChanged { task, kind })
    }

    /// Removes a deleted pod and leaves a tombstone; `last` is its state as the deletion
    /// reported it.
    pub(super) fn delete_pod(&mut self, last: Pod) -> Option<TaskChanged> {
        self.unread_pods.remove(&last.name, &last.uid);
        let Some(known) = self.pods.get(&last.name).filter(|p| p.uid == last.uid) else {
            return self.update_tombstone(last);
        };
        // A forced deletion may report an older status than the known one.
        let (last, kind) = if known.worker_has_ended() {
            (known.clone(), ChangeKind::EndedPodDeleted)
        } else {
            (Arc::new(last), ChangeKind::Other)
        };
        self.deleted_tasks.update_pod(&last);
        let task = last.task.clone();
        self.remove_pod(&last.name, &task);
        self.add_tombstone(&last);
        Some(TaskChanged { task, kind })
    }

    /// Removes the pods that are missing from a complete list as of `version`.
    pub(super) fn retain_pods(
        &mut self,
        listed: &BTreeSet<String>,
        version: u64,
    ) -> Vec<TaskChanged> {
        let missing: Vec<Arc<Pod>> = self
            .pods
            .values()
            .filter(|p| p.resource_version <= version && !listed.contains(&p.uid))
            .cloned()
            .collect();
        let unread = self.unread_pods.retain(listed, version).into_iter();
        let mut tasks: Vec<Arc<str>> = unread.filter_map(|u| Some(u.task?.0)).collect();
        tasks.extend(missing.into_iter().map(|pod| {
            self.remove_pod(&pod.name, &pod.task);
            self.add_tombstone(&pod);
            pod.task.clone()
        }));
        tasks.into_iter().map(TaskChanged::other).collect()
    }

    /// Removes the tasks that are missing from a complete list as of `version`.
    pub(super) fn retain_tasks(
        &mut self,
        listed: &BTreeSet<String>,
        version: u64,
    ) -> Vec<TaskChanged> {
        let mut missing: Vec<(Arc<str>, String)> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.resource_version <= version && !listed.contains(&t.uid))
            .map(|(name, t)| (name.clone(), t.uid.clone()))
            .collect();
        let unread = self.unread_tasks.iter();
        let unread = unread.filter(|u| u.version <= version && !listed.contains(&u.uid));
        missing.extend(unread.map(|u| (u.name.clone(), u.uid.clone())));
        missing
            .into_iter()
            .filter_map(|(name, uid)| self.delete_task(&name, &uid))
            .collect()
    }

    pub(super) fn pods_of(&self, task: &str) -> Vec<Arc<Pod>> {
        let pods = self.by_task.get(task).into_iter();
        pods.flat_map(BTreeMap::values).cloned().collect()
    }

    /// Returns the live pods and the tombstones of exactly this task, without those that an older
    /// task of the same name left.
    pub(super) fn all_pods_of(&self, task: &Task) -> Vec<Arc<Pod>> {
        let mut pods = self.pods_of(&task.name);
        pods.extend(self.tombstones_of(&task.name));
        pods.retain(|p| *p.task_uid == *task.uid);
        pods
    }

    pub(super) fn pods_of_repository(&self, repository: &str) -> usize {
        self.by_repository.get(repository).copied().unwrap_or(0)
    }

    /// Copies the fields that pods have from their task into the pods that were known before it.
    /// Annotations of pods may be forged; the task is authoritative.
    fn copy_task_fields_to_pods(&mut self, name: &Arc<str>, task: &Task) {
        if self.knows_task(task) {
            return;
        }
        let pods = self
            .by_task
            .get(name)
            .into_iter()
            .flat_map(BTreeMap::values);
        let outdated = pods.filter(|p| *p.task_uid == *task.uid && !p.has_task_fields(&task.spec));
        for old in outdated.cloned().collect::<Vec<_>>() {
            let mut pod = Pod::clone(&old);
            pod.set_task_fields(&task.spec);
            if let Some((_, other)) = self.by_task.get(name).and_then(|p| p.first_key_value()) {
                pod.share(other);
            }
            let pod = Arc::new(pod);
            self.decrement_count(&old);
            let count = self.by_repository.entry(pod.repository.clone());
            *count.or_default() += 1;
            let of_task = self.by_task.entry(name.clone()).or_default();
            of_task.insert(pod.name.clone(), pod.clone());
            self.pods.insert(pod.name.clone(), pod);
        }
    }

    fn decrement_count(&mut self, pod: &Pod) {
        if let Some(count) = self.by_repository.get_mut(&pod.repository) {
            *count -= 1;
            if *count == 0 {
                self.by_repository.remove(&pod.repository);
            }
        }
    }

    fn remove_pod(&mut self, name: &str, task: &Arc<str>) {
        if let Some(old) = self.pods.remove(name) {
            self.decrement_count(&old);
        }
        if let Some(pods) = self.by_task.get_mut(task) {
            pods.remove(name);
            if pods.is_empty() {
                self.by_task.remove(task);
            }
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
