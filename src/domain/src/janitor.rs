//! Decides what is garbage: pods whose task is gone, and finished tasks beyond the history
//! limits.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{pod::Pod, task::Task, transition, unread::Unread};

/// A `History` limits how many finished tasks are kept.
#[derive(Debug, Clone, Copy)]
pub struct History {
    /// The greatest number of finished tasks.
    pub tasks: usize,
    /// The greatest size of all tasks together, in bytes. Unfinished tasks count, but only
    /// finished ones are deleted to meet it.
    pub bytes: usize,
}

/// A `LeftOver` lists the objects that may be deleted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeftOver {
    /// The names of pods whose task is not known. Whoever deletes them first asks the API
    /// server whether the task exists.
    pub pods: Vec<Arc<str>>,
    /// The names of the oldest finished tasks beyond the history limits.
    pub tasks: Vec<String>,
}

/// Finds the pods and the tasks that are left over.
///
/// `pods` may hold only pods that a WorkerTask owns. A task is part of the history once it
/// is finished, it has no pods, and otto-handler has acknowledged all of its transitions.
///
/// `unread` lists the tasks that exist and cannot be decoded: their pods are not left over,
/// and none of these tasks is deleted.
pub fn left_over(
    tasks: &[Arc<Task>],
    unread: &[Unread],
    pods: &[Arc<Pod>],
    keep: History,
) -> LeftOver {
    let known = tasks.iter().map(|t| (t.name.as_str(), t.uid.as_str()));
    let known: HashSet<(&str, &str)> = known
        .chain(unread.iter().map(|u| (&*u.name, u.uid.as_str())))
        .collect();
    let is_unread: HashSet<&str> = unread.iter().map(|u| &*u.name).collect();
    let mut of_task: HashMap<&str, usize> = HashMap::new();
    let mut orphans = Vec::new();
    for pod in pods {
        *of_task.entry(&pod.task).or_default() += 1;
        if !known.contains(&(&*pod.task, &*pod.task_uid)) && !pod.deleting {
            orphans.push(pod.name.clone());
        }
    }
    let mut history: Vec<&Arc<Task>> = tasks
        .iter()
        .filter(|t| {
            t.status.phase.is_finished()
                && !t.deleting
                && !is_unread.contains(t.name.as_str())
                && !of_task.contains_key(t.name.as_str())
                && t.status.workers.iter().all(transition::is_done)
        })
        .collect();
    history.sort_by_key(|t| (t.status.finished_at, &t.name));
    let mut bytes: usize = tasks.iter().map(|t| t.bytes).sum();
    let over = history.iter().take_while(|t| {
        let is_over = bytes > keep.bytes;
        bytes -= t.bytes;
        is_over
    });
    let surplus = history.len().saturating_sub(keep.tasks).max(over.count());
    LeftOver {
        pods: orphans,
        tasks: history[..surplus].iter().map(|t| t.name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::TaskPhase;

    fn task(name: &str, finished_at: Option<i64>) -> Arc<Task> {
        let mut task = Task {
            name: name.into(),
            uid: format!("uid of {name}"),
            ..Task::default()
        };
        task.status.finished_at = finished_at;
        if finished_at.is_some() {
            task.status.phase = TaskPhase::Succeeded;
        }
        Arc::new(task)
    }

    fn pod(name: &str, task: &str, task_uid: &str) -> Arc<Pod> {
        Arc::new(Pod {
            name: name.into(),
            task: task.into(),
            task_uid: task_uid.into(),
            ..Pod::default()
        })
    }

    fn most(tasks: usize) -> History {
        History {
            tasks,
            bytes: usize::MAX,
        }
    }

    #[test]
    fn the_oldest_finished_tasks_go_when_all_take_too_much() {
        let of = |name: &str, finished_at: Option<i64>, bytes| {
            let task = Arc::unwrap_or_clone(task(name, finished_at));
            Arc::new(Task { bytes, ..task })
        };
        let tasks = [
            of("new", Some(30), 10),
            of("old", Some(10), 10),
            of("middle", Some(20), 10),
            of("running", None, 100),
        ];
        let shed = |bytes| left_over(&tasks, &[], &[], History { tasks: 9, bytes }).tasks;
        assert_eq!(shed(130), [""; 0]);
        assert_eq!(shed(129), ["old"]);
        assert_eq!(shed(119), ["old", "middle"]);
        assert_eq!(shed(0), ["old", "middle", "new"]);
    }

    #[test]
    fn a_pod_without_its_task_is_left_over_and_one_with_another_of_the_name_too() {
        let tasks = [task("a", None)];
        let pods = [
            pod("ours", "a", "uid of a"),
            pod("older", "a", "another"),
            pod("lone", "gone", "x"),
        ];
        let found = left_over(&tasks, &[], &pods, most(9));
        assert_eq!(found.pods, [Arc::from("older"), Arc::from("lone")]);
    }

    #[test]
    fn pods_of_a_task_that_cannot_be_decoded_are_not_left_over() {
        let unread = |name: &str, uid: &str| Unread {
            name: name.into(),
            uid: uid.into(),
            ..Unread::default()
        };
        let tasks = [task("a", Some(10))];
        // One could be decoded before, the other never.
        let unread = [unread("a", "uid of a"), unread("b", "uid of b")];
        let pods = [pod("p", "b", "uid of b"), pod("older", "b", "another")];
        let found = left_over(&tasks, &unread, &pods, most(0));
        assert_eq!(found.pods, [Arc::from("older")]);
        assert_eq!(found.tasks, [""; 0]);
        let found = left_over(&tasks, &[], &pods, most(0));
        assert_eq!((found.pods.len(), found.tasks.len()), (2, 1));
    }

    #[test]
    fn the_oldest_finished_tasks_go_when_there_are_too_many() {
        let tasks = [
            task("new", Some(30)),
            task("old", Some(10)),
            task("middle", Some(20)),
            task("running", None),
        ];
        let pods = [pod("p", "old", "uid of old")];
        assert_eq!(
            left_over(&tasks, &[], &[], most(1)).tasks,
            ["old", "middle"]
        );
        // A task that still has a pod is not part of the history yet.
        assert_eq!(left_over(&tasks, &[], &pods, most(1)).tasks, ["middle"]);
        assert_eq!(left_over(&tasks, &[], &[], most(3)).tasks, [""; 0]);
    }
}
