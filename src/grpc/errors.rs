//! Refusals as gRPC errors that tell the client what it can do.
//!
//! INVALID_ARGUMENT carries a BadRequest for each field, UNAVAILABLE a RetryInfo;
//! NOT_LEADER is the reason of an ErrorInfo, so that a follower knows to look
//! again.
use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::domain::request::Refusal;

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

/// A failure of the hop is not the client's: it hears that it may try again, as
/// from a replica.
pub(super) fn of_hop(status: Status) -> Status {
    match status.get_details_error_info() {
        Some(_) => status,
        None => not_leader(format!("the leader did not answer: {}", status.message())),
    }
}

fn unavailable(reason: &str, message: String) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    details.set_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(Code::Unavailable, message, details)
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
