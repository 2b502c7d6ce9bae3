//! One term of this replica: its work runs while the Lease is renewed.
//!
//! What holds: the work is over before the Lease is released, and once a term is
//! lost nothing of it is sent; whoever does not end is aborted, and what cannot be
//! aborted keeps the Lease until it expires.
use std::{sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube_leader_election::{LeaseLock, LeaseLockResult};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Contender, term_of};
use crate::{
    cluster::Loggable,
    election::{Beat, LeaderClient, Reign, Tenure, Term, fence::Validity},
};

const RELEASE_TRIES: u32 = 3;

/// How a term ended.
pub(super) enum Ended {
    /// We were told to stop, and the work has ended.
    HandedOver,
    Lost(&'static str),
}

impl Contender {
    /// Runs the reign and renews, until one of them ends.
    pub(super) async fn lead(
        &self,
        lock: &LeaseLock,
        term: Term,
        reign: &Arc<dyn Reign>,
        lease: &mut watch::Receiver<Option<Arc<Lease>>>,
        shutdown: &CancellationToken,
    ) -> Ended {
        let lasts = self.settings.renew_deadline;
        let validity = Arc::new(Validity::new(lasts, self.clock.clone()));
        self.extend(&validity);
        let tenure = Tenure {
            term: term.clone(),
            client: LeaderClient::new(
                self.clients.work.clone(),
                &self.namespace,
                term.clone(),
                validity.clone(),
                self.metrics.clone(),
            ),
            drain: CancellationToken::new(),
            lost: CancellationToken::new(),
        };
        self.show(lease, Some(&term));
        let mut work = JoinSet::new();
        let (ruler, of) = (reign.clone(), tenure.clone());
        let rule = async move { ruler.run(of).await };
        match &self.clients.runtime {
            Some(runtime) => work.spawn_on(rule, runtime),
            None => work.spawn(rule),
        };

        let ended = tokio::select! {
            why = self.renew(lock, &term, &validity, lease) => Ended::Lost(why),
            why = handover(&mut work, &tenure, shutdown, self.settings.handover_timeout) => why,
        };
        // From here no renewal runs.
        if let Ended::Lost(_) = ended {
            validity.end();
        }
        self.show(lease, None);
        self.beat.strike();
        tenure.lost.cancel();
        let has_ended = end(&mut work, self.abort_within).await;
        validity.end();
        if !has_ended {
            tracing::error!("the work of this term does not end: the Lease is left to expire");
            return Ended::Lost("its work does not end");
        }
        if matches!(ended, Ended::HandedOver) {
            release(lock, &self.beat).await;
        }
        ended
    }

    /// After an acknowledged write of the Lease.
    fn extend(&self, validity: &Validity) {
        let until = self.guard.valid_until();
        let took = self.clock.boot().saturating_sub(self.guard.sent());
        self.metrics.renewed(took, until);
        validity.set(until);
    }

    /// Renews for as long as it is ours; returns why it no longer is.
    async fn renew(
        &self,
        lock: &LeaseLock,
        term: &Term,
        validity: &Validity,
        lease: &mut watch::Receiver<Option<Arc<Lease>>>,
    ) -> &'static str {
        let mut pause = self.settings.retry_period;
        let mut lease_watch = lease.clone();
        // Until the watch has come to our own write, it tells of the time before.
        let mut caught_up = false;
        loop {
            self.beat.strike();
            let taken = async {
                loop {
                    if lease_watch.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    let seen = lease_watch.borrow_and_update().clone();
                    let of = seen.as_deref().and_then(term_of);
                    if of.as_ref() == Some(term) {
                        caught_up = true;
                    } else if caught_up {
                        return match seen {
                            None => "the Lease was deleted",
                            Some(_) => "somebody else wrote the Lease",
                        };
                    }
                }
            };
            tokio::select! {
                why = taken => return why,
                () = self.rest(pause.min(validity.left())) => {}
            }
            if validity.left().is_zero() {
                return "it could not be renewed in time";
            }
            match timeout(validity.left(), lock.try_acquire_or_renew()).await {
                Err(_) => return "it could not be renewed in time",
                Ok(Ok(LeaseLockResult::Acquired(renewed))) => {
                    if term_of(&renewed).as_ref() != Some(term) {
                        return "the Lease is another";
                    }
                    self.extend(validity);
                    pause = self.settings.retry_period;
                }
                Ok(Ok(LeaseLockResult::NotAcquired(_))) => return "somebody else holds the Lease",
                Ok(Err(error)) => {
                    tracing::warn!(error = %Loggable(&error), left_ms = validity.left().as_millis(), "not renewed; trying again");
                    pause = self.settings.retry_period / 4;
                }
            }
        }
    }
}

/// Waits for the work to end: by itself, or drained after `shutdown`.
async fn handover(
    work: &mut JoinSet<()>,
    tenure: &Tenure,
    shutdown: &CancellationToken,
    within: Duration,
) -> Ended {
    tokio::select! {
        _ = work.join_next() => return Ended::Lost("its work ended by itself"),
        () = shutdown.cancelled() => {}
    }
    tenure.drain.cancel();
    if timeout(within, work.join_next()).await.is_err() {
        tracing::warn!("the drain took longer than HANDOVER_TIMEOUT: ending the work");
        tenure.lost.cancel();
    }
    Ended::HandedOver
}

/// Waits for work that was told to end, `within` twice: then it is aborted, which
/// ends it where it next waits. Whether it has ended.
async fn end(work: &mut JoinSet<()>, within: Duration) -> bool {
    let all_ended = async |work: &mut JoinSet<()>| {
        let all = async { while work.join_next().await.is_some() {} };
        timeout(within, all).await.is_ok()
    };
    if all_ended(work).await {
        return true;
    }
    work.abort_all();
    all_ended(work).await
}

/// A renewal that was cut off may still arrive before it: then it is tried again.
async fn release(lock: &LeaseLock, beat: &Beat) {
    for _ in 0..RELEASE_TRIES {
        beat.strike();
        match lock.step_down().await {
            Ok(()) => return,
            Err(error) => tracing::info!(error = %Loggable(&error), "not released"),
        }
    }
    tracing::warn!("the Lease was not released; it will expire");
}
