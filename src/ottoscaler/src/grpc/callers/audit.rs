//! One line of the log for each write that a caller asked for: who, what, of which task, and how it
//! ended.
use tonic::{Code, Status};

use super::{Caller, rights::Right};

/// The longest task id that is logged, in bytes. A valid one has at most 256.
const MAX_TASK_BYTES: usize = 256;

/// A `Write` is a write that a caller asked for, to be logged when it has ended.
#[derive(Debug)]
pub(in crate::grpc) struct Write {
    caller: String,
    method: &'static str,
    task: String,
    /// Whether another replica says that it forwarded the call, and so has logged it too.
    forwarded: bool,
}

impl Write {
    /// Takes the caller out of what the layer put into the extensions of a request.
    pub(in crate::grpc) fn new(
        method: &'static str,
        task: &str,
        extensions: &tonic::Extensions,
        is_marked: bool,
    ) -> Self {
        let caller = extensions.get::<Caller>();
        Self {
            caller: caller.map_or("-", |caller| &caller.name).to_owned(),
            method,
            task: if task.len() > MAX_TASK_BYTES {
                "-"
            } else {
                task
            }
            .to_owned(),
            forwarded: is_marked || caller.is_some_and(|caller| caller.hops > 0),
        }
    }

    /// Logs how it ended. The message of a status is not logged, because it may quote the request.
    pub(in crate::grpc) fn ended<T>(self, result: &Result<T, Status>) {
        let Self {
            caller,
            method,
            task,
            forwarded,
        } = self;
        let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        tracing::info!(caller, method, task, forwarded, result = ?code, "audit: write");
    }
}

/// Logs that a caller lacks a right.
pub(super) fn forbidden(right: Right, name: &str) {
    tracing::info!(caller = name, %right, "audit: the caller lacks the right");
}
