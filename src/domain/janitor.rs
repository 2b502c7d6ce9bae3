//! What is left over: pods without their task, finished tasks beyond the history.
use std::{collections::HashMap, sync::Arc};

use super::{pod::Pod, task::Task, transition};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeftOver {
    /// Their task is not known; whoever deletes them asks first whether it exists.
    pub pods: Vec<Arc<str>>,
    /// By name; the oldest beyond the history's length.
    pub tasks: Vec<String>,
}

/// `pods` may hold only pods that a WorkerTask owns. A task is history once it is
/// finished, told and without pods.
pub fn left_over(tasks: &[Arc<Task>], pods: &[Arc<Pod>], max_finished: usize) -> LeftOver {
    let known: HashMap<&str, &str> = tasks
        .iter()
        .map(|t| (t.name.as_str(), t.uid.as_str()))
        .collect();
    let mut of_task: HashMap<&str, usize> = HashMap::new();
    let mut orphans = Vec::new();
    for pod in pods {
        *of_task.entry(&pod.task).or_default() += 1;
        if known.get(&*pod.task) != Some(&&*pod.task_uid) && !pod.deleting {
            orphans.push(pod.name.clone());
        }
    }
    let mut history: Vec<&Arc<Task>> = tasks
        .iter()
        .filter(|t| {
            t.status.phase.is_finished()
                && !t.deleting
                && !of_task.contains_key(t.name.as_str())
                && t.status.workers.iter().all(transition::is_done)
        })
        .collect();
    let surplus = history.len().saturating_sub(max_finished);
    history.sort_by_key(|t| (t.status.finished_at, &t.name));
    LeftOver {
        pods: orphans,
        tasks: history[..surplus].iter().map(|t| t.name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::task::TaskPhase;

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

    #[test]
    fn a_pod_without_its_task_is_left_over_and_one_with_another_of_the_name_too() {
        let tasks = [task("a", None)];
        let pods = [
            pod("ours", "a", "uid of a"),
            pod("older", "a", "another"),
            pod("lone", "gone", "x"),
        ];
        let found = left_over(&tasks, &pods, 9);
        assert_eq!(found.pods, [Arc::from("older"), Arc::from("lone")]);
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
        assert_eq!(left_over(&tasks, &[], 1).tasks, ["old", "middle"]);
        // One that still has a pod is no history yet.
        assert_eq!(left_over(&tasks, &pods, 1).tasks, ["middle"]);
        assert_eq!(left_over(&tasks, &[], 3).tasks, [""; 0]);
    }
}
