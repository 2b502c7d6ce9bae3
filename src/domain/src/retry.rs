//! Decides whether a failed attempt is retried, and after which delay.
use super::reasons::{self, ReasonClass};

/// The number of failures of a worker that are retried, unless its task sets another one. Failures
/// of infrastructure seldom hit the same worker twice; more in a row have a cause that lasts.
pub(crate) const DEFAULT_BUDGET: u32 = 3;

/// The longest delay before an attempt that follows one that never started, in seconds. What keeps
/// a worker from starting may last for minutes, and a minute more is little beside it.
const MAX_DELAY: i64 = 60;

/// A `RetryDecision` says what a failed attempt means for its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryDecision {
    /// The worker fails: the failure is its own, or its budget is used up.
    Fail,
    /// A new attempt follows.
    Retry {
        /// The delay before the new attempt, in seconds.
        delay: i64,
        /// Whether the failure counts against the budget.
        counts: bool,
    },
}

/// A `FailedAttempt` describes how an attempt failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FailedAttempt<'a> {
    /// The reason of the pod or its container, in the words of Kubernetes.
    pub(crate) reason: &'a str,
    /// The message that came with the reason. That of an eviction names the limit.
    pub(crate) message: &'a str,
    /// Whether the container has run.
    pub(crate) started: bool,
    /// The number of failures that were counted before this one.
    pub(crate) failures: u32,
    /// The number of attempts in a row before this one that never started.
    pub(crate) tries: u32,
    /// The number of failures that are retried.
    pub(crate) budget: u32,
}

/// Decides whether a failed attempt is retried.
///
/// An interruption from outside and a reason that is not known are retried. Before the
/// container has started that costs nothing, and the caller bounds such attempts by time;
/// after it, each counts against the budget. An exit code, an OOM kill, a deadline and a
/// limit of its own are the worker's fault and fail it.
pub(crate) fn decide(ending: FailedAttempt<'_>) -> RetryDecision {
    let is_own = reasons::classify(ending.reason, ending.message) == ReasonClass::Own;
    if is_own || ending.failures >= ending.budget {
        return RetryDecision::Fail;
    }
    let counts = ending.started;
    let delay = if counts {
        backoff(ending.failures + 1, 0)
    } else {
        backoff(ending.failures, ending.tries + 1)
    };
    RetryDecision::Retry { delay, counts }
}

/// Returns the backoff after an attempt, in seconds. `failures` is the number of failures
/// counted so far, and `tries` the number of attempts in a row that never started; both
/// include that attempt.
pub(crate) fn backoff(failures: u32, tries: u32) -> i64 {
    let doubled = |n: u32| 1_i64 << n.saturating_sub(1).min(30);
    match tries {
        0 => doubled(failures),
        // A node that refuses a pod goes on to do so for as long as others fill it.
        _ => doubled(tries).min(MAX_DELAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(reason: &str, started: bool, failures: u32) -> RetryDecision {
        super::decide(FailedAttempt {
            reason,
            message: "",
            started,
            failures,
            tries: 0,
            budget: DEFAULT_BUDGET,
        })
    }

    #[test]
    fn an_exit_code_is_the_workers_own() {
        assert_eq!(decide("Error", true, 0), RetryDecision::Fail);
        assert_eq!(decide("OOMKilled", true, 0), RetryDecision::Fail);
    }

    #[test]
    fn an_end_that_the_runtime_lost_sight_of_is_an_interruption() {
        // A container runtime that restarts reports 255 for an end that it did not see.
        let again = RetryDecision::Retry {
            delay: 1,
            counts: true,
        };
        for reason in ["Unknown", "ContainerStatusUnknown", "SomethingNew"] {
            assert_eq!(decide(reason, true, 0), again, "{reason}");
        }
    }

    #[test]
    fn a_worker_that_outgrew_its_own_limit_is_not_tried_again() {
        let ending = FailedAttempt {
            reason: "Evicted",
            message: "Usage of EmptyDir volume \"workspace\" exceeds the limit \"1Mi\". ",
            started: true,
            failures: 0,
            tries: 0,
            budget: DEFAULT_BUDGET,
        };
        assert_eq!(super::decide(ending), RetryDecision::Fail);
    }

    #[test]
    fn an_interruption_before_start_is_free() {
        assert_eq!(
            decide("Evicted", false, 0),
            RetryDecision::Retry {
                delay: 1,
                counts: false
            }
        );
    }

    #[test]
    fn interruptions_after_start_use_the_budget_up() {
        assert_eq!(
            decide("Lost", true, 2),
            RetryDecision::Retry {
                delay: 4,
                counts: true
            }
        );
        assert_eq!(decide("Lost", true, 3), RetryDecision::Fail);
    }
    #[test]
    fn tries_that_never_start_come_ever_more_seldom_up_to_a_minute() {
        let delays = (1..9).map(|tries| backoff(2, tries)).collect::<Vec<_>>();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!([63, 64, u32::MAX].map(|tries| backoff(0, tries)), [60; 3]);
        let counted = [1, 2, 3].map(|failures| backoff(failures, 0));
        assert_eq!((counted, backoff(0, 0)), ([1, 2, 4], 1));
    }
}
