//! The records of a task and its workers, as the WorkerTask object stores them.
//!
//! Invariants: only the leader writes them; a finished task is never revived; records are
//! sorted by index; what a newer version stored and this one does not understand is written
//! back as it was read.
mod applied;
mod kept;
mod past;
mod row;
mod schema;
mod spec;
mod stored;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod worker;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::limits::{MAX_ATTEMPT, MAX_TASK_WORKERS};
use super::names;
pub use applied::Verb;
pub use kept::Kept;
pub use past::{MAX_PAST, PastAttempt};
pub use spec::TaskSpec;
pub(super) use stored::fit;
pub use worker::{Notified, NotifiedState, WorkerPhase, WorkerRecord};

/// The greatest size of a WorkerTask in etcd, in bytes, of the 1.5 MiB that etcd takes of a
/// request. Each change writes all of it, and each watch receives all of it.
pub const MAX_TASK_BYTES: usize = 384 * 1024;
/// The greatest size of a stored worker, in bytes: the longest names and a row with all of its
/// times.
pub const WORKER_BYTES: usize = 350;
/// The usual size of a stored worker that has finished, in bytes, by which a task is estimated
/// before it is stored.
const RECORD_BYTES: usize = 200;
/// The usual size of a stored task without its workers and its request, in bytes, by which a task
/// is estimated before it is stored.
const OVERHEAD_BYTES: usize = 1_024;
/// The number of request ids that a task remembers. A client repeats its last request; as many
/// others of the same task may come between.
pub(crate) const REMEMBERED_REQUESTS: usize = 16;

/// The observed state of a task. Only the leader writes it; etcd holds it in a more compact
/// form ([`stored`]).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "stored::Stored", into = "stored::Stored")]
pub struct TaskStatus {
    /// The term of the leader that wrote the status.
    pub term: String,
    /// The phase of the task.
    pub phase: TaskPhase,
    /// The number of workers in each state.
    pub counts: Counts,
    /// The conditions of the task.
    pub conditions: Vec<Condition>,
    /// The records of all workers that were ever wanted, sorted by index.
    pub workers: Vec<WorkerRecord>,
    /// The time at which the task finished, in Unix seconds.
    pub finished_at: Option<i64>,
    /// What a newer version stored beside that; it is written back as it was read.
    pub kept: Option<Box<Kept>>,
}

/// A condition after the Kubernetes API conventions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Condition {
    /// The type of the condition, in CamelCase.
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub kind: String,
    /// The status: True, False or Unknown.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub status: String,
    /// The reason of the status, as one word in CamelCase.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// The message for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32768))]
    pub message: String,
    /// The time at which the status last changed (RFC 3339).
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub last_transition_time: String,
    /// The fields that a newer version added.
    #[serde(flatten)]
    #[schemars(skip)]
    pub rest: BTreeMap<String, Value>,
}

/// A `TaskPhase` is the phase of a task. Succeeded, Failed and Cancelled are final.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskPhase {
    /// No worker has started.
    #[default]
    Pending,
    /// A worker runs or has ended, and not all have ended.
    Running,
    /// All workers have ended, and none of them failed.
    Succeeded,
    /// All workers have ended, and one of them failed.
    Failed,
    /// The task was scaled down to 0 workers, and all of them have ended.
    Cancelled,
    /// The phase is one of a newer version, and the task is left alone. It is never written.
    #[serde(other)]
    Unknown,
}

impl TaskPhase {
    /// The phases that this version writes.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Parses a phase that this version writes, ignoring case.
    pub fn parse(text: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|phase| phase.as_str().eq_ignore_ascii_case(text))
    }

    /// Returns the text of the phase, as the gRPC contract has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
            Self::Unknown => "Unknown",
        }
    }

    /// Reports whether the task has finished. A finished task is never revived.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// The number of workers in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Counts {
    /// The number of all workers.
    #[schemars(range(max = schema::COUNT))]
    pub total: u32,
    /// The number of workers that have not started.
    #[schemars(range(max = schema::COUNT))]
    pub pending: u32,
    /// The number of workers that run.
    #[schemars(range(max = schema::COUNT))]
    pub running: u32,
    /// The number of workers that succeeded.
    #[schemars(range(max = schema::COUNT))]
    pub succeeded: u32,
    /// The number of workers that failed or were ended by ScaleDown.
    #[schemars(range(max = schema::COUNT))]
    pub failed: u32,
}

/// A `Task` is a WorkerTask as the API server last reported it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Task {
    /// The name of the object, which follows from the task id.
    pub name: String,
    /// The uid of the object.
    pub uid: String,
    /// The resourceVersion of the object.
    pub resource_version: u64,
    /// The annotation `ottoscaler.io/term`: the term of the leader that sealed the task.
    pub term: String,
    /// The time at which the object was created, in Unix seconds.
    pub created: i64,
    /// Whether the object is being deleted.
    pub deleting: bool,
    /// The desired state.
    pub spec: TaskSpec,
    /// The observed state.
    pub status: TaskStatus,
    /// What [`Task::stored_bytes`] returned before [`Task::drop_maps`] dropped the maps.
    pub bytes: usize,
}

impl Task {
    /// Returns about how many bytes the task takes in etcd, or may come to take while it is
    /// not finished.
    pub fn stored_bytes(&self) -> usize {
        let records = self.status.workers.len();
        let workers = if self.status.phase.is_finished() {
            records * RECORD_BYTES
        } else {
            records.max(self.spec.top() as usize) * WORKER_BYTES
        };
        self.spec.bytes() + workers
    }

    /// Returns a message if the name of the task is not the one that its task id gives. The
    /// task was then created by somebody else and gets no pods, because the name of a pod must
    /// say which task owns it.
    pub fn misnamed(&self) -> Option<String> {
        let name = names::task_name(&self.spec.task_id);
        (name != self.name)
            .then(|| format!("a WorkerTask of this taskId must have the name {name}"))
    }

    /// Drops what nobody reads from the index: the metadata and the reason of the request,
    /// and the build config of a task that gets no more pods.
    pub fn drop_maps(&mut self) {
        self.spec.metadata = BTreeMap::new();
        self.spec.reason = String::new();
        if self.status.phase.is_finished() {
            self.spec.build_config = BTreeMap::new();
        }
    }

    /// Returns the labels of the pods of a worker ([`names::worker_labels`]).
    pub fn worker_labels(&self, index: u32) -> BTreeMap<String, String> {
        let spec = &self.spec;
        names::worker_labels(&spec.task_id, &spec.repository, &spec.commit_sha, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_of_a_name_that_its_id_does_not_give_gets_no_pods() {
        let named = |name: &str, task_id: &str| {
            let mut task = Task {
                name: name.into(),
                ..Task::default()
            };
            task.spec.task_id = task_id.into();
            task.misnamed()
        };
        assert_eq!(named("build-42", "build-42"), None);
        assert_eq!(named(&names::task_name("Build_42"), "Build_42"), None);
        let why = named("build-42", "Build_42").unwrap_or_default();
        assert!(why.ends_with(&names::task_name("Build_42")), "{why}");
        assert!(named("", "t").is_some());
    }
}
