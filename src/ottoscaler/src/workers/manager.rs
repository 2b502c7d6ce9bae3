//! The leader's worker manager: what it works with, and its life.
use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    engine::Engine,
    metrics::Metrics,
    notify::{self, Notifier},
    scheduler::Scheduler,
    shared::Shared,
};
use crate::{
    args::Limits,
    cluster::events::{self, Publisher},
    domain::template::Policy,
    election::{Clocks, LeaderClient, Pause},
    handler::{Drained, NotificationSink},
    index::Index,
};

/// What the manager works with.
#[derive(Clone)]
pub struct Parts {
    pub client: LeaderClient,
    pub index: Index,
    pub drained: Drained,
    pub policy: Arc<Policy>,
    pub limits: Limits,
    pub metrics: Metrics,
    pub pause: Pause,
    /// Deadlines run on the leader's; it is compared with the API server's.
    pub clocks: Clocks,
    /// Until then only tasks of our own making are worked on.
    pub caught_up: CancellationToken,
    /// Calls that wait are given back then.
    pub drain: CancellationToken,
    pub lost: CancellationToken,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// One leader's worker manager; cheap to clone.
#[derive(Debug, Clone)]
pub struct Manager {
    pub(super) shared: Arc<Shared>,
    /// Taken by [`Manager::run`].
    publisher: Arc<Mutex<Option<Publisher>>>,
}

impl Manager {
    pub fn new(parts: &Parts) -> Self {
        let (events, publisher) = events::channel(parts.client.client(), None);
        Self {
            publisher: Arc::new(Mutex::new(Some(publisher))),
            shared: Arc::new(Shared {
                events,
                client: parts.client.clone(),
                term: parts.client.term().to_string(),
                index: parts.index.clone(),
                policy: parts.policy.clone(),
                drained: parts.drained.clone(),
                limits: parts.limits.clone(),
                metrics: parts.metrics.clone(),
                pause: parts.pause.clone(),
                clocks: parts.clocks.clone(),
                absent: AtomicUsize::new(0),
                scheduler: Arc::new(Scheduler::default()),
                shed: Notify::new(),
                caught_up: parts.caught_up.clone(),
                drain: parts.drain.clone(),
                lost: parts.lost.clone(),
                made_by: Mutex::default(),
                notified_by: Mutex::default(),
                refused_by: Mutex::default(),
                waits: Mutex::default(),
            }),
        }
    }

    /// Manages until `drain` (finishes what is under way and stores what is known)
    /// or `lost` (stops at once). What the predecessor left is sealed first.
    pub async fn run(&self, sink: Arc<dyn NotificationSink>) {
        let (drain, lost) = (self.shared.drain.clone(), self.shared.lost.clone());
        let (outbox, inbox) = notify::channel();
        let notifier = Notifier::new(self.shared.clone(), sink, inbox);
        let work = async {
            let changes = self.shared.index.subscribe();
            let mut engine = Engine::new(self.shared.clone(), outbox);
            engine.run(changes, &drain).await;
        };
        let publisher = self
            .publisher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let tell_people = async {
            match publisher {
                Some(mut publisher) => publisher.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = lost.cancelled() => {}
            ((), ()) = futures::future::join(work, notifier.run(drain.clone())) => {}
            // Until the others have ended.
            () = tell_people => {}
        }
    }
}
