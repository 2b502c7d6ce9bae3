//! Which failures are the worker's own, and which are tried again.
use super::reasons::{self, Meaning};

/// Failures of a worker that are tried again at its own cost, unless its task says
/// otherwise.
pub const BUDGET: u32 = 3;

/// The longest wait before another try of an attempt that never started (seconds).
const MAX_DELAY: i64 = 60;

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
    /// What came with it: an eviction says by whose limit.
    pub message: &'a str,
    /// The container has run.
    pub started: bool,
    /// Failures counted before this one.
    pub failures: u32,
    /// Attempts in a row before this one that never started.
    pub tries: u32,
    /// Failures that are tried again.
    pub budget: u32,
}

/// An interruption from outside, and what is not known, is tried again: free before the
/// container started (the caller bounds these by time), at the cost of the budget after. An
/// exit code, OOM kill, deadline or a limit of its own is the worker's own fault.
pub fn judge(ending: Ending<'_>) -> Verdict {
    let is_own = reasons::meaning(ending.reason, ending.message) == Meaning::Own;
    if is_own || ending.failures >= ending.budget {
        return Verdict::Fail;
    }
    let counts = ending.started;
    let delay = if counts {
        delay(ending.failures + 1, 0)
    } else {
        delay(ending.failures, ending.tries + 1)
    };
    Verdict::Retry { delay, counts }
}

/// How long a worker waits after an attempt (seconds), when so many failures have been
/// counted and so many tries in a row, that attempt among them, never started.
pub fn delay(failures: u32, tries: u32) -> i64 {
    let doubled = |n: u32| 1_i64 << n.saturating_sub(1).min(30);
    match tries {
        0 => doubled(failures),
        // A node that refuses goes on to do so for as long as others fill it.
        _ => doubled(tries).min(MAX_DELAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(reason: &str, started: bool, failures: u32) -> Verdict {
        super::judge(Ending {
            reason,
            message: "",
            started,
            failures,
            tries: 0,
            budget: BUDGET,
        })
    }

    #[test]
    fn an_exit_code_is_the_workers_own() {
        assert_eq!(judge("Error", true, 0), Verdict::Fail);
        assert_eq!(judge("OOMKilled", true, 0), Verdict::Fail);
    }

    #[test]
    fn an_end_that_the_runtime_lost_sight_of_is_an_interruption() {
        // A container runtime that restarts makes 255 of what it does not know.
        let again = Verdict::Retry {
            delay: 1,
            counts: true,
        };
        for reason in ["Unknown", "ContainerStatusUnknown", "SomethingNew"] {
            assert_eq!(judge(reason, true, 0), again, "{reason}");
        }
    }

    #[test]
    fn a_worker_that_outgrew_its_own_limit_is_not_tried_again() {
        let ending = Ending {
            reason: "Evicted",
            message: "Usage of EmptyDir volume \"workspace\" exceeds the limit \"1Mi\". ",
            started: true,
            failures: 0,
            tries: 0,
            budget: BUDGET,
        };
        assert_eq!(super::judge(ending), Verdict::Fail);
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
    #[test]
    fn tries_that_never_start_come_ever_more_seldom_up_to_a_minute() {
        let delays = (1..9).map(|tries| delay(2, tries)).collect::<Vec<_>>();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!([63, 64, u32::MAX].map(|tries| delay(0, tries)), [60; 3]);
        let counted = [1, 2, 3].map(|failures| delay(failures, 0));
        assert_eq!((counted, delay(0, 0)), ([1, 2, 4], 1));
    }
}
