//! Defines the outcomes of requests.
use crate::violation::Violation;

/// An `Outcome` says what a request did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether all of the request was done.
    pub kind: OutcomeKind,
    /// The message for people.
    pub message: String,
    /// The number of workers that the request changed.
    pub processed: u32,
    /// The names of the pods of these workers.
    pub pod_names: Vec<String>,
    /// The resourceVersion of the newest WorkerTask that was written or seen for this answer.
    /// A replica whose index has not reached it lags behind.
    pub task_version: u64,
    /// The same of the newest pod.
    pub pod_version: u64,
}

/// An `OutcomeKind` says whether all of a request was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// All of it was done.
    Success,
    /// Some of it was done.
    Partial,
    /// The request had been applied before, and nothing was changed.
    AlreadyProcessed,
}

/// A `Refusal` says why nothing was done. Its message says what the client can do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Fields of the request are wrong.
    #[error("the request has {} invalid field(s)", .0.len())]
    Invalid(Vec<Violation>),
    /// The task exists and was created by another request.
    #[error("task {task_id:?} exists with another {}; use a new task id", fields.join(", "))]
    Conflict {
        /// The id of the task.
        task_id: String,
        /// The names of the fields that differ.
        fields: Vec<&'static str>,
    },
    /// There is no task of this id.
    #[error("no task {0:?}")]
    NoSuchTask(String),
    /// The leader or the API server is unavailable; a retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// This replica does not lead any more.
    #[error("this replica no longer leads")]
    NotLeader,
    /// All tasks together take as much space as they may.
    #[error("{0}")]
    Exhausted(String),
    /// The API server refused the write for good.
    #[error("{0}")]
    Failed(String),
}
