//! Decides which workers a ScaleDown ends: those that lose the least work.
use std::cmp::Reverse;

use super::{
    task::{Task, WorkerPhase},
    view::WorkerView,
};

/// Returns the indices of the workers to end, in ascending order, so that at most `target`
/// workers of the task go on.
///
/// Queued workers are taken first, then unscheduled ones, then other pending ones, and then
/// the running ones that are youngest. The age of a running worker is that of its pod, for
/// the API server's clock stamps all of these; the start of a container is stamped by its
/// node. Finished workers are neither counted nor taken.
pub fn victims(task: &Task, workers: &[WorkerView], target: u32) -> Vec<u32> {
    let mut live: Vec<&WorkerView> = workers
        .iter()
        .filter(|w| task.spec.wants(w.record.index) && !w.record.phase.is_final())
        .collect();
    let surplus = live.len().saturating_sub(target as usize);
    live.sort_by_key(|w| {
        let record = &w.record;
        let cost = match record.phase {
            WorkerPhase::Queued => 0,
            WorkerPhase::Pending if record.node.is_empty() => 1,
            WorkerPhase::Pending => 2,
            _ => 3,
        };
        let age = record.created.filter(|_| cost == 3);
        (cost, Reverse(age), Reverse(record.index))
    });
    let mut taken: Vec<u32> = live[..surplus].iter().map(|w| w.record.index).collect();
    taken.sort_unstable();
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{TaskSpec, WorkerRecord};

    fn worker(index: u32, phase: WorkerPhase, node: &str, created: Option<i64>) -> WorkerView {
        WorkerView {
            pod_name: String::new(),
            record: WorkerRecord {
                index,
                phase,
                node: node.into(),
                created,
                // The clock of one node is an hour ahead of the others.
                started: created.map(|at| at + if index == 2 { 3_600 } else { 0 }),
                ..WorkerRecord::default()
            },
        }
    }

    fn ended(target: u32) -> Vec<u32> {
        let workers = [
            worker(1, WorkerPhase::Succeeded, "n", Some(1)),
            worker(2, WorkerPhase::Running, "n", Some(10)),
            worker(3, WorkerPhase::Running, "n", Some(20)),
            worker(4, WorkerPhase::Pending, "n", None),
            worker(5, WorkerPhase::Pending, "", None),
            worker(6, WorkerPhase::Queued, "", None),
        ];
        let task = Task {
            spec: TaskSpec {
                workers: 6,
                ..TaskSpec::default()
            },
            ..Task::default()
        };
        victims(&task, &workers, target)
    }

    #[test]
    fn those_that_lose_least_end_first() {
        assert_eq!(ended(4), [6]);
        assert_eq!(ended(3), [5, 6]);
        assert_eq!(ended(2), [4, 5, 6]);
        assert_eq!(ended(1), [3, 4, 5, 6], "the youngest running one");
        assert_eq!(ended(0), [2, 3, 4, 5, 6]);
    }

    #[test]
    fn finished_workers_are_neither_counted_nor_taken() {
        assert_eq!(ended(5), [0; 0]);
    }
}
