//! Conversion of API objects into the plain records of [`crate::domain`].
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

pub use super::pod_view::{
    ConditionView, ContainerStateView, ContainerStatusView, ContainerView, ExitCodesView,
    PodSpecView, PodStatusView, PodView, RestartRuleView, RunningView, TerminatedView, WaitingView,
};
use super::{
    COMMIT_SHA, LOG_CHECKPOINT, LOG_EPOCH, POD_KEY, REPOSITORY, TASK_ID, TERM, TRACEPARENT,
    crd::WorkerTask,
};
use crate::domain::{
    containers::{
        ContainerSpec, ContainerState, ContainerStatus, PodFacts, RestartPolicy, RestartRule,
        Termination, WorkerState,
    },
    names,
    pod::{Pod, PodPhase},
    task::Task,
};

/// The maximum length of an annotation's value, in bytes. The task id and the other values
/// that are written are not longer; a longer value is ignored.
const MAX_ANNOTATION_BYTES: usize = 256;
/// The maximum length of a log checkpoint, in bytes. Those that are written are far shorter; a
/// longer one was written by somebody else and is ignored.
const MAX_CHECKPOINT_BYTES: usize = 1_024;

/// The type of the condition that a pod has while an eviction, a preemption or its kubelet
/// ends it.
const DISRUPTION_TARGET: &str = "DisruptionTarget";

fn resource_version(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// Converts a worker's pod; returns `None` for a pod that is not a worker's.
///
/// A worker's pod is owned by a WorkerTask, or has no owner and carries a leader's term. In
/// both cases it has the name that the task's worker of some index and attempt gets. Labels
/// do not identify it, because pods of other programs carry the same ones. The name alone
/// determines the task, index and attempt: anybody may change labels and annotations, so they
/// are used only where no decision depends on them.
pub fn pod(view: PodView) -> Option<Pod> {
    let PodView {
        metadata: meta,
        mut spec,
        mut status,
    } = view;
    let resource_version = resource_version(&meta);
    let annotation = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key)).cloned();
    let text = |key: &str| annotation(key).filter(|text| text.len() <= MAX_ANNOTATION_BYTES);
    let annotated_id = text(TASK_ID);
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let (task, task_uid) = match owners.iter().find(|o| is_task(&o.api_version, &o.kind)) {
        Some(owner) => (owner.name.clone(), owner.uid.clone()),
        // Its task was deleted with the orphan policy. The pod is left over, even where
        // another task has the name by now.
        None if owners.is_empty() && annotation(TERM).is_some() => {
            (names::task_name(annotated_id.as_ref()?), String::new())
        }
        None => return None,
    };
    let name = meta.name?;
    let (index, attempt) = names::parse_pod_name(&task, &name)?;
    let task_id = annotated_id.filter(|id| names::task_name(id) == task);
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
        accepted: unix_seconds(status.start_time.take()),
        grace: meta.deletion_grace_period_seconds.unwrap_or(0),
        // A value that is too long becomes empty, which the reader of checkpoints reports as
        // malformed.
        checkpoint: annotation(LOG_CHECKPOINT).map(|text| {
            if text.len() <= MAX_CHECKPOINT_BYTES {
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
        apply_condition(&mut pod, condition);
    }
    Some(pod)
}

/// Reports whether an owner of this apiVersion and kind is a WorkerTask.
pub(super) fn is_task(api_version: &str, kind: &str) -> bool {
    kind == "WorkerTask" && api_version.starts_with("ottoscaler.io/")
}

fn unix_seconds(time: Option<Time>) -> Option<i64> {
    time.map(|t| t.0.as_second())
}

/// Sets the fields of `pod` that follow from its containers.
fn read_containers(
    pod: &mut Pod,
    spec: PodSpecView,
    status: PodStatusView,
    conditions: &[ConditionView],
) {
    let disruption = conditions.iter().find(|c| c.is(DISRUPTION_TARGET));
    let by_kubelet = disruption.filter(|c| c.reason == "TerminationByKubelet");
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
        disrupted_since: by_kubelet.and_then(|c| unix_seconds(c.last_transition_time.clone())),
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
    // Without `..`: a field that is added to `WorkerState` must be stored here too.
    let WorkerState {
        phase,
        others_run,
        own_end,
        reason,
        message,
        exit_code,
        started,
        finished,
        restart_count,
        reran,
        restarts,
        lost_status,
        failed_init,
    } = facts.worker_state();
    *pod = Pod {
        phase,
        others_run,
        own_end,
        reason,
        message,
        exit_code,
        started,
        finished,
        restart_count,
        reran,
        restarts,
        lost_status,
        failed_init,
        ..std::mem::take(pod)
    };
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
            started: unix_seconds(running.started_at),
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
    // The kubelet reports the zero time for a container that never ran.
    let ran = |time| unix_seconds(time).filter(|at| *at > 0);
    Termination {
        exit_code: end.exit_code,
        reason: end.reason,
        message: end.message,
        started: ran(end.started_at),
        finished: ran(end.finished_at),
    }
}

/// Sets the fields of `pod` that follow from one of its conditions.
fn apply_condition(pod: &mut Pod, condition: ConditionView) {
    match (condition.kind.as_str(), condition.status.as_str()) {
        ("PodScheduled", "False") if pod.phase == PodPhase::Pending && pod.reason.is_empty() => {
            pod.reason = condition.reason;
            pod.message = condition.message;
        }
        ("PodScheduled", "True") => pod.scheduled = unix_seconds(condition.last_transition_time),
        // The condition turns False when the pod ends; the time of preparation stays.
        ("PodReadyToStartContainers", "True") => {
            pod.prepared = unix_seconds(condition.last_transition_time);
        }
        (DISRUPTION_TARGET, "True") if !pod.own_end => pod.disruption = Some(condition.reason),
        // The node controller sets the condition without a reason when the node's heartbeats
        // stop; the kubelet gives a reason when a container is not ready.
        ("Ready", "False" | "Unknown")
            if pod.phase == PodPhase::Running
                && pod.started.is_some()
                && pod.finished.is_none()
                && condition.reason.is_empty() =>
        {
            pod.node_lost = unix_seconds(condition.last_transition_time);
            pod.reason = "NodeLost".to_owned();
            pod.message = "its node has not been heard of".to_owned();
        }
        _ => {}
    }
}

/// Converts a WorkerTask; returns `None` for an object without a name or uid, which the API
/// server never sends.
pub fn task(object: WorkerTask) -> Option<Task> {
    let meta = object.metadata;
    Some(Task {
        resource_version: resource_version(&meta),
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
