//! The watches' way into the index.
use std::{collections::BTreeSet, sync::atomic::Ordering};

use super::{Change, Heard, Index, State};
use crate::{
    cluster::{
        convert::{self, PodView},
        crd::WorkerTask,
        object,
        watch::WatchHandler,
    },
    domain::{pod::Pod, task::Task, unread::Unread},
};

/// Takes the watch of worker pods.
#[derive(Debug)]
pub struct PodFeed(pub Index);
/// Takes the watch of WorkerTasks.
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
            let is_late = || version < self.0.told().1;
            self.0.take_unread(object, is_late, State::unread_pod);
        }
        for pod in pods {
            // A list beside the watch may be older than what that has told.
            self.0.take_pod(pod, |told| version < told);
        }
        let mut lost = Vec::new();
        self.0.change(|s| {
            lost = s.retain_pods(&listed, version);
            None
        });
        lost.into_iter()
            .for_each(|task| self.0.announce(task, true));
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
        self.0.take_unread(object, || false, State::unread_pod);
    }

    fn delete_unread(&self, object: Unread) {
        self.0.change(|s| s.delete_unread_pod(&object));
    }

    fn synced_to(&self, version: u64) {
        self.0.mark(&self.0.0.pods);
        self.0
            .0
            .reached
            .send_modify(|(_, pods)| *pods = version.max(*pods));
    }
}

impl TaskFeed {
    /// Takes those that a selective list as of `version` has. What it lacks may be
    /// there still: it says nothing of how far the watch has come.
    pub fn some(&self, some: Vec<Task>, unread: Vec<Unread>, version: u64) {
        for object in unread {
            let is_late = || version < self.0.told().0;
            self.0.take_unread(object, is_late, State::unread_task);
        }
        for task in some {
            // A list beside the watch may be older than what that has told.
            self.0.take_task(task, |told| version < told);
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
        self.some(tasks, unread, version);
        let mut lost = Vec::new();
        self.0.change(|s| {
            lost = s.retain_tasks(&listed, version);
            None
        });
        lost.into_iter()
            .for_each(|task| self.0.announce(task, true));
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
        self.0.take_unread(object, || false, State::unread_task);
    }

    fn delete_unread(&self, object: Unread) {
        self.0.change(|s| s.delete_task(&object.name, &object.uid));
    }

    fn synced_to(&self, version: u64) {
        self.0.mark(&self.0.0.tasks);
        self.0
            .0
            .reached
            .send_modify(|(tasks, _)| *tasks = version.max(*tasks));
        if self.0.read().has_unclaimed() {
            let mut orphaned = BTreeSet::new();
            self.0.change(|s| {
                orphaned = s.heard_of_tasks(version);
                None
            });
            for task in orphaned {
                self.0.announce(task, true);
            }
        }
    }
}

impl Index {
    /// Takes an object that cannot be decoded; each version of it is told and counted once.
    /// `is_late`: the watch has told more than the list that has it, so one that is not known
    /// by now has gone.
    fn take_unread(
        &self,
        object: Unread,
        is_late: impl FnOnce() -> bool,
        take: impl FnOnce(&mut State, Unread) -> Option<Change>,
    ) {
        let told = object.clone();
        self.change(|s| {
            if is_late() && !s.knows(&object) {
                return None;
            }
            let change = take(s, object);
            if change.is_some() {
                object::log_unread(&told);
                self.0.undecodable.count(&told.kind);
            }
            change
        });
    }

    fn mark(&self, heard: &Heard) {
        let now = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        heard.at.store(now, Ordering::Relaxed);
    }
}
