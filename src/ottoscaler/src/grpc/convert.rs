//! Conversions between protobuf messages and the types of `domain`.
use crate::{
    domain::request::{Outcome, OutcomeKind, ScaleRequest},
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
        caller: None,
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

/// Converts a number of objects; proto3 has it signed.
pub(super) fn count(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}
