//! The gRPC statuses of refused calls. Their details say what the client can do.
//!
//! INVALID_ARGUMENT carries a BadRequest with each wrong field. UNAVAILABLE and RESOURCE_EXHAUSTED
//! say when to retry (`retry.rs`). An ErrorInfo with the reason NOT_LEADER makes the follower that
//! forwarded the call look for the leader again.
use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::retry::{self, BUSY, DRAINING, STORAGE_FULL};
use crate::domain::{request::Refusal, violation::Violation};
use crate::proto::MAX_RESPONSE_BYTES_KEY;

const DOMAIN: &str = "ottoscaler.io";
const NOT_LEADER: &str = "NOT_LEADER";
const NOT_FINISHED: &str = "NOT_FINISHED";

/// Records the status code of a call on its span. The message is not logged, because it quotes
/// the request.
pub(super) fn record_outcome<T>(result: Result<T, Status>) -> Result<T, Status> {
    let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
    tracing::Span::current().record("rpc.response.status_code", format!("{code:?}"));
    if result.is_err() {
        tracing::info!(?code, "call refused");
    }
    result
}

pub(super) fn from_refusal(refusal: Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::Invalid(violations) => {
            let first = violations
                .first()
                .map(|v| format!("{message}: {} {}", v.field, v.description));
            let fields: Vec<FieldViolation> = violations
                .into_iter()
                .map(|v| FieldViolation::new(v.field, v.description))
                .collect();
            let details = ErrorDetails::with_bad_request(fields);
            Status::with_error_details(Code::InvalidArgument, first.unwrap_or(message), details)
        }
        Refusal::Conflict { fields, .. } => {
            let metadata = HashMap::from([("fields".to_owned(), fields.join(","))]);
            let details = ErrorDetails::with_error_info("TASK_DIFFERS", DOMAIN, metadata);
            Status::with_error_details(Code::AlreadyExists, message, details)
        }
        Refusal::NoSuchTask(_) => Status::not_found(message),
        Refusal::Unavailable(_) => unavailable("UNAVAILABLE", message),
        Refusal::NotLeader => not_leader(message),
        Refusal::Exhausted(_) => with_reason(
            Code::ResourceExhausted,
            STORAGE_FULL,
            &message,
            HashMap::new(),
        ),
        Refusal::Failed(_) => Status::failed_precondition(message),
    }
}

pub(super) fn not_leader(message: impl Into<String>) -> Status {
    unavailable(NOT_LEADER, message.into())
}

/// Reports whether a leader said this about the call itself, rather than a replica that found no
/// leader.
pub(super) fn is_from_leader(status: &Status) -> bool {
    status
        .get_details_error_info()
        .is_some_and(|info| info.reason != NOT_LEADER && info.reason != DRAINING)
}

/// Returns the status of a held call whose replica stops.
pub(super) fn stopping() -> Status {
    unavailable(DRAINING, "this replica stops; try again".to_owned())
}

/// Returns the status of a call whose time passed while a leader worked on it.
pub(super) fn not_finished_in_time() -> Status {
    let message = "the leader works on the request and did not finish within the deadline of the \
                   call; repeat the call with the same request_id and a longer deadline";
    with_reason(
        Code::DeadlineExceeded,
        NOT_FINISHED,
        message,
        HashMap::new(),
    )
}

/// Turns a failure of the connection to the leader into a status that the client can retry. A
/// status with an ErrorInfo was made by a replica and stays as it is.
pub(super) fn from_hop(status: Status) -> Status {
    match status.get_details_error_info() {
        Some(_) => status,
        None => not_leader(format!("the leader did not answer: {}", status.message())),
    }
}

/// Reports whether a leader refused the replica that forwarded a call, rather than the call, whose
/// rights that replica has checked already.
pub(super) fn is_about_the_hop(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::PermissionDenied)
}

/// Returns the status of a call whose hop the leader refused. It is not the client's fault: the
/// leader may have older rights, or another configuration.
pub(super) fn hop_refused(status: &Status) -> Status {
    not_leader(format!(
        "the leader refused the call of this replica ({}); do all replicas have the same callers \
         and certificates?",
        status.message()
    ))
}

/// Returns the status of a call that this replica cannot answer now.
pub(super) fn unavailable(reason: &str, message: String) -> Status {
    with_reason(Code::Unavailable, reason, &message, HashMap::new())
}

/// Returns the status of a call for which this replica has no room now.
pub(super) fn resource_exhausted(message: impl Into<String>) -> Status {
    with_reason(
        Code::ResourceExhausted,
        BUSY,
        &message.into(),
        HashMap::new(),
    )
}

/// Returns the status of a call to which no response fits into what its client accepts.
pub(super) fn worker_too_large(bytes: usize, limit: usize) -> Status {
    let message = format!(
        "the next worker has {bytes} bytes, and the client accepts {limit}: let it accept more, \
         and say so in the metadata {MAX_RESPONSE_BYTES_KEY}"
    );
    let metadata = HashMap::from([("bytes".to_owned(), bytes.to_string())]);
    with_reason(
        Code::ResourceExhausted,
        "ANSWER_TOO_LONG",
        &message,
        metadata,
    )
}

/// Makes a status with an ErrorInfo, and says when to retry.
pub(super) fn with_reason(
    code: Code,
    reason: &str,
    message: &str,
    metadata: HashMap<String, String>,
) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    retry::advise(Status::with_error_details(code, message, details))
}

/// Returns the status of a request with a field whose value is wrong.
pub(super) fn invalid(field: &str, reason: &str) -> Status {
    from_refusal(Refusal::Invalid(vec![Violation {
        field: field.to_owned(),
        description: reason.to_owned(),
    }]))
}

/// Returns the status of a read while this replica has not listed the cluster yet.
pub(super) fn not_synced() -> Status {
    let message = "this replica has not seen the cluster yet; try again, or another replica";
    unavailable("NOT_SYNCED", message.to_owned())
}

/// Returns the status that ends a stream when this replica drains or its connection closes.
pub(super) fn draining() -> Status {
    let message = "this replica stops or the connection is too old; open the stream again";
    unavailable(DRAINING, message.to_owned())
}

/// Gives a status of the log viewer, which knows no details, its reason.
pub(super) fn from_viewer(status: Status) -> Status {
    match status.code() {
        Code::Unavailable => unavailable(DRAINING, status.message().to_owned()),
        Code::ResourceExhausted => resource_exhausted(status.message()),
        _ => status,
    }
}

/// Reports whether an idempotent call that ended with this code may be sent again, to the same
/// replica or another one, because the peer or the connection was at fault and not the call.
pub(super) fn is_retryable(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::Aborted
        | Code::DeadlineExceeded
        | Code::Internal => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}
