//! The tasks that were deleted before they had finished or before their pods were gone, with
//! the last known states of their pods.
//!
//! The leader reports the ends of their workers to otto-handler, also where another replica
//! led, or none, at the time of the deletion.
//!
//! Invariants:
//! - A task is kept for [`RETENTION`]. All of them together have at most [`MAX_WORKERS`]
//!   workers; beyond that, the oldest task is dropped first.
//! - No work is planned for these tasks.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::domain::{
    names,
    pod::Pod,
    task::{Task, TaskSpec},
};

/// The time for which a task is kept. It covers the grace periods of pods and changes of
/// leader: each new leader reports the ends again, with the same event ids.
const RETENTION: Duration = Duration::from_secs(3_600);
/// The maximum number of workers of all tasks that are kept: twice the 10,000 workers that a
/// replica is measured with.
const MAX_WORKERS: usize = 20_000;

#[derive(Debug)]
struct DeletedTask {
    /// The task without the fields that only new pods need.
    task: Arc<Task>,
    /// The last known states of its pods, by uid.
    pods: BTreeMap<String, Arc<Pod>>,
    added_at: Instant,
}

impl DeletedTask {
    fn workers(&self) -> usize {
        self.task.status.workers.len().max(self.pods.len())
    }
}

/// The deleted tasks, oldest first.
#[derive(Debug, Default)]
pub(super) struct DeletedTasks(VecDeque<DeletedTask>);

/// Deleted tasks are not compared: replicas that agree on all existing objects may have seen
/// different deletions.
impl PartialEq for DeletedTasks {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl DeletedTasks {
    /// Adds a task with the last states of its pods, unless it is here already.
    pub(super) fn add(&mut self, task: &Task, pods: impl IntoIterator<Item = Arc<Pod>>) {
        self.remove_expired();
        if self.0.iter().any(|e| e.task.uid == task.uid) {
            return;
        }
        let spec = TaskSpec {
            build_config: BTreeMap::new(),
            metadata: BTreeMap::new(),
            reason: String::new(),
            request_ids: Vec::new(),
            ..task.spec.clone()
        };
        let task = Task {
            spec,
            ..task.clone()
        };
        self.0.push_back(DeletedTask {
            task: Arc::new(task),
            pods: pods.into_iter().map(|p| (p.uid.clone(), p)).collect(),
            added_at: Instant::now(),
        });
        while self.0.len() > 1 && self.workers() > MAX_WORKERS {
            self.0.pop_front();
        }
    }

    /// Adds a pod whose task is gone. If this replica never saw the task, what is known of it
    /// comes from the pod.
    pub(super) fn add_orphan(&mut self, pod: &Arc<Pod>) {
        if self.update_pod(pod) {
            return;
        }
        let task = Task {
            name: names::task_name(&pod.task_id),
            uid: pod.task_uid.to_string(),
            deleting: true,
            spec: TaskSpec {
                task_id: pod.task_id.to_string(),
                repository: pod.repository.to_string(),
                commit_sha: pod.commit_sha.to_string(),
                traceparent: pod.traceparent.as_deref().map(str::to_owned),
                ..TaskSpec::default()
            },
            ..Task::default()
        };
        self.add(&task, [pod.clone()]);
    }

    /// Stores the newest state of a pod, and reports whether it belongs to a deleted task.
    pub(super) fn update_pod(&mut self, pod: &Arc<Pod>) -> bool {
        let mut entries = self.0.iter_mut();
        let Some(entry) = entries.find(|e| *e.task.uid == *pod.task_uid) else {
            return false;
        };
        entry.pods.insert(pod.uid.clone(), pod.clone());
        true
    }

    /// Returns the tasks that had this name, each with the last states of its pods.
    pub(super) fn named(&self, name: &str) -> Vec<(Arc<Task>, Vec<Arc<Pod>>)> {
        let named = self.0.iter().filter(|e| e.task.name == name);
        named
            .map(|e| (e.task.clone(), e.pods.values().cloned().collect()))
            .collect()
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        self.0.iter().any(|e| e.task.name == name)
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.0.iter().map(|e| &e.task)
    }

    /// Drops the tasks whose [`RETENTION`] is over.
    pub(super) fn remove_expired(&mut self) {
        while self
            .0
            .front()
            .is_some_and(|e| e.added_at.elapsed() > RETENTION)
        {
            self.0.pop_front();
        }
    }

    fn workers(&self) -> usize {
        self.0.iter().map(DeletedTask::workers).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::task::WorkerRecord;

    fn task(uid: usize, workers: usize) -> Task {
        let mut task = Task {
            name: "t".into(),
            uid: uid.to_string(),
            ..Task::default()
        };
        task.spec.build_config = [("K".into(), "v".into())].into();
        task.status.workers = vec![WorkerRecord::default(); workers];
        task
    }

    #[test]
    fn tasks_that_went_are_kept_up_to_a_number_of_workers() {
        let mut deleted = DeletedTasks::default();
        (0..50).for_each(|n| deleted.add(&task(n, 1_000), []));
        let kept: Vec<&str> = deleted.tasks().map(|t| t.uid.as_str()).collect();
        assert_eq!((kept.len(), kept[0], kept[19]), (20, "30", "49"));
        assert!(deleted.tasks().all(|t| t.spec.build_config.is_empty()));
        // A task that is added twice is kept once.
        deleted.add(&task(49, 1_000), []);
        assert_eq!(deleted.tasks().count(), 20);
    }

    #[test]
    fn the_last_state_of_each_pod_is_kept() {
        let pod = |uid: &str, task_uid: &str, exit_code| {
            Arc::new(Pod {
                uid: uid.into(),
                task_uid: task_uid.into(),
                exit_code,
                ..Pod::default()
            })
        };
        let mut deleted = DeletedTasks::default();
        deleted.add(&task(1, 1), [pod("p", "1", None)]);
        deleted.update_pod(&pod("p", "1", Some(3)));
        deleted.update_pod(&pod("q", "2", Some(4)));
        let named = deleted.named("t");
        let pods = &named[0].1;
        assert_eq!((pods.len(), pods[0].exit_code), (1, Some(3)));
    }
}
