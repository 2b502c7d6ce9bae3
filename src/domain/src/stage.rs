//! The stages in which a pod may stay only for so long.
use super::{
    pod::Pod,
    reasons::{Meaning, meaning},
};

/// A state in which a pod may stay only for so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its container has yet to start, or never did.
    Waiting,
    /// An image of it cannot be pulled.
    PullFails,
    /// A container of it cannot be created.
    CreateFails,
    /// Its node has not been heard of.
    Lost,
    /// Its deletion was asked for, and not all of its containers have ended.
    Deleting,
    /// It has ended.
    Ended,
}

impl Stage {
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::PullFails,
        Self::CreateFails,
        Self::Lost,
        Self::Deleting,
        Self::Ended,
    ];

    /// Reports whether the pod is in this stage now.
    pub fn is_of(self, pod: &Pod) -> bool {
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
        match meaning(reason, "") {
            Meaning::PullFails => Some(Self::PullFails),
            Meaning::CreateFails => Some(Self::CreateFails),
            _ => None,
        }
    }
}
