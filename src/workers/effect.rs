//! What the manager has under way, and how it ends.
use std::{future::Future, pin::Pin, sync::Arc};

use crate::election::is_fenced;

/// At most one of each is under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Create {
        task: Arc<str>,
        index: u32,
        attempt: u32,
    },
    Seal(Arc<str>),
    /// By pod uid.
    Delete(String),
    Status(Arc<str>),
    Forget(Arc<str>),
}

/// How an effect ended.
#[derive(Debug)]
pub(super) enum End {
    /// The index knows the result.
    Done,
    /// Something passing is in the way; plan again after a while.
    Later(String),
    /// The API server will never take it.
    Refused(String),
}

pub(super) type Running = Pin<Box<dyn Future<Output = End> + Send>>;

impl End {
    /// An exhaustive reading of what the API server can answer to a write.
    pub(super) fn of_error(error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Later(error.to_string());
        };
        let message = status.message.clone();
        match status.code {
            // A ResourceQuota: there is room again when other pods end.
            403 if message.contains("exceeded quota") => Self::Later(message),
            403 | 422 if is_fenced(&message) => Self::Later(message),
            400 | 403 | 422 => Self::Refused(message),
            _ => Self::Later(message),
        }
    }
}
