//! A worker's pod as the API server last told of it.
use std::{collections::BTreeMap, sync::Arc};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PodPhase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    /// The node does not answer.
    Unknown,
}

impl PodPhase {
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// A compact record; only the fields that something here uses. Times are Unix
/// seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    /// Name and uid of the owning WorkerTask.
    pub task: Arc<str>,
    pub task_uid: Arc<str>,
    pub task_id: Arc<str>,
    pub repository: Arc<str>,
    pub index: u32,
    pub attempt: u32,
    /// Kubernetes lets resourceVersions of one resource be compared since 1.35
    /// (KEP-5504).
    pub resource_version: u64,
    pub phase: PodPhase,
    /// The pod's reason, else the worker container's (OOMKilled, Error,
    /// ImagePullBackOff …).
    pub reason: String,
    pub message: String,
    pub exit_code: Option<i32>,
    /// The worker container has run: there are logs to read.
    pub started: Option<i64>,
    pub finished: Option<i64>,
    pub created: Option<i64>,
    /// It has a node.
    pub scheduled: Option<i64>,
    /// Its volumes and network are there; images come next.
    pub prepared: Option<i64>,
    /// The kubelet has taken the pod.
    pub accepted: Option<i64>,
    /// Its deletion was asked for.
    pub deleted: Option<i64>,
    /// Why somebody else ends it: the reason of its DisruptionTarget condition
    /// (PreemptionByScheduler, EvictionByEvictionAPI …).
    pub disruption: Option<String>,
    /// Its node has not been heard of since then: the node controller says that a
    /// running container is not ready.
    pub node_lost: Option<i64>,
    pub container_id: String,
    pub restart_count: i32,
    pub node: String,
    pub ip: String,
    pub deleting: bool,
    /// The annotation `ottoscaler.io/log-checkpoint`.
    pub checkpoint: Option<String>,
    /// The annotation `ottoscaler.io/traceparent`: the task's trace.
    pub traceparent: Option<String>,
    pub labels: BTreeMap<String, String>,
}
