//! What happens to a contender, for metrics, Kubernetes Events and whatever else an
//! application keeps beside the Lease.
use std::{fmt, sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;

use crate::{lease::AcquireReason, term::Term};

/// Something that happened to a [`Contender`](crate::Contender).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The watch reported the Lease; `None` if it was deleted or does not exist.
    LeaseObserved(Option<&'a Lease>),
    /// This candidate leads.
    Acquired {
        /// The term that began.
        term: &'a Term,
        /// Why it could begin; `None` if only the API server's answer showed that it could.
        reason: Option<AcquireReason>,
    },
    /// A write of the Lease by the leader was acknowledged.
    Renewed {
        /// From sending the write to its answer.
        latency: Duration,
        /// Until when the leader may act, since boot.
        valid_until: Duration,
    },
    /// This candidate no longer leads.
    Ended {
        /// The term that ended.
        term: &'a Term,
        /// Why it ended.
        reason: EndReason,
    },
    /// A write of the leader came too late.
    WriteRefused(Barrier),
}

/// Why a term ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndReason {
    /// A shutdown: the work has drained and the Lease is released.
    HandedOver,
    /// No renewal was acknowledged within the renew deadline.
    NotRenewed,
    /// A renewal found that the Lease names another holder.
    HeldByOther,
    /// The watch saw that somebody else wrote the Lease.
    Overwritten,
    /// A renewal found the Lease with another uid or other transitions.
    OtherTerm,
    /// The Lease was deleted.
    Deleted,
    /// The work returned or panicked.
    WorkEnded,
    /// The work does not return and cannot be aborted, so the Lease is left to expire.
    WorkStuck,
}

impl EndReason {
    /// The reason in words, for logs, metrics and Events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HandedOver => "handed over",
            Self::NotRenewed => "it could not be renewed in time",
            Self::HeldByOther => "somebody else holds the Lease",
            Self::Overwritten => "somebody else wrote the Lease",
            Self::OtherTerm => "the Lease is another",
            Self::Deleted => "the Lease was deleted",
            Self::WorkEnded => "its work ended by itself",
            Self::WorkStuck => "its work does not end",
        }
    }
}

/// What stopped a write that came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Barrier {
    /// It was not sent: validity was over.
    Clock,
    /// The API server refused it by the fence policy.
    Policy,
    /// The API server refused it because its object had changed.
    Version,
}

/// Whoever is told of [`Event`]s; cheap to clone.
#[derive(Clone)]
pub(crate) struct Observer(Arc<dyn Fn(Event<'_>) + Send + Sync>);

impl Observer {
    pub(crate) fn new(observe: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observe))
    }

    pub(crate) fn tell(&self, event: Event<'_>) {
        (self.0)(event);
    }
}

impl Default for Observer {
    fn default() -> Self {
        Self::new(|_| ())
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

#[cfg(test)]
mod tests {
    use super::EndReason as E;
    use crate::AcquireReason as A;

    /// They are labels of metrics and parts of Events, so each is a word of its own.
    #[test]
    fn reasons_differ_from_each_other() {
        let acquired = [A::Released, A::Dead, A::Former, A::Expired, A::Missing].map(A::as_str);
        let ended = [
            E::HandedOver,
            E::NotRenewed,
            E::HeldByOther,
            E::Overwritten,
            E::OtherTerm,
            E::Deleted,
            E::WorkEnded,
            E::WorkStuck,
        ]
        .map(E::as_str);
        let mut all = [&acquired[..], &ended[..]].concat();
        assert!(all.iter().all(|reason| reason.len() > 4), "{all:?}");
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "{all:?}");
    }
}
