//! What comes of a request.
use crate::violation::Violation;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub kind: OutcomeKind,
    pub message: String,
    pub processed: u32,
    pub pod_names: Vec<String>,
    /// The newest object written or seen for this answer; a replica whose index
    /// has not reached it is behind.
    pub task_version: u64,
    pub pod_version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    Success,
    Partial,
    AlreadyProcessed,
}

/// Why nothing was done. The message tells the client what it can do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the request has {} invalid field(s)", .0.len())]
    Invalid(Vec<Violation>),
    #[error("task {task_id:?} exists with another {}; use a new task id", fields.join(", "))]
    Conflict {
        task_id: String,
        fields: Vec<&'static str>,
    },
    #[error("no task {0:?}")]
    NoSuchTask(String),
    /// Leadership is gone or the API server is away; try again.
    #[error("{0}")]
    Unavailable(String),
    #[error("this replica no longer leads")]
    NotLeader,
    /// All tasks together hold as much as they may.
    #[error("{0}")]
    Exhausted(String),
    /// The API server refused for good.
    #[error("{0}")]
    Failed(String),
}
