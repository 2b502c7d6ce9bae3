//! The ValidatingAdmissionPolicy with which the API server refuses writes of a former leader.
use kube::core::Status;
use serde_json::{Value, json};

/// The `reason` of the cause with which the fence marks a refusal by the policy.
const MARK: &str = "FencedTerm";

/// Where a write carries the term, and which policy compares it with the Lease.
///
/// The policy is the cluster administrator's to install; `examples/fence.rs` shows one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FencePolicy {
    pub(crate) name: Option<String>,
    pub(crate) status_field: Option<String>,
}

impl FencePolicy {
    /// Stamps writes although no policy judges them. They are then fenced by the clock and by
    /// `resourceVersion` only.
    pub fn none() -> Self {
        Self {
            name: None,
            status_field: None,
        }
    }

    /// Expects the ValidatingAdmissionPolicy of exactly this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            ..Self::none()
        }
    }

    /// Also stamps this field of `status` where a status subresource is written: the API
    /// server ignores annotations there. Without it such writes carry no term.
    #[must_use]
    pub fn with_status_field(mut self, field: impl Into<String>) -> Self {
        self.status_field = Some(field.into());
        self
    }

    /// Whether the API server's words come from this policy: it refused the write, or it
    /// could not be judged just then.
    pub fn is_refusal(&self, message: &str) -> bool {
        let from = |name| {
            message.contains(&format!(
                "ValidatingAdmissionPolicy '{name}' with binding '"
            )) || message.contains(&format!("ValidatingAdmissionPolicy '{name}' denied"))
        };
        self.name.as_ref().is_some_and(from)
    }
}

/// Adds the mark to a Status, and `advice` to its message.
pub(crate) fn mark(status: &mut Value, advice: &str) {
    if let Some(message) = status["message"].as_str() {
        status["message"] = json!(format!("{message}{advice}"));
    }
    let cause = json!({"reason": MARK, "message": "", "field": ""});
    match status["details"]["causes"].as_array_mut() {
        Some(causes) => causes.push(cause),
        None => {
            if !status["details"].is_object() {
                status["details"] = json!({});
            }
            status["details"]["causes"] = json!([cause]);
        }
    }
}

/// Whether a write through a [`LeaderClient`](crate::LeaderClient) was refused by the fence
/// policy: the term is over, or the policy could not be judged just then. The object is not
/// at fault, and the refusal is never final.
pub fn is_fenced(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|d| &d.causes);
    causes.into_iter().any(|cause| cause.reason == MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_one_more_cause_and_changes_no_other_detail() {
        let other = json!({"reason": "Other", "message": "m", "field": "f"});
        let ours = json!({"reason": MARK, "message": "", "field": ""});
        for (details, expected) in [
            (json!(null), json!({"causes": [ours]})),
            (json!({"name": "p"}), json!({"name": "p", "causes": [ours]})),
            (
                json!({"name": "p", "causes": [other]}),
                json!({"name": "p", "causes": [other, ours]}),
            ),
        ] {
            let mut status = json!({"message": "no", "details": details});
            mark(&mut status, ": wait");
            let expected = json!({"message": "no: wait", "details": expected});
            assert_eq!(status, expected);
        }
    }
}
