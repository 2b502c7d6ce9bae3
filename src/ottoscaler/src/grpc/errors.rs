//! Refusals as gRPC errors that tell the client what it can do.
//!
//! INVALID_ARGUMENT carries a BadRequest for each field; UNAVAILABLE and, where
//! there will be room again, RESOURCE_EXHAUSTED a RetryInfo. NOT_LEADER is the reason
//! of an ErrorInfo, so that a follower knows to look again.
use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::domain::request::Refusal;
use crate::proto::MAX_ANSWER;

const DOMAIN: &str = "ottoscaler.io";
const NOT_LEADER: &str = "NOT_LEADER";
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Puts the outcome of a call on its span. The message stays out of the log: it quotes the
/// request.
pub(super) fn answered<T>(result: Result<T, Status>) -> Result<T, Status> {
    let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
    tracing::Span::current().record("rpc.response.status_code", format!("{code:?}"));
    if result.is_err() {
        tracing::info!(?code, "call refused");
    }
    result
}

pub(super) fn status(refusal: Refusal) -> Status {
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
        Refusal::Exhausted(_) => Status::resource_exhausted(message),
        Refusal::Failed(_) => Status::failed_precondition(message),
    }
}

pub(super) fn not_leader(message: impl Into<String>) -> Status {
    unavailable(NOT_LEADER, message.into())
}

/// Whether a leader said this of the call itself, rather than that there is none.
pub(super) fn is_leaders_word(status: &Status) -> bool {
    status
        .get_details_error_info()
        .is_some_and(|info| info.reason != NOT_LEADER)
}

/// A failure of the hop is not the client's: it hears that it may try again, as
/// from a replica.
pub(super) fn of_hop(status: Status) -> Status {
    match status.get_details_error_info() {
        Some(_) => status,
        None => not_leader(format!("the leader did not answer: {}", status.message())),
    }
}

fn unavailable(reason: &str, message: String) -> Status {
    again(Code::Unavailable, reason, message)
}

/// This replica has no room for the call now.
pub(super) fn exhausted(message: impl Into<String>) -> Status {
    again(Code::ResourceExhausted, "BUSY", message.into())
}

/// An answer that the client would refuse.
pub(super) fn too_long(workers: usize, bytes: usize, longest: usize) -> Status {
    let message = format!(
        "the answer for {workers} workers has {bytes} bytes, of which gRPC clients take {longest}: \
         select by task_id or status_filter, or let the client take more and say so in the \
         metadata {MAX_ANSWER}"
    );
    let metadata = HashMap::from([("bytes".to_owned(), bytes.to_string())]);
    let details = ErrorDetails::with_error_info("ANSWER_TOO_LONG", DOMAIN, metadata);
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// This replica has not seen the cluster yet: it can answer no reader.
pub(super) fn not_synced() -> Status {
    let message = "this replica has not seen the cluster yet; try again, or another replica";
    unavailable("NOT_SYNCED", message.to_owned())
}

/// The same call may succeed later.
fn again(code: Code, reason: &str, message: String) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    details.set_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// Whether a replica that answered so may be asked again, or another one: the
/// call is idempotent, and the peer or the way to it was at fault.
pub(super) fn is_passing(code: Code) -> bool {
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
