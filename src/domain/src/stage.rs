//! Defines the stages in which a pod may stay only for a limited time.
use super::{
    pod::Pod,
    reasons::{ReasonClass, classify},
};

/// A `Stage` is a state in which a pod may stay only for a limited time. A pod may be in
/// several stages at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The worker's container has yet to start, or never did.
    Waiting,
    /// An image of the pod cannot be pulled.
    PullFails,
    /// A container of the pod cannot be created.
    CreateFails,
    /// The pod's node does not report.
    Lost,
    /// The pod is being deleted, and not all of its containers have ended.
    Deleting,
    /// The worker has ended.
    Ended,
}

impl Stage {
    /// All stages, in the order of their numbers.
    pub(crate) const ALL: [Self; 6] = [
        Self::Waiting,
        Self::PullFails,
        Self::CreateFails,
        Self::Lost,
        Self::Deleting,
        Self::Ended,
    ];

    /// Reports whether the pod is in this stage now.
    pub(crate) fn is_of(self, pod: &Pod) -> bool {
        let ended = pod.worker_has_ended();
        match self {
            Self::Waiting => pod.started.is_none(),
            Self::PullFails | Self::CreateFails => {
                !ended && pod.started.is_none() && Self::of_trouble(&pod.reason) == Some(self)
            }
            Self::Lost => !ended && pod.node_lost.is_some(),
            Self::Deleting => !pod.all_have_ended() && pod.deleting,
            Self::Ended => ended,
        }
    }

    /// Returns the stage of a pod whose container waits for this reason, if the kubelet goes
    /// on trying. Reasons of one stage are the same trouble: the kubelet gives the error and
    /// its backoff by turns.
    pub(crate) fn of_trouble(reason: &str) -> Option<Self> {
        match classify(reason, "") {
            ReasonClass::PullFails => Some(Self::PullFails),
            ReasonClass::CreateFails => Some(Self::CreateFails),
            _ => None,
        }
    }
}
