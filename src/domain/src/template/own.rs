//! Defines the environment variables that Ottoscaler gives every worker.
use crate::task::TaskSpec;

/// A `Variable` is an environment variable that Ottoscaler sets in a worker, whatever the
/// request says: a row of the README's table.
#[derive(Debug)]
pub struct Variable {
    /// The name of the variable.
    pub name: &'static str,
    /// What the variable holds, for people.
    pub about: &'static str,
    /// Returns the value for a task, an index and an attempt; the last two count from 1.
    value: fn(&TaskSpec, u32, u32) -> String,
}

impl Variable {
    /// Returns the value in an attempt of the worker with that index; both count from 1.
    pub fn value(&self, task: &TaskSpec, index: u32, attempt: u32) -> String {
        (self.value)(task, index, attempt)
    }
}

/// All variables, in the order of the README's table.
pub const OURS: &[Variable] = &[
    Variable {
        name: "OTTO_TASK_ID",
        about: "id of the task",
        value: |task, _, _| task.task_id.clone(),
    },
    Variable {
        name: "OTTO_REPOSITORY",
        about: "repository of the request",
        value: |task, _, _| task.repository.clone(),
    },
    Variable {
        name: "OTTO_COMMIT_SHA",
        about: "commit of the request",
        value: |task, _, _| task.commit_sha.clone(),
    },
    Variable {
        name: "OTTO_WORKER_INDEX",
        about: "number of the worker in its task, from 1",
        value: |_, index, _| index.to_string(),
    },
    Variable {
        name: "OTTO_WORKER_COUNT",
        about: "workers of the task when the pod was made",
        value: |task, _, _| task.workers.to_string(),
    },
    Variable {
        name: "OTTO_ATTEMPT",
        about: "number of the worker's attempt, from 1",
        value: |_, _, attempt| attempt.to_string(),
    },
];
