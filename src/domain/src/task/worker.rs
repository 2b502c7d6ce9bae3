//! The record of a worker.
use std::cmp::Ordering;

use super::PastAttempt;

/// A `WorkerPhase` is the phase of a worker. The phases are in the order in which a worker
/// goes through them, so that the later of two is the greater one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerPhase {
    /// A newer version wrote what this one does not understand, and looks after the worker.
    /// Its row stays as it is, it gets no pod, and none of its pods is deleted.
    Unknown,
    /// The worker has no pod yet.
    #[default]
    Queued,
    /// The worker's pod exists, and the container has not started.
    Pending,
    /// The worker runs.
    Running,
    /// The worker succeeded.
    Succeeded,
    /// The worker failed for good: no retry follows.
    Failed,
    /// ScaleDown or the deletion of its task ended the worker.
    Terminated,
}

impl WorkerPhase {
    /// The phases that this version writes.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Terminated,
    ];

    /// Reports whether the worker has ended for good.
    pub fn is_final(self) -> bool {
        self.end().is_some()
    }

    /// Returns the state that otto-handler is notified of for this end, or None if the phase
    /// is not final.
    pub fn end(self) -> Option<NotifiedState> {
        match self {
            Self::Succeeded => Some(NotifiedState::Completed),
            Self::Failed => Some(NotifiedState::Failed),
            Self::Terminated => Some(NotifiedState::Terminated),
            Self::Unknown | Self::Queued | Self::Pending | Self::Running => None,
        }
    }
}

/// A `WorkerRecord` is the record of one worker. Its fields are those of the newest attempt,
/// and times are Unix seconds, unless a field says otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerRecord {
    /// The index of the worker, from 1.
    pub index: u32,
    /// The number of the newest attempt, from 1. The pod's name follows from task, index and
    /// attempt.
    pub attempt: u32,
    /// The phase of the worker.
    pub phase: WorkerPhase,
    /// The uid of the attempt's pod, once it was seen. A pod whose record is final may be
    /// deleted once its logs are drained.
    pub uid: Option<String>,
    /// The reason of the phase, as one word; empty if there is none. Until the pod of a new
    /// attempt gives one, it is that of the attempt before.
    pub reason: String,
    /// The message that came with the reason.
    pub message: String,
    /// The exit code of the worker's container.
    pub exit_code: Option<i32>,
    /// The name of the node; empty without one.
    pub node: String,
    /// The IP address of the pod; empty without one.
    pub ip: String,
    /// The time since which the attempt waited for its pod.
    pub queued: Option<i64>,
    /// The time at which the pod was created.
    pub created: Option<i64>,
    /// The time at which the pod was bound to a node.
    pub scheduled: Option<i64>,
    /// The time at which the volumes and the network of the pod were ready; images come next.
    pub prepared: Option<i64>,
    /// The time at which the container started.
    pub started: Option<i64>,
    /// The time of the first line of the log.
    pub first_line: Option<i64>,
    /// The time at which the attempt ended.
    pub finished: Option<i64>,
    /// Whether ScaleDown ended this attempt, so that its pod may be deleted at once.
    pub stopping: bool,
    /// The newest transition that otto-handler has acknowledged.
    pub notified: Option<Notified>,
    /// The earlier attempts of which otto-handler has yet to acknowledge a transition, oldest
    /// first.
    pub past: Vec<PastAttempt>,
    /// The end of the backoff: this attempt gets no pod before this time.
    pub not_before: Option<i64>,
    /// The number of failures that count against the retry budget.
    pub failures: u32,
    /// The number of attempts in a row before this one that ended before their container
    /// started. They do not count against the budget.
    pub tries: u32,
    /// The newest attempt whose pod was deleted, or may be, before otto-handler acknowledged
    /// its last line of log.
    pub cut: Option<u32>,
}

/// A `Notified` is a transition of an attempt that otto-handler is notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notified {
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The state that the attempt came to.
    pub state: NotifiedState,
}

/// A `NotifiedState` is a state of an attempt as otto-handler knows it. The states are in the
/// order in which an attempt passes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotifiedState {
    /// The pod was created.
    Created,
    /// The container started.
    Running,
    /// The worker succeeded.
    Completed,
    /// The worker failed.
    Failed,
    /// ScaleDown or the deletion of the task ended the attempt.
    Terminated,
}

impl Notified {
    /// Reports whether `next` follows this transition. An attempt has one end: the three
    /// ends are ordered for comparison, not in time.
    pub fn is_before(self, next: Self) -> bool {
        match next.attempt.cmp(&self.attempt) {
            Ordering::Greater => true,
            Ordering::Equal => next.state > self.state && !self.state.is_end(),
            Ordering::Less => false,
        }
    }

    /// Returns the later one of two transitions.
    pub fn latest(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let both = one.into_iter().chain(other);
        both.max_by_key(|n| (n.attempt, n.state))
    }
}

impl NotifiedState {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Created,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Terminated,
    ];

    /// Reports whether the state is an end.
    pub fn is_end(self) -> bool {
        self >= Self::Completed
    }
}
