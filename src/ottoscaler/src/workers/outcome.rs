//! The API server's answers to writes are classified here, and nowhere else.
use std::time::Duration;

use super::tuning::MAX_RETRY_AFTER;
use crate::{
    cluster::Loggable,
    domain::refusal::{self, Answer, By, Refusal},
    election::is_fenced,
};

/// A `WriteResult` says how a write ended.
#[derive(Debug)]
pub(super) enum WriteResult {
    /// The index knows the result, or its watch will tell.
    Done,
    /// Something that passes is in the way; the next plan asks again. The text may be logged.
    Retry(String),
    /// The API server has too much to do, or did not answer in time. `why` may be logged.
    Busy { why: String, retry_after: Duration },
    /// Somebody refused a create.
    Refused(Refusal),
}

impl WriteResult {
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Returns what the log may say of it; refusals quote what the API server answered.
    pub(super) fn loggable(&self) -> &str {
        match self {
            Self::Retry(why) | Self::Busy { why, .. } => why,
            Self::Refused(_) => "refused",
            Self::Done => "done",
        }
    }

    /// Classifies the answer to a write of something that exists already. No refusal of it
    /// is final: what is to be written was right a moment ago, and whoever refuses it (RBAC
    /// while an API server starts, a webhook, a policy) may let it pass later.
    pub(super) fn of_write(error: &kube::Error) -> Self {
        match Self::of_create(error) {
            Self::Refused(_) => Self::Retry(Loggable(error).to_string()),
            result => result,
        }
    }

    /// Classifies the answer to a create.
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

/// Classifies a refusal.
pub(super) fn judge(status: &kube::core::Status) -> Refusal {
    let causes = status.details.iter().flat_map(|d| &d.causes);
    let causes: Vec<&str> = causes.map(|cause| cause.reason.as_str()).collect();
    refusal::judge(Answer {
        code: status.code,
        reason: &status.reason,
        message: &status.message,
        causes: &causes,
        is_fenced: is_fenced(status),
    })
}

/// Returns how long the API server asks to wait, within [`MAX_RETRY_AFTER`].
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
            let result = WriteResult::of_write(&answered(code, message));
            assert!(matches!(result, WriteResult::Retry(_)), "{result:?}");
        }
        let result = WriteResult::of_write(&answered(429, "Too many requests"));
        assert!(matches!(result, WriteResult::Busy { .. }), "{result:?}");
    }

    #[test]
    fn a_refused_create_says_who_refused() {
        let quota = "pods \"p\" is forbidden: status unknown for quota: q, resources: pods";
        let result = WriteResult::of_create(&answered(403, quota));
        assert!(
            matches!(&result, WriteResult::Refused(refusal) if refusal.by == By::Quota),
            "{result:?}"
        );
    }
}
