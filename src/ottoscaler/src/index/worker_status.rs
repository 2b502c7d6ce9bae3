//! Converts a worker into the message that clients are sent.
use crate::{
    domain::{
        task::{Task, WorkerPhase},
        view::WorkerView,
    },
    proto::WorkerPodStatus,
};

/// Returns everything that clients are told of a worker. Equal workers give equal messages.
pub(super) fn worker_status(task: &Task, view: &WorkerView) -> WorkerPodStatus {
    let WorkerView { pod_name, record } = view;
    WorkerPodStatus {
        pod_name: pod_name.clone(),
        task_id: task.spec.task_id.clone(),
        status: view.state().as_str().to_owned(),
        created_at: rfc3339_or_empty(record.created),
        started_at: rfc3339_or_empty(record.started),
        completed_at: rfc3339_or_empty(record.finished),
        node_name: record.node.clone(),
        pod_ip: record.ip.clone(),
        labels: task.worker_labels(record.index),
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
pub(crate) fn rfc3339_or_empty(seconds: Option<i64>) -> String {
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
