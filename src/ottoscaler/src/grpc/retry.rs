//! When a refused call may be sent again, as stock clients read it.
//!
//! Invariants:
//! - Each UNAVAILABLE and RESOURCE_EXHAUSTED that leaves a port carries the metadata key
//!   `grpc-retry-pushback-ms`. It is the delay after which the call can succeed, and a RetryInfo in
//!   the details says the same; or it is -1, which means that the same call never succeeds, and
//!   there is no RetryInfo.
//! - No status of another code carries either of them.
//!
//! The constructors in `errors.rs` call [`advise`]. [`advise_headers`] does the same for every
//! response that leaves a port, so that a status made elsewhere, by tonic or by a replica of an
//! older version, is no exception.
use std::time::Duration;

use http::HeaderMap;
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::StatusExt as _;

/// The metadata key of the delay in milliseconds that a client's retry policy obeys. grpc-js,
/// grpc-go and gRPC core read this key and not the RetryInfo.
pub(super) const RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";
const NEVER: &str = "-1";

/// The reason of a call or stream that ends because its replica stops.
pub(super) const DRAINING: &str = "DRAINING";
/// The reason of a call for which this replica has no room.
pub(super) const BUSY: &str = "BUSY";
/// The reason of a ScaleUp for which the stored tasks leave no room.
pub(super) const STORAGE_FULL: &str = "STORAGE_FULL";

/// The delay after which a refused client shall try again. Overload, a start and a change of leader
/// that is orderly are over by then, and clients that all wait a second are no flood.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The delay after a refusal by a replica that stops. Another replica takes the call at once, but
/// the GOAWAY that leads the client there must have reached it.
const DRAINING_DELAY: Duration = Duration::from_millis(200);
/// The delay after a refusal because tasks take all the space that they may. Room comes when
/// workers finish and history is deleted, and the refused call has waited for that already.
const STORAGE_FULL_DELAY: Duration = Duration::from_secs(10);

/// An `Advice` is what a client shall do with a call that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Advice {
    RetryAfter(Duration),
    /// The same call never succeeds.
    GiveUp,
}

/// Returns what a status of this code and reason advises, or none when a client retries nothing.
fn advice(code: Code, reason: Option<&str>) -> Option<Advice> {
    match (code, reason) {
        (Code::Unavailable, Some(DRAINING)) => Some(Advice::RetryAfter(DRAINING_DELAY)),
        (Code::Unavailable, _) => Some(Advice::RetryAfter(RETRY_DELAY)),
        (Code::ResourceExhausted, Some(BUSY)) => Some(Advice::RetryAfter(RETRY_DELAY)),
        (Code::ResourceExhausted, Some(STORAGE_FULL)) => {
            Some(Advice::RetryAfter(STORAGE_FULL_DELAY))
        }
        // A message is too large, in this call as in the next one.
        (Code::ResourceExhausted, _) => Some(Advice::GiveUp),
        _ => None,
    }
}

/// Adds to a status when to retry, unless it says so already.
pub(super) fn advise(mut status: Status) -> Status {
    if status.metadata().contains_key(RETRY_PUSHBACK) {
        return status;
    }
    let mut details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    match advice(status.code(), reason) {
        None => status,
        Some(Advice::GiveUp) => {
            let never = MetadataValue::from_static(NEVER);
            status.metadata_mut().insert(RETRY_PUSHBACK, never);
            status
        }
        Some(Advice::RetryAfter(delay)) => {
            let delay = with_jitter(delay);
            details.set_retry_info(Some(delay));
            let mut metadata = std::mem::take(status.metadata_mut());
            let pushback = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            metadata.insert(RETRY_PUSHBACK, pushback.into());
            let (code, message) = (status.code(), status.message());
            Status::with_error_details_and_metadata(code, message, details, metadata)
        }
    }
}

/// Adds the same to the headers or trailers in which a call ends.
pub(super) fn advise_headers(headers: &mut HeaderMap) {
    let refused = [Code::Unavailable, Code::ResourceExhausted];
    let code = headers.get(Status::GRPC_STATUS);
    let is_refused = code.is_some_and(|code| refused.contains(&Code::from_bytes(code.as_bytes())));
    if !is_refused || headers.contains_key(RETRY_PUSHBACK) {
        return;
    }
    if let Some(status) = Status::from_header_map(headers) {
        // A status that headers cannot hold did not come out of them.
        let _ = advise(status).add_header(headers);
    }
}

/// Returns a delay between one and one and a half times this one, in whole milliseconds. A pushback
/// replaces the backoff of the client and its jitter, and clients that were refused together must
/// not come back together.
fn with_jitter(delay: Duration) -> Duration {
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(millis.saturating_add(fastrand::u64(..(millis / 2).max(1))))
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
