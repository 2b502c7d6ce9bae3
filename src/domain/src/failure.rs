//! Decides whether and why a pod has failed, before any retry is considered: which waiting
//! is hopeless, which node is lost, and which end came from outside.
//!
//! Reasons are those of Kubernetes (kubelet, scheduler, taint manager), plus those of
//! Ottoscaler: PendingTimeout, NodeLost, Deleted, Lost. The matrix of what each reason means
//! is in `reasons.rs`.
use super::{
    pod::{Pod, PodPhase},
    reasons::{ReasonClass, classify},
    stage::Stage,
};

/// The time after which a pod fails whose image cannot be pulled or whose container cannot
/// be created, in seconds since the first error. The kubelet has tried at least three times
/// by then, for its own backoff has come to 20 s.
const PULL_TIMEOUT: i64 = 45;

/// An `Outlook` says whether a pod that has not ended fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// Nothing is wrong, or nothing that has a deadline.
    Fine,
    /// The pod fails at this time (seconds of the leader's clock) unless something changes.
    FailsAt(i64),
    /// The pod has failed, for this reason.
    Failed(String),
}

/// A `Timing` limits how long a pod may stay in its stages. Times are seconds of the
/// leader's clock, and timeouts are in seconds.
#[derive(Clone, Copy)]
pub(crate) struct Timing<'a> {
    /// Returns the time at which the leader first saw the pod in a stage.
    pub(crate) since: &'a dyn Fn(Stage) -> i64,
    /// The current time.
    pub(crate) now: i64,
    /// The time in which a worker must start.
    pub(crate) pending_timeout: i64,
    /// The time after which a node that does not report is lost.
    pub(crate) node_lost_timeout: i64,
}

impl std::fmt::Debug for Timing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timing")
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

/// Decides whether a pod that has not ended fails.
pub(crate) fn outlook(pod: &Pod, timing: Timing<'_>) -> Outlook {
    let node = node_outlook(pod, timing);
    if node != Outlook::Fine || pod.phase != PodPhase::Pending || pod.started.is_some() {
        return node;
    }
    let reason = pod.reason.as_str();
    if classify(reason, &pod.message) == ReasonClass::Hopeless {
        return Outlook::Failed(reason.to_owned());
    }
    let pending = (timing.since)(Stage::Waiting) + timing.pending_timeout;
    if let Some(stage) = Stage::of_trouble(reason) {
        let cured_by = (timing.since)(stage) + PULL_TIMEOUT;
        return due(cured_by.min(pending), timing.now, reason);
    }
    due(pending, timing.now, "PendingTimeout")
}

/// Decides whether a pod fails because its node is lost: the node controller reports it as
/// such, or the pod still exists long after its deletion.
pub(crate) fn node_outlook(pod: &Pod, timing: Timing<'_>) -> Outlook {
    let is_in = |stage: Stage| stage.is_of(pod);
    let lost = is_in(Stage::Lost).then(|| (timing.since)(Stage::Lost));
    let deleting = is_in(Stage::Deleting).then(|| (timing.since)(Stage::Deleting) + pod.grace);
    match lost.into_iter().chain(deleting).min() {
        Some(since) => due(since + timing.node_lost_timeout, timing.now, "NodeLost"),
        None => Outlook::Fine,
    }
}

fn due(at: i64, now: i64, reason: &str) -> Outlook {
    if at <= now {
        Outlook::Failed(reason.to_owned())
    } else {
        Outlook::FailsAt(at)
    }
}

/// Returns the reason of a pod's end. A disruption from outside comes before what the
/// container made of it, because a SIGTERM looks like an exit code.
///
/// No clock says whether an end came before the deletion, because the kubelet stamps the one
/// and the API server the other. An end that was reported before the deletion is the worker's
/// own. Of one that was not, the deletion is taken for the cause: the worker is then retried,
/// which is safe, and no success is reported that may be a handled SIGTERM.
pub fn end_reason(pod: &Pod) -> String {
    if pod.own_end {
        return pod.reason.clone();
    }
    if let Some(reason) = &pod.disruption {
        // The kubelet's condition says who ended the pod, and the pod's reason why.
        let says_why = classify(&pod.reason, &pod.message) == ReasonClass::Interruption;
        let of_kubelet = reason == "TerminationByKubelet" && says_why;
        return if of_kubelet { &pod.reason } else { reason }.clone();
    }
    // A pod that ended by itself before has a reason for it.
    let ended_before = matches!(
        pod.reason.as_str(),
        "DeadlineExceeded" | "Evicted" | "Preempting" | "Terminated"
    );
    if pod.deleting && !ended_before {
        return "Deleted".to_owned();
    }
    pod.reason.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(reason: &str) -> Pod {
        Pod {
            reason: reason.into(),
            ..Pod::default()
        }
    }

    /// Judges a pod whose stages were first seen at 100, and whose error was first seen at 130.
    fn outlook(pod: &Pod, now: i64) -> Outlook {
        let since = |stage| match stage {
            Stage::PullFails | Stage::CreateFails => 130,
            _ => 100,
        };
        let timing = Timing {
            since: &since,
            now,
            pending_timeout: 900,
            node_lost_timeout: 300,
        };
        super::outlook(pod, timing)
    }

    fn failed(reason: &str) -> Outlook {
        Outlook::Failed(reason.into())
    }

    #[test]
    fn an_image_that_cannot_be_pulled_fails_within_a_minute_of_the_kubelets_first_error() {
        for reason in ["ImagePullBackOff", "ErrImagePull", "CreateContainerError"] {
            let pod = pending(reason);
            assert_eq!(outlook(&pod, 174), Outlook::FailsAt(175));
            assert_eq!(outlook(&pod, 175), failed(reason));
        }
    }

    #[test]
    fn an_invalid_image_name_fails_at_once() {
        let pod = pending("InvalidImageName");
        assert_eq!(outlook(&pod, 101), failed("InvalidImageName"));
    }

    #[test]
    fn an_image_of_an_init_container_holds_the_start_up_like_the_workers() {
        let pod = pending("Init:ErrImagePull");
        assert_eq!(outlook(&pod, 174), Outlook::FailsAt(175));
        assert_eq!(outlook(&pod, 175), failed("Init:ErrImagePull"));
        let pod = pending("Init:CrashLoopBackOff");
        assert_eq!(outlook(&pod, 175), Outlook::FailsAt(1_000));
    }

    #[test]
    fn the_pods_reason_says_more_than_that_the_kubelet_ended_it() {
        let pod = Pod {
            reason: "Evicted".into(),
            disruption: Some("TerminationByKubelet".into()),
            ..Pod::default()
        };
        assert_eq!(end_reason(&pod), "Evicted");
        // A later deletion changes nothing.
        let pod = Pod {
            reason: "DeadlineExceeded".into(),
            deleting: true,
            ..Pod::default()
        };
        assert_eq!(end_reason(&pod), "DeadlineExceeded");
    }

    #[test]
    fn a_pod_that_nobody_schedules_waits_for_the_pending_timeout() {
        let pod = pending("Unschedulable");
        assert_eq!(outlook(&pod, 999), Outlook::FailsAt(1_000));
        assert_eq!(outlook(&pod, 1_000), failed("PendingTimeout"));
    }

    #[test]
    fn a_lost_node_is_waited_for_whether_its_pod_is_deleted_or_not() {
        for deleting in [false, true] {
            let pod = Pod {
                phase: PodPhase::Running,
                node_lost: Some(50),
                deleting,
                grace: 30,
                ..pending("")
            };
            assert_eq!(outlook(&pod, 399), Outlook::FailsAt(400));
            assert_eq!(outlook(&pod, 400), failed("NodeLost"));
        }
    }

    #[test]
    fn a_pod_that_is_there_long_after_its_grace_is_on_a_lost_node() {
        for phase in [PodPhase::Pending, PodPhase::Running] {
            let pod = Pod {
                phase,
                deleting: true,
                grace: 30,
                ..pending("")
            };
            assert_eq!(outlook(&pod, 429), Outlook::FailsAt(430));
            assert_eq!(outlook(&pod, 430), failed("NodeLost"));
        }
    }

    #[test]
    fn a_deletion_explains_an_end_that_was_not_told_before_it_whatever_the_clocks_say() {
        for finished in [0, 10, 3_610] {
            let mut pod = Pod {
                reason: "Error".into(),
                phase: PodPhase::Failed,
                finished: Some(finished),
                deleting: true,
                ..Pod::default()
            };
            assert_eq!(end_reason(&pod), "Deleted");
            pod.own_end = true;
            assert_eq!(end_reason(&pod), "Error");
            pod.own_end = false;
            pod.disruption = Some("PreemptionByScheduler".into());
            assert_eq!(end_reason(&pod), "PreemptionByScheduler");
        }
    }
}
