//! One term of this process: its work runs while the Lease is renewed.
//!
//! Invariants: the work is over before the Lease is released, and once a term is lost
//! nothing of it is sent; work that does not end is aborted, and work that cannot be aborted
//! keeps the Lease until it expires.
use std::{sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube_leader_election::{LeaseLock, LeaseLockResult};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Contender, term_of};
use crate::{
    Heartbeat, LeaderClient,
    error::Loggable,
    event::{EndReason, Event},
    fence::{FenceOptions, Validity},
    leadership::{LeaderContext, LeaderWork},
    term::Term,
};

/// How often the release of the Lease is tried. A renewal that was cut off can conflict with it
/// once; one that fails three times is left to expire.
const MAX_RELEASE_ATTEMPTS: u32 = 3;

impl Contender {
    /// Runs the work and renews, until one of them ends; returns why.
    pub(super) async fn lead(
        &self,
        lock: &LeaseLock,
        term: &Term,
        work: &Arc<impl LeaderWork>,
        lease: &mut watch::Receiver<Option<Arc<Lease>>>,
        shutdown: &CancellationToken,
    ) -> EndReason {
        let timings = &self.config.timings;
        let clock = self.config.clock.clone();
        let validity = Arc::new(Validity::new(timings.renew_deadline, clock));
        self.extend(&validity);
        let leader = self.context(term, &validity);
        self.show(lease, Some(term));
        let mut tasks = JoinSet::new();
        let (work, context) = (work.clone(), leader.clone());
        let lead = async move { work.run(context).await };
        match &self.config.runtime {
            Some(runtime) => tasks.spawn_on(lead, runtime),
            None => tasks.spawn(lead),
        };

        let reason = tokio::select! {
            reason = self.renew(lock, term, &validity, lease) => reason,
            reason = handover(&mut tasks, &leader, shutdown, timings.handover_timeout) => reason,
        };
        // From here no renewal runs.
        if reason != EndReason::HandedOver {
            validity.end();
        }
        self.show(lease, None);
        self.heartbeat.tick();
        leader.lost.cancel();
        let has_ended = end(&mut tasks, self.config.abort_timeout).await;
        validity.end();
        if !has_ended {
            tracing::error!("the work of this term does not end: the Lease is left to expire");
            return EndReason::WorkStuck;
        }
        if reason == EndReason::HandedOver {
            release(lock, &self.heartbeat).await;
        }
        reason
    }

    fn context(&self, term: &Term, validity: &Arc<Validity>) -> LeaderContext {
        let options = FenceOptions {
            annotation: self.config.keys.term(),
            policy: self.config.policy.clone(),
            observer: self.config.observer.clone(),
        };
        LeaderContext {
            term: term.clone(),
            client: LeaderClient::new(
                self.config.work_client.clone(),
                &self.config.lease.namespace,
                term.clone(),
                validity.clone(),
                options,
            ),
            drain: CancellationToken::new(),
            lost: CancellationToken::new(),
        }
    }

    /// Extends validity after an acknowledged write of the Lease.
    fn extend(&self, validity: &Validity) {
        let valid_until = self.guard.valid_until();
        let latency = self.config.clock.boot().saturating_sub(self.guard.sent());
        self.config.observer.tell(Event::Renewed {
            latency,
            valid_until,
        });
        validity.set(valid_until);
    }

    /// Renews for as long as the Lease is ours; returns why it no longer is.
    async fn renew(
        &self,
        lock: &LeaseLock,
        term: &Term,
        validity: &Validity,
        lease: &mut watch::Receiver<Option<Arc<Lease>>>,
    ) -> EndReason {
        let retry_period = self.config.timings.retry_period;
        let mut pause = retry_period;
        let mut lease_watch = lease.clone();
        // Until the watch has come to our own write, it reports the time before.
        let mut caught_up = false;
        loop {
            self.heartbeat.tick();
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
                            None => EndReason::Deleted,
                            Some(_) => EndReason::Overwritten,
                        };
                    }
                }
            };
            tokio::select! {
                reason = taken => return reason,
                () = self.rest(pause.min(validity.left())) => {}
            }
            if validity.left().is_zero() {
                return EndReason::NotRenewed;
            }
            match timeout(validity.left(), lock.try_acquire_or_renew()).await {
                Err(_) => return EndReason::NotRenewed,
                Ok(Ok(LeaseLockResult::Acquired(renewed))) => {
                    if term_of(&renewed).as_ref() != Some(term) {
                        return EndReason::OtherTerm;
                    }
                    self.extend(validity);
                    pause = retry_period;
                }
                Ok(Ok(LeaseLockResult::NotAcquired(_))) => return EndReason::HeldByOther,
                Ok(Err(error)) => {
                    tracing::warn!(error = %Loggable(&error), left_ms = validity.left().as_millis(), "not renewed; trying again");
                    pause = retry_period / 4;
                }
            }
        }
    }
}

/// Waits for the work to end: by itself, or drained after `shutdown`.
async fn handover(
    tasks: &mut JoinSet<()>,
    leader: &LeaderContext,
    shutdown: &CancellationToken,
    within: Duration,
) -> EndReason {
    tokio::select! {
        _ = tasks.join_next() => return EndReason::WorkEnded,
        () = shutdown.cancelled() => {}
    }
    leader.drain.cancel();
    if timeout(within, tasks.join_next()).await.is_err() {
        tracing::warn!("the drain took longer than the handover timeout: ending the work");
        leader.lost.cancel();
    }
    EndReason::HandedOver
}

/// Waits for work that was told to end, at most `within`; then aborts it, which ends it
/// where it next awaits, and waits as long again. Returns whether it has ended.
async fn end(tasks: &mut JoinSet<()>, within: Duration) -> bool {
    let all_ended = async |tasks: &mut JoinSet<()>| {
        let all = async { while tasks.join_next().await.is_some() {} };
        timeout(within, all).await.is_ok()
    };
    if all_ended(tasks).await {
        return true;
    }
    tasks.abort_all();
    all_ended(tasks).await
}

/// Releases the Lease. A renewal that was cut off may still arrive before the release, which
/// is then tried again.
async fn release(lock: &LeaseLock, heartbeat: &Heartbeat) {
    for _ in 0..MAX_RELEASE_ATTEMPTS {
        heartbeat.tick();
        match lock.step_down().await {
            Ok(()) => return,
            Err(error) => tracing::info!(error = %Loggable(&error), "not released"),
        }
    }
    tracing::warn!("the Lease was not released; it will expire");
}
