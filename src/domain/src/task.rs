//! A task and its workers, as the WorkerTask stores them.
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
pub use past::{MAX_PAST, Past};
pub(super) use stored::fit;

/// Of a WorkerTask, as etcd holds it: each change writes, and tells, all of it.
pub const MAX_TASK_BYTES: usize = 384 * 1024;
/// Of these a worker takes at most so many.
pub const WORKER_BYTES: usize = 350;
/// The same as a rule: of a finished worker.
const RECORD_BYTES: usize = 200;
/// Of a task beside its workers and what its request carried, as a rule.
const OVERHEAD_BYTES: usize = 1_024;
/// Request ids that a task remembers.
pub const REMEMBERED_REQUESTS: usize = 16;

/// What was asked for. Written by the leader on behalf of a request; all but
/// `workers`, `ended` and `request_ids` stay as first written.
///
/// The bounds hold for what this version writes; what was stored before them, or by
/// somebody else, is read within them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct TaskSpec {
    #[schemars(length(min = 1, max = schema::TEXT))]
    pub task_id: String,
    #[schemars(length(max = schema::TEXT))]
    pub repository: String,
    #[schemars(length(max = schema::TEXT))]
    pub commit_sha: String,
    /// Workers wanted; 0 ends the task for good.
    #[serde(deserialize_with = "at_most_all")]
    #[schemars(range(max = MAX_TASK_WORKERS))]
    pub workers: u32,
    /// Indices that ScaleDown took; the wanted ones are the `workers` lowest others.
    #[serde(
        default,
        deserialize_with = "indices",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    #[schemars(schema_with = "schema::indices")]
    pub ended: BTreeSet<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::texts")]
    pub build_config: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = schema::TEXT))]
    pub triggered_by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = schema::VALUE))]
    pub reason: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::texts")]
    pub metadata: BTreeMap<String, String>,
    /// Of repository, commit and build config; a request with another one under
    /// the same task id is refused.
    #[schemars(length(max = schema::TEXT))]
    pub digest: String,
    /// Requests applied lately, newest last. Beside `workers`, not in the
    /// status: one write must change both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::request_ids")]
    pub request_ids: Vec<String>,
    /// W3C trace context of the request that made the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = schema::TEXT))]
    pub traceparent: Option<String>,
}

/// A task has no more workers than [`MAX_TASK_WORKERS`], whatever is stored.
fn at_most_all<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    Ok(u32::deserialize(from)?.min(MAX_TASK_WORKERS))
}

/// Indices beyond [`MAX_TASK_WORKERS`] are no worker's.
fn indices<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<u32>, D::Error> {
    let mut all = BTreeSet::<u32>::deserialize(from)?;
    all.retain(|index| (1..=MAX_TASK_WORKERS).contains(index));
    Ok(all)
}

impl TaskSpec {
    /// What it takes in etcd, about.
    pub fn bytes(&self) -> usize {
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

    /// The highest index that is or was wanted.
    pub fn top(&self) -> u32 {
        let ended = u32::try_from(self.ended.len()).unwrap_or(u32::MAX);
        self.workers.saturating_add(ended).min(MAX_TASK_WORKERS)
    }

    pub fn wants(&self, index: u32) -> bool {
        self.workers > 0 && (1..=self.top()).contains(&index) && !self.ended.contains(&index)
    }

    /// What stays ended when `workers` are wanted: growth takes back the lowest
    /// first, as new attempts, then goes on with new indices.
    pub fn ended_after_growth(&self, workers: u32) -> BTreeSet<u32> {
        let more = workers.saturating_sub(self.workers);
        self.ended.iter().copied().skip(more as usize).collect()
    }

    /// The identity of a request under its task id.
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

/// What became of it. Written by the leader only; etcd holds it more compact
/// ([`stored`]).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "stored::Stored", into = "stored::Stored")]
pub struct TaskStatus {
    /// Term of the leader that wrote this.
    pub term: String,
    pub phase: TaskPhase,
    pub counts: Counts,
    pub conditions: Vec<Condition>,
    /// One record per worker that was ever wanted, sorted by index.
    pub workers: Vec<WorkerRecord>,
    /// When the last worker was final (Unix seconds).
    pub finished_at: Option<i64>,
    /// What a newer version stored beside that; it goes back as it came.
    pub kept: Option<Box<Kept>>,
}

/// As the Kubernetes API conventions have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Condition {
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub kind: String,
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub status: String,
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32768))]
    pub message: String,
    /// RFC 3339.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub last_transition_time: String,
    /// What a newer version says of it.
    #[serde(flatten)]
    #[schemars(skip)]
    pub rest: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskPhase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    /// One of a newer version: the task is left alone. Never written.
    #[serde(other)]
    Unknown,
}

impl TaskPhase {
    /// Those that this version writes.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// A finished task is never revived.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Counts {
    #[schemars(range(max = schema::COUNT))]
    pub total: u32,
    #[schemars(range(max = schema::COUNT))]
    pub pending: u32,
    #[schemars(range(max = schema::COUNT))]
    pub running: u32,
    #[schemars(range(max = schema::COUNT))]
    pub succeeded: u32,
    #[schemars(range(max = schema::COUNT))]
    pub failed: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerPhase {
    /// A newer version wrote what this one does not understand: the worker goes on without
    /// us. Its row stays as it is, it gets no pod, and none of its pods is deleted.
    Unknown,
    /// No pod yet.
    #[default]
    Queued,
    /// Its pod exists, the container has not started.
    Pending,
    Running,
    Succeeded,
    /// For good: no retry follows.
    Failed,
    /// Ended by ScaleDown.
    Terminated,
}

impl WorkerPhase {
    /// Those that this version writes.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Terminated,
    ];

    pub fn is_final(self) -> bool {
        self.end().is_some()
    }

    /// How otto-handler is told of this end; None: it is none.
    pub fn end(self) -> Option<NotifiedState> {
        match self {
            Self::Succeeded => Some(NotifiedState::Completed),
            Self::Failed => Some(NotifiedState::Failed),
            Self::Terminated => Some(NotifiedState::Terminated),
            Self::Unknown | Self::Queued | Self::Pending | Self::Running => None,
        }
    }
}

/// One worker. Times are Unix seconds, of its newest attempt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerRecord {
    /// From 1.
    pub index: u32,
    /// From 1; the pod's name follows from task, index and attempt.
    pub attempt: u32,
    pub phase: WorkerPhase,
    /// The attempt's pod, once seen. A pod whose record is final may be deleted
    /// once its logs are drained.
    pub uid: Option<String>,
    pub reason: String,
    pub message: String,
    pub exit_code: Option<i32>,
    pub node: String,
    pub ip: String,
    /// From then on it waited to be created.
    pub queued: Option<i64>,
    pub created: Option<i64>,
    /// It had a node.
    pub scheduled: Option<i64>,
    /// Its volumes and network were there; then its image was pulled.
    pub prepared: Option<i64>,
    pub started: Option<i64>,
    /// Its first line of log.
    pub first_line: Option<i64>,
    pub finished: Option<i64>,
    /// ScaleDown took this attempt: its pod may be deleted at once.
    pub stopping: bool,
    /// The last transition that otto-handler took.
    pub notified: Option<Notified>,
    /// Attempts before this one that otto-handler has not heard all of, oldest first.
    pub past: Vec<Past>,
    /// No pod of this attempt before this time (backoff).
    pub not_before: Option<i64>,
    /// Failures counted against the retry budget so far.
    pub failures: u32,
    /// Attempts before this one that ended before their container started, since one last
    /// did; they are free of the budget.
    pub tries: u32,
    /// The newest attempt whose pod went, or may go, before its last line of log was
    /// acknowledged.
    pub cut: Option<u32>,
}

/// A transition of an attempt, as otto-handler knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notified {
    pub attempt: u32,
    pub state: NotifiedState,
}

/// In the order in which an attempt passes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotifiedState {
    Created,
    Running,
    Completed,
    Failed,
    Terminated,
}

impl Notified {
    /// Whether a worker comes to `next` after this. An attempt has one end: the three
    /// ends are ordered for comparison, not in time.
    pub fn is_before(self, next: Self) -> bool {
        match next.attempt.cmp(&self.attempt) {
            Ordering::Greater => true,
            Ordering::Equal => next.state > self.state && !self.state.is_end(),
            Ordering::Less => false,
        }
    }

    /// The later one of two.
    pub fn latest(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let both = one.into_iter().chain(other);
        both.max_by_key(|n| (n.attempt, n.state))
    }
}

impl NotifiedState {
    pub const ALL: [Self; 5] = [
        Self::Created,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Terminated,
    ];

    pub fn is_end(self) -> bool {
        self >= Self::Completed
    }
}

/// A WorkerTask as the API server last told of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Task {
    pub name: String,
    pub uid: String,
    pub resource_version: u64,
    /// The annotation `ottoscaler.io/term`: the leader that sealed it.
    pub term: String,
    /// Unix seconds.
    pub created: i64,
    pub deleting: bool,
    pub spec: TaskSpec,
    pub status: TaskStatus,
    /// [`Task::stored_bytes`] while its maps were here.
    pub bytes: usize,
}

impl Task {
    /// What it takes in etcd, or may come to while it is not finished.
    pub fn stored_bytes(&self) -> usize {
        let records = self.status.workers.len();
        let workers = if self.status.phase.is_finished() {
            records * RECORD_BYTES
        } else {
            records.max(self.spec.top() as usize) * WORKER_BYTES
        };
        self.spec.bytes() + workers
    }

    /// Why it gets no pods: its name is not the one that its task id gives. Somebody else made
    /// it, for the names of its pods say whose they are.
    pub fn misnamed(&self) -> Option<String> {
        let name = names::task_name(&self.spec.task_id);
        (name != self.name)
            .then(|| format!("a WorkerTask of this taskId must have the name {name}"))
    }

    /// Drops what nobody asks an index for: a request's metadata and reason, and the build config of a
    /// task that gets no more pods.
    pub fn drop_maps(&mut self) {
        self.spec.metadata = BTreeMap::new();
        self.spec.reason = String::new();
        if self.status.phase.is_finished() {
            self.spec.build_config = BTreeMap::new();
        }
    }

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
