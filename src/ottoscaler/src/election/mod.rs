//! Leadership: one replica acts, and everybody knows which.
//!
//! kube-leader-election does the protocol; `guard` makes it safe, `fence`
//! keeps a deposed leader's writes from taking effect, `proof` lets a successor
//! start when the kubelet says that the holder's container has ended.
//!
//! What holds:
//! - a leader acts only within `send time of its last acknowledged write + renew
//!   deadline`, on a clock that nobody sets;
//! - an identity leads at most one term; a new term begins with one guarded write
//!   that changes holder and transitions together;
//! - the Lease is released only after the work has ended.
mod beat;
mod clock;
mod clocks;
mod contender;
mod events;
mod fence;
mod guard;
mod identity;
mod metrics;
mod pause;
mod proof;
#[cfg(test)]
mod test_contender;
#[cfg(test)]
mod test_server;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use beat::Beat;
pub use clock::{Clock, System, Time};
pub use clocks::{Clocks, LeaderTime};
pub use contender::{Clients, Contender};
pub use fence::{LeaderClient, NotLeading, is_fenced};
pub use metrics::Metrics;
pub use pause::{NO_REASON, NotSet, Pause, PauseSwitch};

pub use fenced_lease::term::Term;

/// Who leads, as this replica knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    pub term: Term,
    /// `host:port` of its gRPC server.
    pub address: String,
    /// This very replica, and its tenure is running.
    pub here: bool,
}

/// The read side of leadership; written by the [`Contender`] only.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<Option<Arc<Leader>>>);

impl Leadership {
    pub fn current(&self) -> Option<Arc<Leader>> {
        self.0.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Option<Arc<Leader>>> {
        self.0.clone()
    }

    /// One that a test feeds.
    pub fn channel() -> (watch::Sender<Option<Arc<Leader>>>, Self) {
        let (send, receive) = watch::channel(None);
        (send, Self(receive))
    }
}

/// One term of this replica.
#[derive(Debug, Clone)]
pub struct Tenure {
    pub term: Term,
    pub client: LeaderClient,
    /// Take nothing new, finish what is under way, return.
    pub drain: CancellationToken,
    /// It is over: stop at once.
    pub lost: CancellationToken,
}

/// The work of a leader.
#[tonic::async_trait]
pub trait Reign: Send + Sync + 'static {
    /// Returns once drained or lost.
    async fn run(&self, tenure: Tenure);
}
