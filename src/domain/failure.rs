//! What a pod's state means for its worker, before any retry is judged: which
//! waiting is hopeless, which node is lost, which end was somebody else's doing.
//!
//! Reasons are Kubernetes' own words (kubelet, scheduler, taint manager), but for
//! those of ours: PendingTimeout, NodeLost, Deleted, Lost.
use super::pod::{Pod, PodPhase};

/// An image that could not be pulled for so long (seconds since the kubelet took
/// the pod) never will be; its own backoff is at 20 s by then.
pub const PULL_TIMEOUT: i64 = 45;

/// Stands before the reason of an init container: none of ours, and so never the worker's
/// own fault.
const INIT: &str = "Init:";

/// The reason of an init container as a worker's.
pub(super) fn of_init(reason: &str) -> String {
    format!("{INIT}{reason}")
}

/// A container waits as each does before it starts.
pub(super) fn is_ordinary_waiting(reason: &str) -> bool {
    matches!(reason, "" | "PodInitializing" | "ContainerCreating")
}

/// What to make of a pod that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outlook {
    /// Nothing is wrong, or nothing that time tells.
    Fine,
    /// It fails at this time (Unix seconds) unless something changes.
    FailsAt(i64),
    /// It is failed now, for this reason.
    Failed(String),
}

/// `now` in Unix seconds; timeouts in seconds.
pub fn outlook(pod: &Pod, now: i64, pending_timeout: i64, node_lost_timeout: i64) -> Outlook {
    if let Some(since) = pod.node_lost {
        return due(since + node_lost_timeout, now, "NodeLost");
    }
    if pod.phase != PodPhase::Pending || pod.started.is_some() {
        return Outlook::Fine;
    }
    let reason = pod.reason.as_str();
    let kubelets = reason.strip_prefix(INIT).unwrap_or(reason);
    if is_hopeless(kubelets) {
        return Outlook::Failed(reason.to_owned());
    }
    let created = pod.created.unwrap_or(now);
    let pending = created + pending_timeout;
    if is_image_trouble(kubelets) {
        let pulled_by = pod.accepted.unwrap_or(created) + PULL_TIMEOUT;
        return due(pulled_by.min(pending), now, reason);
    }
    due(pending, now, "PendingTimeout")
}

fn due(at: i64, now: i64, reason: &str) -> Outlook {
    if at <= now {
        Outlook::Failed(reason.to_owned())
    } else {
        Outlook::FailsAt(at)
    }
}

/// Waiting cannot help.
fn is_hopeless(reason: &str) -> bool {
    matches!(reason, "InvalidImageName" | "ErrImageNeverPull")
}

/// The kubelet goes on trying; so do we, for a while.
fn is_image_trouble(reason: &str) -> bool {
    matches!(
        reason,
        "ErrImagePull"
            | "ImagePullBackOff"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed"
            | "CreateContainerConfigError"
            | "CreateContainerError"
    )
}

/// The reason of an end: a disruption from outside goes before what the container
/// made of it (a SIGTERM looks like an exit code).
pub fn ending(pod: &Pod) -> String {
    if pod.own_end {
        return pod.reason.clone();
    }
    if let Some(reason) = &pod.disruption {
        return reason.clone();
    }
    match (pod.deleted, pod.finished) {
        // Ended by the deletion, not by itself.
        (Some(deleted), Some(finished)) if finished >= deleted => "Deleted".to_owned(),
        _ => pod.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(reason: &str) -> Pod {
        Pod {
            reason: reason.into(),
            created: Some(100),
            accepted: Some(130),
            ..Pod::default()
        }
    }

    fn failed(reason: &str) -> Outlook {
        Outlook::Failed(reason.into())
    }

    #[test]
    fn an_image_that_cannot_be_pulled_fails_within_a_minute_of_the_kubelets_first_try() {
        let pod = pending("ImagePullBackOff");
        assert_eq!(outlook(&pod, 174, 900, 300), Outlook::FailsAt(175));
        assert_eq!(outlook(&pod, 175, 900, 300), failed("ImagePullBackOff"));
    }

    #[test]
    fn an_invalid_image_name_fails_at_once() {
        let pod = pending("InvalidImageName");
        assert_eq!(outlook(&pod, 101, 900, 300), failed("InvalidImageName"));
    }

    #[test]
    fn a_pod_that_nobody_schedules_waits_for_the_pending_timeout() {
        let pod = pending("Unschedulable");
        assert_eq!(outlook(&pod, 999, 900, 300), Outlook::FailsAt(1_000));
        assert_eq!(outlook(&pod, 1_000, 900, 300), failed("PendingTimeout"));
    }

    #[test]
    fn a_lost_node_is_waited_for() {
        let pod = Pod {
            phase: PodPhase::Running,
            node_lost: Some(50),
            ..pending("")
        };
        assert_eq!(outlook(&pod, 349, 900, 300), Outlook::FailsAt(350));
        assert_eq!(outlook(&pod, 350, 900, 300), failed("NodeLost"));
    }

    #[test]
    fn a_deletion_explains_an_end_after_it_and_no_end_before_it() {
        let mut pod = Pod {
            reason: "Error".into(),
            finished: Some(10),
            deleted: Some(10),
            ..Pod::default()
        };
        assert_eq!(ending(&pod), "Deleted");
        pod.finished = Some(9);
        assert_eq!(ending(&pod), "Error");
        pod.disruption = Some("PreemptionByScheduler".into());
        assert_eq!(ending(&pod), "PreemptionByScheduler");
    }
}
