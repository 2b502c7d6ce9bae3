//! What the manager has under way, and how it ends.
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use super::batch;
use crate::{cluster::Loggable, domain::queue::Attempt, election::is_fenced};

/// However long the API server asks for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);

/// At most one of each is under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Create(Arc<str>, Attempt),
    Seal(Arc<str>),
    /// By pod uid.
    Delete(String),
    /// Pods that have ended, together.
    DeleteEnded(batch::Call),
    Status(Arc<str>),
    Forget(Arc<str>),
}

/// How an effect ended.
#[derive(Debug)]
pub(super) enum End {
    /// The index knows the result.
    Done,
    /// Something passing is in the way; plan again after a while. May be logged.
    Later(String),
    /// The API server has too much to do, or did not answer in time. `why` may be logged.
    Busy { why: String, retry_after: Duration },
    /// A ResourceQuota is used up: there is room again when other pods end.
    NoRoom(String),
    /// The API server will never take it.
    Refused(String),
}

pub(super) type Running = Pin<Box<dyn Future<Output = End> + Send>>;

impl End {
    /// What the log may say of it: refusals quote what the API server answered.
    pub(super) fn loggable(&self) -> &str {
        match self {
            Self::Later(why) | Self::Busy { why, .. } => why,
            Self::NoRoom(_) => "a quota is used up",
            Self::Refused(_) => "refused",
            Self::Done => "done",
        }
    }

    /// An exhaustive reading of what the API server can answer to a write.
    pub(super) fn of_error(error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Busy {
                why: Loggable(error).to_string(),
                retry_after: Duration::ZERO,
            };
        };
        let message = status.message.clone();
        let loggable = || Loggable(error).to_string();
        match status.code {
            403 if message.contains("exceeded quota") => Self::NoRoom(message),
            403 | 422 if is_fenced(&message) => Self::Later(loggable()),
            400 | 403 | 422 => Self::Refused(message),
            429 | 500..=599 => Self::Busy {
                why: loggable(),
                retry_after: retry_after(status),
            },
            _ => Self::Later(loggable()),
        }
    }
}

/// What the API server asks for, within reason.
fn retry_after(status: &kube::core::Status) -> Duration {
    let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    Duration::from_secs(seconds.into()).min(MAX_RETRY_AFTER)
}
