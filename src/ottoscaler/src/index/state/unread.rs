//! Objects that cannot be decoded.
//!
//! Invariant: such an object changes nothing that is known of its earlier versions. It only
//! marks its task, about which nothing may be decided until the object can be decoded again or
//! is deleted.
use std::sync::Arc;

use super::{IndexState, TaskChanged};
use crate::domain::unread::Unread;

impl IndexState {
    /// Notes a task that cannot be decoded; returns `None` if that is known or a later version
    /// could be decoded.
    pub(in crate::index) fn apply_unread_task(&mut self, object: Unread) -> Option<TaskChanged> {
        let known = self.tasks.get(&object.name);
        if known.is_some_and(|t| t.resource_version >= object.version) {
            return None;
        }
        let name = object.name.clone();
        self.remove_replaced_unread(&name, &object.uid, object.version);
        self.unread_tasks
            .insert(object)
            .then(|| TaskChanged::other(name))
    }

    /// Removes a task that could not be decoded, and its tombstones, once another task has its
    /// name: the first one must have been deleted.
    pub(in crate::index) fn remove_replaced_unread(
        &mut self,
        name: &Arc<str>,
        uid: &str,
        version: u64,
    ) {
        let older = self.unread_tasks.get(name);
        let older = older.filter(|u| u.uid != uid && u.version < version);
        if let Some(gone) = older.map(|u| u.uid.clone()) {
            self.unread_tasks.remove(name, &gone);
            self.remove_tombstones(name, |pod| *pod.task_uid == *gone);
        }
    }

    /// Notes a pod that cannot be decoded; returns `None` as for tasks, and for a pod that is not
    /// a worker's.
    pub(in crate::index) fn apply_unread_pod(&mut self, mut object: Unread) -> Option<TaskChanged> {
        let known = self.pods.get(&object.name);
        let known = known.filter(|p| p.uid == object.uid);
        if known.is_some_and(|p| p.resource_version >= object.version)
            || self.tombstones.contains_key(&object.uid)
        {
            return None;
        }
        let of_known = || known.map(|p| (p.task.clone(), p.task_uid.clone()));
        object.task = object.task.or_else(of_known);
        let (task, _) = object.task.clone()?;
        self.unread_pods
            .insert(object)
            .then(|| TaskChanged::other(task))
    }

    /// Removes a deleted pod whose last state cannot be decoded. Its tombstone is the last state
    /// that could be.
    pub(in crate::index) fn delete_unread_pod(&mut self, object: &Unread) -> Option<TaskChanged> {
        let unread = self.unread_pods.get(&object.name);
        let unread = unread.filter(|u| u.uid == object.uid);
        let task = unread.and_then(|u| u.task.clone());
        self.unread_pods.remove(&object.name, &object.uid);
        let known = self.pods.get(&object.name);
        match known.filter(|p| p.uid == object.uid).cloned() {
            Some(known) => {
                self.remove_pod(&known.name, &known.task);
                self.add_tombstone(&known);
                Some(TaskChanged::other(known.task.clone()))
            }
            None => task.map(|(task, _)| TaskChanged::other(task)),
        }
    }

    /// Returns an object that cannot be decoded and is this task or one of its pods.
    pub(in crate::index) fn unread_of(&self, task: &str) -> Option<&Unread> {
        let uid = self.tasks.get(task).map(|t| t.uid.as_str());
        let is_its = |pod: &&Unread| {
            let owner = pod.task.as_ref();
            owner.is_some_and(|(name, of)| **name == *task && uid.is_none_or(|uid| **of == *uid))
        };
        self.unread_tasks
            .get(task)
            .or_else(|| self.unread_pods.iter().find(is_its))
    }

    pub(in crate::index) fn unread_tasks(&self) -> impl Iterator<Item = &Unread> {
        self.unread_tasks.iter()
    }
}
