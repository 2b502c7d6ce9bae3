//! What the manager has under way, and how it ends.
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use super::batch;
use crate::{
    cluster::Loggable,
    domain::{
        queue::Attempt,
        refusal::{self, Answer, By, Refusal},
    },
    election::is_fenced,
};

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
    /// Of a create: somebody refused it.
    Refused(Refusal),
}

pub(super) type Running = Pin<Box<dyn Future<Output = End> + Send>>;

impl End {
    /// What the log may say of it: refusals quote what the API server answered.
    pub(super) fn loggable(&self) -> &str {
        match self {
            Self::Later(why) | Self::Busy { why, .. } => why,
            Self::Refused(_) => "refused",
            Self::Done => "done",
        }
    }

    /// What the API server answered to a write of something that exists already. No refusal
    /// of it is for good: what is to be written was right a moment ago, and whoever refuses
    /// it (RBAC while an API server starts, a webhook, a policy) may let it pass later.
    pub(super) fn of_error(error: &kube::Error) -> Self {
        match Self::of_create(error) {
            Self::Refused(_) => Self::Later(Loggable(error).to_string()),
            end => end,
        }
    }

    /// What the API server answered to a create.
    pub(super) fn of_create(error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Busy {
                why: Loggable(error).to_string(),
                retry_after: Duration::ZERO,
            };
        };
        let refusal = judge(status);
        match refusal.by {
            By::Server => Self::Busy {
                why: Loggable(error).to_string(),
                retry_after: retry_after(status),
            },
            _ => Self::Refused(refusal),
        }
    }
}

/// Reads a refusal.
pub(super) fn judge(status: &kube::core::Status) -> Refusal {
    let causes = status.details.iter().flat_map(|d| &d.causes);
    let causes: Vec<&str> = causes.map(|cause| cause.reason.as_str()).collect();
    refusal::judge(Answer {
        code: status.code,
        reason: &status.reason,
        message: &status.message,
        causes: &causes,
        is_fenced: is_fenced(&status.message),
    })
}

/// What the API server asks for, within reason.
fn retry_after(status: &kube::core::Status) -> Duration {
    let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    Duration::from_secs(seconds.into()).min(MAX_RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16, message: &str) -> kube::Error {
        let status = kube::core::Status::failure(message, "").with_code(code);
        kube::Error::Api(status.boxed())
    }

    /// As an API server answers for some seconds after its restart.
    #[test]
    fn no_refusal_of_a_status_a_seal_or_a_delete_is_final() {
        let user = "workertasks.ottoscaler.io \"t\" is forbidden: User \"o\" cannot patch resource \"workertasks/status\"";
        for (code, message) in [
            (403, user),
            (401, "Unauthorized"),
            (
                403,
                "pods \"p\" is forbidden: not yet ready to handle request",
            ),
            (422, "admission webhook \"w\" denied the request: no"),
        ] {
            let end = End::of_error(&answered(code, message));
            assert!(matches!(end, End::Later(_)), "{end:?}");
        }
        let end = End::of_error(&answered(429, "Too many requests"));
        assert!(matches!(end, End::Busy { .. }), "{end:?}");
    }

    #[test]
    fn a_refused_create_says_who_refused() {
        let quota = "pods \"p\" is forbidden: status unknown for quota: q, resources: pods";
        let end = End::of_create(&answered(403, quota));
        assert!(
            matches!(&end, End::Refused(refusal) if refusal.by == By::Quota),
            "{end:?}"
        );
    }
}
