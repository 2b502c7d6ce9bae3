//! Which failures are the worker's own, and which are tried again.

/// Failures of a worker that are tried again at its own cost, unless its task says
/// otherwise.
pub const BUDGET: u32 = 3;

/// What a failed attempt means for its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The worker's own doing, or beyond the budget.
    Fail,
    /// A new attempt after `delay` seconds; `counts` against the budget.
    Retry { delay: i64, counts: bool },
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// Reason of the pod or its container, as Kubernetes gives it.
    pub reason: &'a str,
    /// The container has run.
    pub started: bool,
    /// Failures counted before this one.
    pub failures: u32,
    /// Failures that are tried again.
    pub budget: u32,
}

/// An interruption from outside is tried again: free before the container
/// started, at the cost of the budget after. An exit code, OOM kill or deadline
/// is the worker's own.
pub fn judge(ending: Ending<'_>) -> Verdict {
    if !is_interruption(ending.reason) || ending.failures >= ending.budget {
        return Verdict::Fail;
    }
    let counts = ending.started;
    Verdict::Retry {
        delay: if counts { 1 << ending.failures } else { 1 },
        counts,
    }
}

/// Reasons set by the kubelet, the scheduler, the taint manager or the node's
/// shutdown, and our own: `Lost` for a pod that went without a terminal status,
/// `Deleted` for one that somebody else deleted.
pub(super) fn is_interruption(reason: &str) -> bool {
    matches!(
        reason,
        "Evicted"
            | "NodeShutdown"
            | "Shutdown"
            | "Terminated"
            | "NodeLost"
            | "NodeAffinity"
            | "UnexpectedAdmissionError"
            | "Preempting"
            | "Preempted"
            | "OutOfcpu"
            | "OutOfmemory"
            | "OutOfpods"
            | "ContainerStatusUnknown"
            | "Lost"
            | "Deleted"
            | "PreemptionByScheduler"
            | "EvictionByEvictionAPI"
            | "DeletionByTaintManager"
            | "DeletionByPodGC"
            | "TerminationByKubelet"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(reason: &str, started: bool, failures: u32) -> Verdict {
        super::judge(Ending {
            reason,
            started,
            failures,
            budget: BUDGET,
        })
    }

    #[test]
    fn an_exit_code_is_the_workers_own() {
        assert_eq!(judge("Error", true, 0), Verdict::Fail);
        assert_eq!(judge("OOMKilled", true, 0), Verdict::Fail);
    }

    #[test]
    fn an_interruption_before_start_is_free() {
        assert_eq!(
            judge("Evicted", false, 0),
            Verdict::Retry {
                delay: 1,
                counts: false
            }
        );
    }

    #[test]
    fn interruptions_after_start_use_the_budget_up() {
        assert_eq!(
            judge("Lost", true, 2),
            Verdict::Retry {
                delay: 4,
                counts: true
            }
        );
        assert_eq!(judge("Lost", true, 3), Verdict::Fail);
    }
}
