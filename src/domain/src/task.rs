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
mod stored;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use super::limits::{MAX_ATTEMPT, MAX_TASK_WORKERS};
use super::names;
pub use applied::Verb;
pub use kept::Kept;
pub use past::MAX_PAST;
pub use past::PastAttempt;
pub(super) use stored::fit;

/// The greatest size of a WorkerTask in etcd, in bytes. Each change writes all of it, and
/// each watch receives all of it.
pub const MAX_TASK_BYTES: usize = 384 * 1024;
/// The greatest size of a stored worker, in bytes.
pub const WORKER_BYTES: usize = 350;
/// The usual size of a stored worker that has finished, in bytes.
const RECORD_BYTES: usize = 200;
/// The usual size of a stored task without its workers and its request, in bytes.
const OVERHEAD_BYTES: usize = 1_024;
/// The number of request ids that a task remembers.
pub(crate) const REMEMBERED_REQUESTS: usize = 16;

/// The desired state of a task. The leader writes it on behalf of a request; all fields but
/// `workers`, `ended` and `requestIds` stay as first written.
// The bounds of the schema hold for what this version writes. What an older version or
// somebody else stored is read and brought within them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct TaskSpec {
    /// The id of the task, as the request gave it.
    #[schemars(length(min = 1, max = schema::TEXT))]
    pub task_id: String,
    /// The repository that the workers build.
    #[schemars(length(max = schema::TEXT))]
    pub repository: String,
    /// The commit that the workers build.
    #[schemars(length(max = schema::TEXT))]
    pub commit_sha: String,
    /// The number of workers that are wanted; 0 ends the task for good.
    #[serde(deserialize_with = "at_most_all")]
    #[schemars(range(max = MAX_TASK_WORKERS))]
    pub workers: u32,
    /// The indices of workers that ScaleDown ended. The `workers` lowest other indices are
    /// wanted.
    #[serde(
        default,
        deserialize_with = "indices",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    #[schemars(schema_with = "schema::indices")]
    pub ended: BTreeSet<u32>,
    /// The build configuration of the request: environment variables of the workers and
    /// `OTTO_` keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::texts")]
    pub build_config: BTreeMap<String, String>,
    /// Who or what triggered the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = schema::TEXT))]
    pub triggered_by: String,
    /// The reason of the request, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = schema::VALUE))]
    pub reason: String,
    /// The metadata of the request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::texts")]
    pub metadata: BTreeMap<String, String>,
    /// The digest of repository, commit and build config. A request with another digest under
    /// the same task id is refused.
    #[schemars(length(max = schema::TEXT))]
    pub digest: String,
    /// The requests that were applied lately, newest last. They are in the spec because one
    /// write must change them together with `workers`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::request_ids")]
    pub request_ids: Vec<String>,
    /// The W3C trace context of the request that created the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = schema::TEXT))]
    pub traceparent: Option<String>,
}

/// Reads a number of workers and limits it to [`MAX_TASK_WORKERS`].
fn at_most_all<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    Ok(u32::deserialize(from)?.min(MAX_TASK_WORKERS))
}

/// Reads indices and drops those that no worker can have.
fn indices<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<u32>, D::Error> {
    let mut all = BTreeSet::<u32>::deserialize(from)?;
    all.retain(|index| (1..=MAX_TASK_WORKERS).contains(index));
    Ok(all)
}

impl TaskSpec {
    /// Returns about how many bytes the spec takes in etcd.
    pub(crate) fn bytes(&self) -> usize {
        let map = |map: &BTreeMap<String, String>| {
            let entries = map.iter();
            entries.map(|(k, v)| k.len() + v.len() + 8).sum::<usize>()
        };
        let texts = [
            &self.task_id,
            &self.repository,
            &self.commit_sha,
            &self.triggered_by,
            &self.reason,
        ];
        let texts = texts.iter().map(|text| text.len()).sum::<usize>();
        OVERHEAD_BYTES + texts + map(&self.build_config) + map(&self.metadata)
    }

    /// Returns the highest index that is or was wanted.
    pub fn top(&self) -> u32 {
        let ended = u32::try_from(self.ended.len()).unwrap_or(u32::MAX);
        self.workers.saturating_add(ended).min(MAX_TASK_WORKERS)
    }

    /// Reports whether the worker of this index is wanted.
    pub fn wants(&self, index: u32) -> bool {
        self.workers > 0 && (1..=self.top()).contains(&index) && !self.ended.contains(&index)
    }

    /// Returns the indices that stay ended when the number of wanted workers grows to
    /// `workers`: growth takes back the lowest ended indices, as new attempts, before it goes
    /// on with new indices.
    pub fn ended_after_growth(&self, workers: u32) -> BTreeSet<u32> {
        let more = workers.saturating_sub(self.workers);
        self.ended.iter().copied().skip(more as usize).collect()
    }

    /// Returns the digest that identifies a request under its task id, as 32 hex digits.
    pub fn digest_of(
        repository: &str,
        commit_sha: &str,
        build_config: &BTreeMap<String, String>,
    ) -> String {
        let mut hash = Sha256::new();
        let mut field = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        field(repository);
        field(commit_sha);
        for (key, value) in build_config {
            field(key);
            field(value);
        }
        hash.finalize()
            .iter()
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect()
    }
}

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

/// A `WorkerPhase` is the phase of a worker. The phases are in the order in which a worker
/// goes through them, so that the later of two is the greater one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerPhase {
    /// A newer version wrote what this one does not understand, and looks after the worker.
    /// Its row stays as it is, it gets no pod, and none of its pods is deleted.
    Unknown,
    /// The worker has no pod yet.
    #[default]
    Queued,
    /// The worker's pod exists, and the container has not started.
    Pending,
    /// The worker runs.
    Running,
    /// The worker succeeded.
    Succeeded,
    /// The worker failed for good: no retry follows.
    Failed,
    /// ScaleDown or the deletion of its task ended the worker.
    Terminated,
}

impl WorkerPhase {
    /// The phases that this version writes.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Terminated,
    ];

    /// Reports whether the worker has ended for good.
    pub fn is_final(self) -> bool {
        self.end().is_some()
    }

    /// Returns the state that otto-handler is notified of for this end, or None if the phase
    /// is not final.
    pub fn end(self) -> Option<NotifiedState> {
        match self {
            Self::Succeeded => Some(NotifiedState::Completed),
            Self::Failed => Some(NotifiedState::Failed),
            Self::Terminated => Some(NotifiedState::Terminated),
            Self::Unknown | Self::Queued | Self::Pending | Self::Running => None,
        }
    }
}

/// A `WorkerRecord` is the record of one worker. Its fields are those of the newest attempt,
/// and times are Unix seconds, unless a field says otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerRecord {
    /// The index of the worker, from 1.
    pub index: u32,
    /// The number of the newest attempt, from 1. The pod's name follows from task, index and
    /// attempt.
    pub attempt: u32,
    /// The phase of the worker.
    pub phase: WorkerPhase,
    /// The uid of the attempt's pod, once it was seen. A pod whose record is final may be
    /// deleted once its logs are drained.
    pub uid: Option<String>,
    /// The reason of the phase, as one word; empty if there is none. Until the pod of a new
    /// attempt gives one, it is that of the attempt before.
    pub reason: String,
    /// The message that came with the reason.
    pub message: String,
    /// The exit code of the worker's container.
    pub exit_code: Option<i32>,
    /// The name of the node; empty without one.
    pub node: String,
    /// The IP address of the pod; empty without one.
    pub ip: String,
    /// The time since which the attempt waited for its pod.
    pub queued: Option<i64>,
    /// The time at which the pod was created.
    pub created: Option<i64>,
    /// The time at which the pod was bound to a node.
    pub scheduled: Option<i64>,
    /// The time at which the volumes and the network of the pod were ready; images come next.
    pub prepared: Option<i64>,
    /// The time at which the container started.
    pub started: Option<i64>,
    /// The time of the first line of the log.
    pub first_line: Option<i64>,
    /// The time at which the attempt ended.
    pub finished: Option<i64>,
    /// Whether ScaleDown ended this attempt, so that its pod may be deleted at once.
    pub stopping: bool,
    /// The newest transition that otto-handler has acknowledged.
    pub notified: Option<Notified>,
    /// The earlier attempts of which otto-handler has yet to acknowledge a transition, oldest
    /// first.
    pub past: Vec<PastAttempt>,
    /// The end of the backoff: this attempt gets no pod before this time.
    pub not_before: Option<i64>,
    /// The number of failures that count against the retry budget.
    pub failures: u32,
    /// The number of attempts in a row before this one that ended before their container
    /// started. They do not count against the budget.
    pub tries: u32,
    /// The newest attempt whose pod was deleted, or may be, before otto-handler acknowledged
    /// its last line of log.
    pub cut: Option<u32>,
}

/// A `Notified` is a transition of an attempt that otto-handler is notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notified {
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The state that the attempt came to.
    pub state: NotifiedState,
}

/// A `NotifiedState` is a state of an attempt as otto-handler knows it. The states are in the
/// order in which an attempt passes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotifiedState {
    /// The pod was created.
    Created,
    /// The container started.
    Running,
    /// The worker succeeded.
    Completed,
    /// The worker failed.
    Failed,
    /// ScaleDown or the deletion of the task ended the attempt.
    Terminated,
}

impl Notified {
    /// Reports whether `next` follows this transition. An attempt has one end: the three
    /// ends are ordered for comparison, not in time.
    pub fn is_before(self, next: Self) -> bool {
        match next.attempt.cmp(&self.attempt) {
            Ordering::Greater => true,
            Ordering::Equal => next.state > self.state && !self.state.is_end(),
            Ordering::Less => false,
        }
    }

    /// Returns the later one of two transitions.
    pub fn latest(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let both = one.into_iter().chain(other);
        both.max_by_key(|n| (n.attempt, n.state))
    }
}

impl NotifiedState {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Created,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Terminated,
    ];

    /// Reports whether the state is an end.
    pub fn is_end(self) -> bool {
        self >= Self::Completed
    }
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
    fn growth_takes_back_what_scale_down_took_before_it_goes_on() {
        let mut spec = TaskSpec {
            workers: 3,
            ended: [2, 4].into(),
            ..TaskSpec::default()
        };
        let wanted = |s: &TaskSpec| (0..9).filter(|i| s.wants(*i)).collect::<Vec<_>>();
        assert_eq!(wanted(&spec), [1, 3, 5]);
        spec.ended = spec.ended_after_growth(4);
        spec.workers = 4;
        assert_eq!(wanted(&spec), [1, 2, 3, 5]);
        spec.ended = spec.ended_after_growth(7);
        spec.workers = 7;
        assert_eq!(wanted(&spec), [1, 2, 3, 4, 5, 6, 7]);
        spec.workers = 0;
        assert!(wanted(&spec).is_empty());
    }

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

    #[test]
    fn fields_cannot_trade_text_in_a_digest() {
        let none = BTreeMap::new();
        assert_ne!(
            TaskSpec::digest_of("ab", "c", &none),
            TaskSpec::digest_of("a", "bc", &none)
        );
    }
}
