//! API objects → plain records of [`crate::domain`].
//!
//! [`PodView`] decodes only the fields that something here uses, straight from
//! the watch stream.
use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::Pod as K8sPod,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::Resource;
use serde::{Deserialize, Serialize};

use super::{
    ATTEMPT, COMMIT_SHA, LOG_CHECKPOINT, REPOSITORY, TASK_ID, TERM, TRACEPARENT, WORKER_INDEX,
    crd::WorkerTask,
};
use crate::domain::{
    names,
    pod::{Pod, PodPhase},
    task::Task,
};

/// A pod with the few fields of spec and status that matter.
#[derive(Debug, Clone, Deserialize, Serialize, Resource)]
#[resource(inherit = K8sPod)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    #[serde(deserialize_with = "lean")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PodSpecView,
    #[serde(default)]
    pub status: PodStatusView,
}

/// Leaves out who manages which field: most of an object, and nothing to us.
fn lean<'de, D: serde::Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Lean {
        name: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        deletion_grace_period_seconds: Option<i64>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
    }
    let lean = Lean::deserialize(from)?;
    Ok(ObjectMeta {
        name: lean.name,
        uid: lean.uid,
        resource_version: lean.resource_version,
        creation_timestamp: lean.creation_timestamp,
        deletion_timestamp: lean.deletion_timestamp,
        deletion_grace_period_seconds: lean.deletion_grace_period_seconds,
        labels: lean.labels,
        annotations: lean.annotations,
        owner_references: lean.owner_references,
        ..ObjectMeta::default()
    })
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpecView {
    #[serde(default)]
    pub node_name: String,
    #[serde(default)]
    pub restart_policy: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatusView {
    pub phase: String,
    pub reason: String,
    pub message: String,
    pub start_time: Option<Time>,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    pub container_statuses: Vec<ContainerStatusView>,
    pub init_container_statuses: Vec<ContainerStatusView>,
    pub conditions: Vec<ConditionView>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatusView {
    pub name: String,
    pub restart_count: i32,
    pub state: ContainerStateView,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ContainerStateView {
    pub waiting: Option<WaitingView>,
    pub running: Option<RunningView>,
    pub terminated: Option<TerminatedView>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct WaitingView {
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunningView {
    pub started_at: Option<Time>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TerminatedView {
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConditionView {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: Option<Time>,
}

fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// None for a pod that is not ours (the Go original's carry the same labels): ours
/// are owned by a WorkerTask, or by nobody and carry a leader's term.
pub fn pod(view: PodView) -> Option<Pod> {
    let PodView {
        metadata: meta,
        spec,
        status,
    } = view;
    let resource_version = version(&meta);
    let annotation = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key)).cloned();
    let task_id = annotation(TASK_ID)?;
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let (task, task_uid) = match owners.iter().find(|o| is_task(o)) {
        Some(owner) => (owner.name.clone(), owner.uid.clone()),
        // Its task was deleted without it: it is left over, whatever task there is.
        None if owners.is_empty() && annotation(TERM).is_some() => {
            (names::task_name(&task_id), String::new())
        }
        None => return None,
    };
    let labels = meta.labels.unwrap_or_default();
    let number = |key: &str| labels.get(key).and_then(|v| v.parse().ok());
    let mut pod = Pod {
        name: Arc::from(meta.name?),
        uid: meta.uid?,
        task: Arc::from(task),
        task_uid: Arc::from(task_uid),
        task_id: Arc::from(task_id),
        repository: Arc::from(annotation(REPOSITORY).unwrap_or_default()),
        commit_sha: Arc::from(annotation(COMMIT_SHA).unwrap_or_default()),
        index: number(WORKER_INDEX)?,
        attempt: number(ATTEMPT).unwrap_or(1),
        resource_version,
        phase: match status.phase.as_str() {
            "Running" => PodPhase::Running,
            "Succeeded" => PodPhase::Succeeded,
            "Failed" => PodPhase::Failed,
            "Unknown" => PodPhase::Unknown,
            _ => PodPhase::Pending,
        },
        reason: status.reason,
        message: status.message,
        created: meta.creation_timestamp.map(|t| t.0.as_second()),
        restarts: !matches!(spec.restart_policy.as_str(), "" | "Never"),
        node: spec.node_name,
        ip: status.pod_ip,
        deleting: meta.deletion_timestamp.is_some(),
        // The timestamp is when the grace period ends.
        deleted: second(meta.deletion_timestamp)
            .map(|at| at - meta.deletion_grace_period_seconds.unwrap_or(0)),
        accepted: second(status.start_time),
        checkpoint: annotation(LOG_CHECKPOINT),
        traceparent: annotation(TRACEPARENT).map(Arc::from),
        ..Pod::default()
    };
    if let Some(worker) = status
        .container_statuses
        .into_iter()
        .find(|c| c.name == "worker")
    {
        container(&mut pod, worker);
    }
    if pod.exit_code.is_none() {
        init_container(&mut pod, status.init_container_statuses);
    }
    for condition in status.conditions {
        self::condition(&mut pod, condition);
    }
    Some(pod)
}

fn is_task(owner: &OwnerReference) -> bool {
    owner.kind == "WorkerTask" && owner.api_version.starts_with("ottoscaler.io/")
}

fn second(time: Option<Time>) -> Option<i64> {
    time.map(|t| t.0.as_second())
}

/// An init container that failed is why the worker never ran.
fn init_container(pod: &mut Pod, statuses: Vec<ContainerStatusView>) {
    for status in statuses {
        let name = status.name;
        match (status.state.terminated, status.state.waiting) {
            (Some(end), _) if end.exit_code != 0 => {
                pod.exit_code = Some(end.exit_code);
                pod.reason = format!("Init:{}", end.reason);
                pod.message = format!("init container {name}: {}", end.message);
                pod.finished = second(end.finished_at).filter(|s| *s > 0);
                // Where it ran at all.
                let ran = second(end.started_at).is_some_and(|s| s > 0);
                pod.failed_init = ran.then(|| name.into());
                return;
            }
            (None, Some(waiting)) if waiting.reason != "PodInitializing" => {
                pod.reason = waiting.reason;
                pod.message = format!("init container {name}: {}", waiting.message);
                return;
            }
            _ => {}
        }
    }
}

fn condition(pod: &mut Pod, condition: ConditionView) {
    match (condition.kind.as_str(), condition.status.as_str()) {
        ("PodScheduled", "False") if pod.phase == PodPhase::Pending && pod.reason.is_empty() => {
            pod.reason = condition.reason;
            pod.message = condition.message;
        }
        ("PodScheduled", "True") => pod.scheduled = second(condition.last_transition_time),
        // Told again, and False, when it ends.
        ("PodReadyToStartContainers", "True") => {
            pod.prepared = second(condition.last_transition_time);
        }
        ("DisruptionTarget", "True") => pod.disruption = Some(condition.reason),
        // The kubelet gives a reason where a container is not ready; the node
        // controller gives none.
        ("Ready", "False" | "Unknown")
            if pod.phase == PodPhase::Running
                && pod.started.is_some()
                && pod.finished.is_none()
                && condition.reason.is_empty()
                && !pod.deleting =>
        {
            pod.node_lost = second(condition.last_transition_time);
            pod.reason = "NodeLost".to_owned();
            pod.message = "its node has not been heard of".to_owned();
        }
        _ => {}
    }
}

/// The pod's own reason (Evicted …) wins over its container's.
fn container(pod: &mut Pod, status: ContainerStatusView) {
    pod.restart_count = status.restart_count;
    let (reason, message) = match (status.state.terminated, status.state.waiting) {
        (Some(end), _) => {
            pod.exit_code = Some(end.exit_code);
            // The zero time stands for a container that never ran.
            pod.started = second(end.started_at).filter(|s| *s > 0);
            pod.finished = second(end.finished_at).filter(|s| *s > 0);
            let reason = if end.reason == "Completed" {
                String::new()
            } else {
                end.reason
            };
            (reason, end.message)
        }
        (None, Some(waiting)) => (
            if waiting.reason == "ContainerCreating" {
                String::new()
            } else {
                waiting.reason
            },
            waiting.message,
        ),
        (None, None) => {
            pod.started = status.state.running.and_then(|r| second(r.started_at));
            Default::default()
        }
    };
    if pod.reason.is_empty() {
        pod.reason = reason;
        if pod.message.is_empty() {
            pod.message = message;
        }
    }
}

/// None for an object without a name or uid: the API server sends none such.
pub fn task(object: WorkerTask) -> Option<Task> {
    let meta = object.metadata;
    Some(Task {
        resource_version: version(&meta),
        name: meta.name?,
        uid: meta.uid?,
        term: meta
            .annotations
            .as_ref()
            .and_then(|a| a.get(TERM))
            .cloned()
            .unwrap_or_default(),
        created: meta.creation_timestamp.map_or(0, |t| t.0.as_second()),
        deleting: meta.deletion_timestamp.is_some(),
        spec: object.spec.0,
        status: object.status.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn decode(status: serde_json::Value) -> Pod {
        let view = json!({
            "metadata": {
                "name": "otto-agent-t-2", "uid": "u", "resourceVersion": "7",
                "ownerReferences": [{"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask", "name": "t", "uid": "tu"}],
                "labels": {"worker-index": "2", "ottoscaler.io/attempt": "1"},
                "annotations": {"ottoscaler.io/task-id": "T"},
            },
            "status": status,
        });
        pod(serde_json::from_value(view).unwrap()).unwrap()
    }

    #[test]
    fn an_exit_code_is_kept() {
        let p = decode(
            json!({"phase": "Failed", "containerStatuses": [{"name": "worker", "state": {
            "terminated": {"exitCode": 7, "reason": "Error", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:09Z"}}}]}),
        );
        assert_eq!(
            (p.phase, p.exit_code, p.reason.as_str()),
            (PodPhase::Failed, Some(7), "Error")
        );
        assert_eq!(p.finished.unwrap() - p.started.unwrap(), 9);
    }

    #[test]
    fn a_waiting_container_says_why() {
        let p = decode(
            json!({"phase": "Pending", "containerStatuses": [{"name": "worker", "state": {
            "waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}),
        );
        assert_eq!((p.reason.as_str(), p.started), ("ImagePullBackOff", None));
    }

    #[test]
    fn an_init_container_that_failed_tells_why() {
        let p = decode(json!({"phase": "Failed",
            "initContainerStatuses": [{"name": "mesh", "state": {"terminated": {"exitCode": 3, "reason": "Error", "startedAt": "2026-01-01T00:00:00Z"}}}],
            "containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "PodInitializing"}}}]}));
        assert_eq!((p.exit_code, p.reason.as_str()), (Some(3), "Init:Error"));
        assert!(p.message.contains("mesh") && p.started.is_none());
        assert!(p.has_logs() && p.container() == "mesh");
    }

    #[test]
    fn a_running_container_that_is_not_ready_is_on_a_lost_node() {
        let status = |ready: &str, reason: &str| {
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready, "reason": reason, "lastTransitionTime": "2026-01-01T00:00:07Z"}],
                "containerStatuses": [{"name": "worker", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]})
        };
        let lost = decode(status("False", ""));
        assert_eq!(lost.node_lost.unwrap() - lost.started.unwrap(), 7);
        assert_eq!(decode(status("True", "")).node_lost, None);
        assert_eq!(
            decode(status("False", "ContainersNotReady")).node_lost,
            None
        );
    }

    #[test]
    fn a_disruption_is_told_by_its_condition() {
        let p = decode(
            json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
            "containerStatuses": [{"name": "worker", "state": {"terminated": {"exitCode": 143, "reason": "Error"}}}]}),
        );
        assert_eq!(p.disruption.as_deref(), Some("PreemptionByScheduler"));
    }

    #[test]
    fn a_pod_without_our_owner_or_term_is_not_ours() {
        let decode = |annotations: &serde_json::Value, owner: &str| {
            let mut view = json!({"metadata": {"name": "otto-agent-t-1", "uid": "u",
                "labels": {"worker-index": "1"}, "annotations": annotations}});
            if let Some((version, kind)) = owner.split_once(' ') {
                view["metadata"]["ownerReferences"] =
                    json!([{"apiVersion": version, "kind": kind, "name": "t", "uid": "tu"}]);
            }
            pod(serde_json::from_value(view).unwrap())
        };
        assert_eq!(decode(&json!({}), ""), None);
        let named = json!({"ottoscaler.io/task-id": "t"});
        assert_eq!(decode(&named, ""), None);
        assert_eq!(decode(&named, "example.com/v1 WorkerTask"), None);
        assert!(decode(&named, "ottoscaler.io/v1alpha1 WorkerTask").is_some());
        // A copy of a worker's metadata, as in somebody's Job.
        let left = json!({"ottoscaler.io/task-id": "t", "ottoscaler.io/term": "u/1/h"});
        assert_eq!(decode(&left, "batch/v1 Job"), None);
        let left = decode(&left, "").unwrap();
        assert_eq!((&*left.task, &*left.task_uid), ("t", ""));
    }
}
