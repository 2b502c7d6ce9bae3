//! Who leads, and what a leader is given.
use std::{future::Future, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{LeaderClient, term::Term};

/// The leader, as this candidate knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Its term.
    pub term: Term,
    /// The `host:port` that it published; see [`Identity::with_address`](crate::Identity::with_address).
    pub address: Option<String>,
    /// Whether it is this candidate, with its work running.
    pub is_local: bool,
}

/// The read side of leadership. Only the [`Contender`](crate::Contender) writes it.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<Option<Arc<Leader>>>);

impl Leadership {
    pub(crate) fn new() -> (watch::Sender<Option<Arc<Leader>>>, Self) {
        let (send, receive) = watch::channel(None);
        (send, Self(receive))
    }

    /// Creates one that a test sets.
    #[cfg(any(test, feature = "testing"))]
    pub fn channel() -> (watch::Sender<Option<Arc<Leader>>>, Self) {
        Self::new()
    }

    /// Returns the present leader; `None` if nobody leads as far as this candidate knows.
    pub fn current(&self) -> Option<Arc<Leader>> {
        self.0.borrow().clone()
    }

    /// Returns a receiver of every change of leader.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Leader>>> {
        self.0.clone()
    }
}

/// What the work of a leader is given for one term.
#[derive(Debug, Clone)]
pub struct LeaderContext {
    /// The term.
    pub term: Term,
    /// The client through which the leader writes.
    pub client: LeaderClient,
    /// Cancelled at shutdown: begin nothing new, finish what is under way, return.
    pub drain: CancellationToken,
    /// Cancelled when the term is over: stop at once.
    pub lost: CancellationToken,
}

/// The work of a leader. Implemented by closures too:
/// `|leader: LeaderContext| async move { … }`.
pub trait LeaderWork: Send + Sync + 'static {
    /// Leads for one term. It should return when `leader.drain` or `leader.lost` is
    /// cancelled; a return before that ends the term.
    fn run(&self, leader: LeaderContext) -> impl Future<Output = ()> + Send;
}

impl<F, W> LeaderWork for F
where
    F: Fn(LeaderContext) -> W + Send + Sync + 'static,
    W: Future<Output = ()> + Send,
{
    fn run(&self, leader: LeaderContext) -> impl Future<Output = ()> + Send {
        self(leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_sets_who_leads_and_each_reader_sees_it() {
        let (set, leadership) = Leadership::channel();
        assert_eq!(leadership.current(), None);
        let leader = Arc::new(Leader {
            term: Term {
                lease_uid: "u".to_owned(),
                transitions: 1,
                holder: "h".to_owned(),
            },
            address: None,
            is_local: true,
        });
        set.send_replace(Some(leader.clone()));
        assert_eq!(leadership.current(), Some(leader));
    }
}
