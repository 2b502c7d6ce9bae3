//! Tasks that were deleted before they had finished, or while their pods were there, and the last that is known of their
//! pods: whoever leads tells otto-handler their workers' ends, also where another replica
//! led, or none, when the task went.
//!
//! What holds: they are kept for [`KEPT`], and in all no more than [`MAX_WORKERS`]
//! workers, the newest tasks first; nothing is planned by them.
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

/// Long enough for pods to end in their grace periods and for leaders to change. Each new
/// leader tells the ends again, with the same event ids.
const KEPT: Duration = Duration::from_secs(3_600);
const MAX_WORKERS: usize = 20_000;

#[derive(Debug)]
struct Entry {
    /// Without what only new pods need.
    task: Arc<Task>,
    /// Last states, by uid.
    pods: BTreeMap<String, Arc<Pod>>,
    since: Instant,
}

impl Entry {
    fn workers(&self) -> usize {
        self.task.status.workers.len().max(self.pods.len())
    }
}

#[derive(Debug, Default)]
pub(super) struct Departed(VecDeque<Entry>);

/// What a replica remembers is no part of what replicas agree on.
impl PartialEq for Departed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Departed {
    pub(super) fn add(&mut self, task: &Task, pods: impl IntoIterator<Item = Arc<Pod>>) {
        self.forget_old();
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
        self.0.push_back(Entry {
            task: Arc::new(task),
            pods: pods.into_iter().map(|p| (p.uid.clone(), p)).collect(),
            since: Instant::now(),
        });
        while self.0.len() > 1 && self.workers() > MAX_WORKERS {
            self.0.pop_front();
        }
    }

    /// A pod of a task that is gone. Of a task that went unseen only its pods are known.
    pub(super) fn add_orphan(&mut self, pod: &Arc<Pod>) {
        if self.note(pod) {
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

    /// Takes the newest state of a pod, if it is of such a task.
    pub(super) fn note(&mut self, pod: &Arc<Pod>) -> bool {
        let mut entries = self.0.iter_mut();
        let Some(entry) = entries.find(|e| *e.task.uid == *pod.task_uid) else {
            return false;
        };
        entry.pods.insert(pod.uid.clone(), pod.clone());
        true
    }

    /// The tasks that had this name, with all pods that are known of them.
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

    pub(super) fn forget_old(&mut self) {
        while self.0.front().is_some_and(|e| e.since.elapsed() > KEPT) {
            self.0.pop_front();
        }
    }

    fn workers(&self) -> usize {
        self.0.iter().map(Entry::workers).sum()
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
        let mut departed = Departed::default();
        (0..50).for_each(|n| departed.add(&task(n, 1_000), []));
        let kept: Vec<&str> = departed.tasks().map(|t| t.uid.as_str()).collect();
        assert_eq!((kept.len(), kept[0], kept[19]), (20, "30", "49"));
        assert!(departed.tasks().all(|t| t.spec.build_config.is_empty()));
        // One that is told of twice is the same.
        departed.add(&task(49, 1_000), []);
        assert_eq!(departed.tasks().count(), 20);
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
        let mut departed = Departed::default();
        departed.add(&task(1, 1), [pod("p", "1", None)]);
        departed.note(&pod("p", "1", Some(3)));
        departed.note(&pod("q", "2", Some(4)));
        let named = departed.named("t");
        let pods = &named[0].1;
        assert_eq!((pods.len(), pods[0].exit_code), (1, Some(3)));
    }
}
