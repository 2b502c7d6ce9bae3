//! Conversions between protobuf messages and the types of `domain`.
use std::collections::HashMap;

use crate::{
    domain::{
        request::{Outcome, OutcomeKind, ScaleRequest},
        task::{Task, WorkerPhase},
        view::WorkerView,
    },
    index::Worker,
    proto,
};

pub(super) fn scale_request(
    wire: proto::ScaleRequest,
    request_id: String,
    traceparent: Option<String>,
) -> ScaleRequest {
    let proto::ScaleRequest {
        task_id,
        repository,
        commit_sha,
        worker_count,
        build_config,
        triggered_by,
        reason,
        metadata,
    } = wire;
    ScaleRequest {
        task_id,
        repository,
        commit_sha,
        worker_count,
        build_config: build_config.into_iter().collect(),
        triggered_by,
        reason,
        metadata: metadata.into_iter().collect(),
        request_id,
        traceparent,
    }
}

pub(super) fn scale_response(
    outcome: Outcome,
    started_at: jiff::Timestamp,
) -> proto::ScaleResponse {
    use proto::scale_response::Status;
    let status = match outcome.kind {
        OutcomeKind::Success => Status::Success,
        OutcomeKind::Partial => Status::PartialSuccess,
        OutcomeKind::AlreadyProcessed => Status::AlreadyProcessed,
    };
    proto::ScaleResponse {
        status: status.into(),
        message: outcome.message,
        processed_count: i32::try_from(outcome.processed).unwrap_or(i32::MAX),
        worker_pod_names: outcome.pod_names,
        started_at: started_at.to_string(),
        completed_at: jiff::Timestamp::now().to_string(),
        behind: false,
    }
}

pub(super) fn worker_status(worker: &Worker) -> proto::WorkerPodStatus {
    let Worker { task, view } = worker;
    with_labels(
        task,
        view.record.index,
        unlabelled_worker_status(task, view),
    )
}

/// Adds the labels of the worker's pod, which are derived from the task and the worker's index.
pub(super) fn with_labels(
    task: &Task,
    index: u32,
    status: proto::WorkerPodStatus,
) -> proto::WorkerPodStatus {
    proto::WorkerPodStatus {
        labels: task.worker_labels(index).into_iter().collect(),
        ..status
    }
}

/// Returns everything about a worker except its labels.
pub(super) fn unlabelled_worker_status(task: &Task, view: &WorkerView) -> proto::WorkerPodStatus {
    let WorkerView { pod_name, record } = view;
    proto::WorkerPodStatus {
        pod_name: pod_name.clone(),
        task_id: task.spec.task_id.clone(),
        status: view.state().as_str().to_owned(),
        created_at: rfc3339_or_empty(record.created),
        started_at: rfc3339_or_empty(record.started),
        completed_at: rfc3339_or_empty(record.finished),
        node_name: record.node.clone(),
        pod_ip: record.ip.clone(),
        labels: HashMap::new(),
        error_message: error_message(view),
        worker_index: i32::try_from(record.index).unwrap_or(i32::MAX),
        attempt: i32::try_from(record.attempt).unwrap_or(i32::MAX),
        exit_code: record.exit_code,
        queued_at: rfc3339_or_empty(record.queued),
        scheduled_at: rfc3339_or_empty(record.scheduled),
        prepared_at: rfc3339_or_empty(record.prepared),
        first_line_at: rfc3339_or_empty(record.first_line),
    }
}

/// Formats a time in seconds since the epoch as RFC 3339; a time that has not come yet is empty.
fn rfc3339_or_empty(seconds: Option<i64>) -> String {
    seconds
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .map(|t| t.to_string())
        .unwrap_or_default()
}

fn error_message(view: &WorkerView) -> String {
    let r = &view.record;
    if r.phase == WorkerPhase::Succeeded {
        return String::new();
    }
    let mut parts: Vec<String> = Vec::new();
    parts.extend((!r.reason.is_empty()).then(|| r.reason.clone()));
    parts.extend(
        r.exit_code
            .filter(|c| *c != 0)
            .map(|c| format!("exit code {c}")),
    );
    parts.extend((!r.message.is_empty()).then(|| r.message.clone()));
    parts.join(": ")
}
