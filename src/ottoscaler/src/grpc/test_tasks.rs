//! Tasks for the tests of reads.
use crate::domain::task::{Task, TaskSpec, WorkerPhase, WorkerRecord};

/// Returns a task that wants so many workers, without records of them.
pub(super) fn task(name: &str, version: u64, workers: u32) -> Task {
    Task {
        name: name.into(),
        uid: format!("uid-{name}"),
        resource_version: version,
        spec: TaskSpec {
            task_id: name.into(),
            workers,
            ..TaskSpec::default()
        },
        ..Task::default()
    }
}

/// Returns the same task with a record of each worker, in the phase that `phase` gives its index.
pub(super) fn recorded(
    name: &str,
    version: u64,
    workers: u32,
    phase: impl Fn(u32) -> WorkerPhase,
) -> Task {
    let mut task = task(name, version, workers);
    let record = |index| WorkerRecord {
        index,
        attempt: 1,
        phase: phase(index),
        node: "a-node".into(),
        ..WorkerRecord::default()
    };
    task.status.workers = (1..=workers).map(record).collect();
    task
}
