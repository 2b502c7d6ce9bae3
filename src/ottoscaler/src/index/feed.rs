//! The feeds through which the two watches, and lists beside them, fill the index.
use std::{collections::BTreeSet, sync::atomic::Ordering};

use super::{Index, IndexState, TaskChanged, WatchProgress};
use crate::{
    cluster::{
        convert::{self, PodView},
        crd::WorkerTask,
        object,
        watch::WatchHandler,
    },
    domain::{pod::Pod, task::Task, unread::Unread},
};

/// A `PodFeed` brings the watch of worker pods into the index.
#[derive(Debug)]
pub struct PodFeed(pub Index);
/// A `TaskFeed` brings the watch of WorkerTasks into the index.
#[derive(Debug)]
pub struct TaskFeed(pub Index);

impl WatchHandler<PodView> for PodFeed {
    type Item = Pod;

    fn project(object: PodView) -> Option<Pod> {
        convert::pod(object)
    }

    fn replace(&self, pods: Vec<Pod>, unread: Vec<Unread>, version: u64) {
        let listed = pods.iter().map(|p| p.uid.clone());
        let listed: BTreeSet<String> = listed.chain(unread.iter().map(|u| u.uid.clone())).collect();
        for object in unread {
            let is_late = || version < self.0.synced_versions().1;
            self.0
                .apply_unread(object, is_late, IndexState::apply_unread_pod);
        }
        for pod in pods {
            // A list beside the watch may be older than what the watch has reported.
            self.0.apply_pod(pod, |synced| version < synced);
        }
        self.0.change(|s| s.retain_pods(&listed, version));
        self.0.0.pods.synced.store(true, Ordering::Release);
        self.synced_to(version);
    }

    fn apply(&self, object: PodView) {
        if let Some(pod) = convert::pod(object) {
            self.0.change(|s| s.apply_pod(pod));
        }
    }

    fn delete(&self, object: PodView) {
        if let Some(pod) = convert::pod(object) {
            self.0.change(|s| s.delete_pod(pod));
        }
    }

    fn apply_unread(&self, object: Unread) {
        self.0
            .apply_unread(object, || false, IndexState::apply_unread_pod);
    }

    fn delete_unread(&self, object: Unread) {
        self.0.change(|s| s.delete_unread_pod(&object));
    }

    fn synced_to(&self, version: u64) {
        self.0.record_progress(&self.0.0.pods);
        self.0
            .0
            .versions
            .send_modify(|(_, pods)| *pods = version.max(*pods));
    }
}

impl TaskFeed {
    /// Applies the tasks of a list with a selector as of `version`. Tasks that it lacks are kept,
    /// and the progress of the watch does not change.
    pub fn apply_some(&self, some: Vec<Task>, unread: Vec<Unread>, version: u64) {
        for object in unread {
            let is_late = || version < self.0.synced_versions().0;
            self.0
                .apply_unread(object, is_late, IndexState::apply_unread_task);
        }
        for task in some {
            // A list beside the watch may be older than what the watch has reported.
            self.0.apply_task(task, |synced| version < synced);
        }
    }
}

impl WatchHandler<WorkerTask> for TaskFeed {
    type Item = Task;

    fn project(object: WorkerTask) -> Option<Task> {
        convert::task(object)
    }

    fn replace(&self, tasks: Vec<Task>, unread: Vec<Unread>, version: u64) {
        let listed = tasks.iter().map(|t| t.uid.clone());
        let listed: BTreeSet<String> = listed.chain(unread.iter().map(|u| u.uid.clone())).collect();
        self.apply_some(tasks, unread, version);
        self.0.change(|s| s.retain_tasks(&listed, version));
        self.0.0.tasks.synced.store(true, Ordering::Release);
        self.synced_to(version);
    }

    fn apply(&self, object: WorkerTask) {
        if let Some(task) = convert::task(object) {
            self.0.change(|s| s.apply_task(task));
        }
    }

    fn delete(&self, object: WorkerTask) {
        if let Some(task) = convert::task(object) {
            self.0.change(|s| s.delete_task(&task.name, &task.uid));
        }
    }

    fn apply_unread(&self, object: Unread) {
        self.0
            .apply_unread(object, || false, IndexState::apply_unread_task);
    }

    fn delete_unread(&self, object: Unread) {
        self.0.change(|s| s.delete_task(&object.name, &object.uid));
    }

    fn synced_to(&self, version: u64) {
        self.0.record_progress(&self.0.0.tasks);
        self.0
            .0
            .versions
            .send_modify(|(tasks, _)| *tasks = version.max(*tasks));
        if self.0.read().has_unclaimed_tombstones() {
            self.0.change(|s| s.prune_unclaimed_tombstones(version));
        }
    }
}

impl Index {
    /// Applies an object that cannot be decoded. Each version of it is logged and counted once.
    ///
    /// `is_late` reports whether the watch is ahead of the list that contains the object. Then
    /// an object that is not known has been deleted since.
    fn apply_unread(
        &self,
        object: Unread,
        is_late: impl FnOnce() -> bool,
        apply: impl FnOnce(&mut IndexState, Unread) -> Option<TaskChanged>,
    ) {
        let logged = object.clone();
        self.change(|s| {
            if is_late() && !s.knows(&object) {
                return None;
            }
            let change = apply(s, object);
            if change.is_some() {
                object::log_unread(&logged);
                self.0.undecodable.count(&logged.kind);
            }
            change
        });
    }

    fn record_progress(&self, watch: &WatchProgress) {
        let now = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        watch.last_event.store(now, Ordering::Relaxed);
    }
}
