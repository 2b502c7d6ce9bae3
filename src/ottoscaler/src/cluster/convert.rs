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
    COMMIT_SHA, LOG_CHECKPOINT, LOG_EPOCH, POD_KEY, REPOSITORY, TASK_ID, TERM, TRACEPARENT,
    crd::WorkerTask,
};
use crate::domain::{
    containers::{
        ContainerSpec, ContainerState, ContainerStatus, PodFacts, RestartPolicy, RestartRule,
        Termination,
    },
    names,
    pod::{Pod, PodPhase},
    task::Task,
};

/// Bytes of an annotation that are read: a task id and the like have no more.
const MAX_TEXT: usize = 256;
/// The same of a log checkpoint.
const MAX_CHECKPOINT: usize = 1_024;

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
    #[serde(default)]
    pub active_deadline_seconds: Option<i64>,
    #[serde(default)]
    pub containers: Vec<ContainerView>,
    #[serde(default)]
    pub init_containers: Vec<ContainerView>,
}

/// When the kubelet starts a container again. Of the worker, and of init containers: the
/// status does not tell ordinary ones from native sidecars.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerView {
    pub name: String,
    pub restart_policy: Option<String>,
    pub restart_policy_rules: Vec<RestartRuleView>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RestartRuleView {
    pub exit_codes: ExitCodesView,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ExitCodesView {
    pub operator: String,
    pub values: Vec<i32>,
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
    #[serde(rename = "imageID")]
    pub image_id: String,
    pub state: ContainerStateView,
    pub last_state: ContainerStateView,
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

/// The condition of a pod that somebody ends.
const DISRUPTION: &str = "DisruptionTarget";

impl ConditionView {
    fn is(&self, kind: &str) -> bool {
        self.kind == kind && self.status == "True"
    }
}

fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// None for a pod that is not ours (the Go original's carry the same labels): ours
/// are owned by a WorkerTask, or by nobody and carry a leader's term, and have the name
/// that a worker of this task gets. That name is what says whose pod it is: labels and
/// annotations are anybody's to change, and are believed only where nothing depends on them.
pub fn pod(view: PodView) -> Option<Pod> {
    let PodView {
        metadata: meta,
        mut spec,
        mut status,
    } = view;
    let resource_version = version(&meta);
    let annotation = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key)).cloned();
    let text = |key: &str| annotation(key).filter(|text| text.len() <= MAX_TEXT);
    let told_id = text(TASK_ID);
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let (task, task_uid) = match owners.iter().find(|o| is_task(&o.api_version, &o.kind)) {
        Some(owner) => (owner.name.clone(), owner.uid.clone()),
        // Its task was deleted without it: it is left over, whatever task there is.
        None if owners.is_empty() && annotation(TERM).is_some() => {
            (names::task_name(told_id.as_ref()?), String::new())
        }
        None => return None,
    };
    let name = meta.name?;
    let (index, attempt) = names::parse_pod_name(&task, &name)?;
    let task_id = told_id.filter(|id| names::task_name(id) == task);
    let task_id = task_id.unwrap_or_else(|| task.clone());
    let key = meta.labels.as_ref().and_then(|labels| labels.get(POD_KEY));
    let foreign_key = key.filter(|key| **key != names::pod_key(&task_uid, index, attempt));
    let mut pod = Pod {
        name: Arc::from(name),
        uid: meta.uid?,
        foreign_key: foreign_key.map(|key| Box::from(key.as_str())),
        task: Arc::from(task),
        task_uid: Arc::from(task_uid),
        task_id: Arc::from(task_id),
        repository: Arc::from(text(REPOSITORY).unwrap_or_default()),
        commit_sha: Arc::from(text(COMMIT_SHA).unwrap_or_default()),
        index,
        attempt,
        resource_version,
        created: meta.creation_timestamp.map(|t| t.0.as_second()),
        node: std::mem::take(&mut spec.node_name),
        ip: std::mem::take(&mut status.pod_ip),
        deleting: meta.deletion_timestamp.is_some(),
        accepted: second(status.start_time.take()),
        grace: meta.deletion_grace_period_seconds.unwrap_or(0),
        // One that is too long is none, and is told as such by who reads it.
        checkpoint: annotation(LOG_CHECKPOINT).map(|text| {
            if text.len() <= MAX_CHECKPOINT {
                text
            } else {
                String::new()
            }
        }),
        log_epoch: annotation(LOG_EPOCH)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        traceparent: text(TRACEPARENT).map(Arc::from),
        ..Pod::default()
    };
    let conditions = std::mem::take(&mut status.conditions);
    read_containers(&mut pod, spec, status, &conditions);
    for condition in conditions {
        self::condition(&mut pod, condition);
    }
    Some(pod)
}

/// Whether an owner of this apiVersion and kind is a WorkerTask.
pub(super) fn is_task(api_version: &str, kind: &str) -> bool {
    kind == "WorkerTask" && api_version.starts_with("ottoscaler.io/")
}

fn second(time: Option<Time>) -> Option<i64> {
    time.map(|t| t.0.as_second())
}

/// What the containers say of the worker.
fn read_containers(
    pod: &mut Pod,
    spec: PodSpecView,
    status: PodStatusView,
    conditions: &[ConditionView],
) {
    let disruption = conditions.iter().find(|c| c.is(DISRUPTION));
    let of_kubelet = disruption.filter(|c| c.reason == "TerminationByKubelet");
    let facts = PodFacts {
        phase: phase(&status.phase),
        reason: status.reason,
        message: status.message,
        restart_policy: RestartPolicy::parse(&spec.restart_policy).unwrap_or_default(),
        deleting: pod.deleting,
        deadline: pod
            .accepted
            .zip(spec.active_deadline_seconds)
            .map(|(start, limit)| start.saturating_add(limit)),
        disrupted: disruption.is_some(),
        disrupted_since: of_kubelet.and_then(|c| second(c.last_transition_time.clone())),
        declared: spec.containers.into_iter().map(declared).collect(),
        declared_init: spec.init_containers.into_iter().map(declared).collect(),
        containers: status
            .container_statuses
            .into_iter()
            .map(container)
            .collect(),
        init_containers: status
            .init_container_statuses
            .into_iter()
            .map(container)
            .collect(),
    };
    let worker = facts.worker_state();
    pod.phase = worker.phase;
    pod.others_run = worker.others_run;
    pod.own_end = worker.own_end;
    pod.reason = worker.reason;
    pod.message = worker.message;
    pod.exit_code = worker.exit_code;
    pod.started = worker.started;
    pod.finished = worker.finished;
    pod.restart_count = worker.restart_count;
    pod.restarts = worker.restarts;
    pod.reran = worker.reran;
    pod.lost_status = worker.lost_status;
    pod.failed_init = worker.failed_init;
}

fn phase(text: &str) -> PodPhase {
    match text {
        "Running" => PodPhase::Running,
        "Succeeded" => PodPhase::Succeeded,
        "Failed" => PodPhase::Failed,
        "Unknown" => PodPhase::Unknown,
        _ => PodPhase::Pending,
    }
}

fn declared(view: ContainerView) -> ContainerSpec {
    let rules = view
        .restart_policy_rules
        .into_iter()
        .map(|rule| RestartRule {
            not_in: rule.exit_codes.operator == "NotIn",
            exit_codes: rule.exit_codes.values,
        });
    ContainerSpec {
        name: view.name,
        restart_policy: view
            .restart_policy
            .as_deref()
            .and_then(RestartPolicy::parse),
        rules: rules.collect(),
    }
}

fn container(view: ContainerStatusView) -> ContainerStatus {
    let ContainerStateView {
        waiting,
        running,
        terminated,
    } = view.state;
    let state = match (terminated, running, waiting) {
        (Some(end), ..) => ContainerState::Terminated(self::terminated(end)),
        (None, Some(running), _) => ContainerState::Running {
            started: second(running.started_at),
        },
        (None, None, waiting) => {
            let WaitingView { reason, message } = waiting.unwrap_or_default();
            ContainerState::Waiting { reason, message }
        }
    };
    ContainerStatus {
        name: view.name,
        restart_count: view.restart_count,
        was_created: !view.image_id.is_empty(),
        state,
        last: view.last_state.terminated.map(self::terminated),
    }
}

fn terminated(end: TerminatedView) -> Termination {
    // The zero time stands for a container that never ran.
    let ran = |time| second(time).filter(|at| *at > 0);
    Termination {
        exit_code: end.exit_code,
        reason: end.reason,
        message: end.message,
        started: ran(end.started_at),
        finished: ran(end.finished_at),
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
        (DISRUPTION, "True") if !pod.own_end => pod.disruption = Some(condition.reason),
        // The kubelet gives a reason where a container is not ready; the node
        // controller gives none.
        ("Ready", "False" | "Unknown")
            if pod.phase == PodPhase::Running
                && pod.started.is_some()
                && pod.finished.is_none()
                && condition.reason.is_empty() =>
        {
            pod.node_lost = second(condition.last_transition_time);
            pod.reason = "NodeLost".to_owned();
            pod.message = "its node has not been heard of".to_owned();
        }
        _ => {}
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
        bytes: 0,
    })
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
