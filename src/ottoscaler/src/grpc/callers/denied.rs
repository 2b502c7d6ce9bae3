//! The statuses of calls whose caller is not known or lacks a right.
//!
//! No message quotes a token.
use std::collections::HashMap;

use tonic::{Code, Status};

use super::{
    super::errors::{self, with_reason},
    rights::Right,
};

/// Returns the status of a call without a token.
pub(super) fn no_token() -> Status {
    let message = "the call has no bearer token: send one in the metadata key authorization \
                   (ottoctl --token-file)";
    with_reason(Code::Unauthenticated, "NO_TOKEN", message, HashMap::new())
}

/// Returns the status of a call whose token is nobody's, has expired or is for another audience.
pub(super) fn bad_token() -> Status {
    let message = "the token is not valid here: it is unknown, has expired or is for another \
                   audience";
    with_reason(Code::Unauthenticated, "BAD_TOKEN", message, HashMap::new())
}

/// Returns the status of a call whose caller lacks a right.
pub(super) fn forbidden(name: &str, right: Right) -> Status {
    let message = format!("{name} may not {right} of ottoscaler.io (docs/callers.md)");
    let resource = match right.subresource {
        "" => right.resource.to_owned(),
        subresource => format!("{}/{subresource}", right.resource),
    };
    let metadata = HashMap::from([
        ("verb".to_owned(), right.verb.to_owned()),
        ("resource".to_owned(), resource),
    ]);
    with_reason(Code::PermissionDenied, "FORBIDDEN", &message, metadata)
}

/// Returns the status of a call to a path that is no method of ours.
pub(super) fn unknown_method() -> Status {
    let message = "this version of Ottoscaler has no such method";
    let none = HashMap::new();
    with_reason(Code::Unimplemented, "UNKNOWN_METHOD", message, none)
}

/// Returns the status of a call whose caller the API server must be asked about, and cannot.
pub(super) fn cannot_review() -> Status {
    let message = "the API server cannot be asked about the token now; try again";
    errors::unavailable("CALLER_NOT_REVIEWED", message.to_owned())
}
