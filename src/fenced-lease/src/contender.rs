//! The contest, the term, and the way out of it; runs for the life of the process.
//!
//! Invariants: losing the Lease never ends the process; every demotion is
//! demote → drain or abort → fresh identity → contend. One term: [`leading`].
mod leading;

use std::{fmt, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    jiff::Timestamp,
};
use kube::Api;
use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ContenderBuilder, Heartbeat, Identity, LeaseRef,
    error::Loggable,
    event::{EndReason, Event},
    guard::Guard,
    identity::Holder,
    leadership::{Leader, LeaderWork, Leadership},
    lease::{AcquireReason, Standing},
    proof,
    term::Term,
    watch::{self as lease_watch, Change, jitter},
};

/// The longest time of one request of the Lease. It is below the default renew deadline, so that a
/// request that hangs can be followed by another one.
const MAX_REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the first contest waits for the kubelet to report our own container. A kubelet does so
/// about a second after the start; without a report the contest goes on without a proof of death.
const OWN_PROOF_TIMEOUT: Duration = Duration::from_secs(2);
/// The time between two looks at our own pod before the first contest: a few requests in all, and a
/// quarter of a second of delay at most.
const OWN_PROOF_INTERVAL: Duration = Duration::from_millis(250);
/// The longest time between two ticks of the heartbeat while the election waits. Probes allow
/// several times as much before they report that the election is stuck.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// Attempts to acquire are at most so many retry periods apart, whatever the watch says: a watch
/// that has silently stopped must not hide a Lease that has expired.
const MAX_RETRY_PERIODS: u32 = 5;

/// Contends for a Lease on behalf of this process, and leads while it holds it.
pub struct Contender {
    config: ContenderBuilder,
    identity: Identity,
    guard: Arc<Guard>,
    /// When this process was forked.
    started: Timestamp,
    leader: watch::Sender<Option<Arc<Leader>>>,
    leadership: Leadership,
    heartbeat: Heartbeat,
}

impl fmt::Debug for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contender")
            .field("lease", &self.config.lease)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Contender {
    /// Begins to configure a contender for `lease`. The client needs `get`, `list`, `watch`,
    /// `create` and `patch` of Leases.
    pub fn builder(client: kube::Client, lease: LeaseRef) -> ContenderBuilder {
        ContenderBuilder::new(client, lease)
    }

    pub(crate) fn new(config: ContenderBuilder, identity: Identity) -> Self {
        let (leader, leadership) = Leadership::new();
        let request_timeout = MAX_REQUEST_TIMEOUT.min(config.timings.renew_deadline / 2);
        let guard = Guard::new(
            &config.timings,
            request_timeout,
            config.keys.clone(),
            config.clock.clone(),
        );
        Self {
            guard: Arc::new(guard),
            started: config.clock.started(),
            heartbeat: Heartbeat::new(config.clock.clone()),
            leader,
            leadership,
            identity,
            config,
        }
    }

    /// Returns who leads, from now on.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Returns the sign of life of the election, for a liveness probe.
    pub fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }

    /// Contends, and runs `work` for each term, until `shutdown` is cancelled, the work has
    /// drained and the Lease is released. Losing the Lease does not end it; neither does an
    /// API server that is away.
    pub async fn run(self, work: impl LeaderWork, shutdown: CancellationToken) {
        let (seen, lease) = watch::channel(None);
        let wake = watch::channel(()).0;
        let of = &self.config.lease;
        let client = &self.config.lease_client;
        let watch_lease = lease_watch::watch(client.clone(), &of.namespace, &of.name, |change| {
            self.observe(change, &seen);
            wake.send_replace(());
        });
        let watch_holder = proof::watch_holder(
            client.clone(),
            &of.namespace,
            lease.clone(),
            &self.guard,
            self.config.keys.clone(),
            &wake,
        );
        let published = CancellationToken::new();
        let publish = async {
            self.publish_own_proof().await;
            published.cancel();
            std::future::pending::<()>().await;
        };
        let contend = async {
            // A missing proof delays the first contest, and does not hold it up.
            let known = timeout(OWN_PROOF_TIMEOUT, published.cancelled()).await;
            if let (Err(_), Some(_)) = (known, self.identity.pod_uid()) {
                tracing::info!(
                    "own container id not known yet: contending without a proof of death"
                );
            }
            self.contend(Arc::new(work), lease.clone(), wake.subscribe(), &shutdown)
                .await;
            let _ = timeout(self.config.linger, self.show_others(lease)).await;
        };
        // The others end with the contest.
        tokio::select! {
            () = Box::pin(contend) => {}
            () = publish => {}
            () = Box::pin(watch_lease) => {}
            () = Box::pin(watch_holder) => {}
        }
    }

    fn observe(&self, change: Change<Lease>, seen: &watch::Sender<Option<Arc<Lease>>>) {
        let lease = match change {
            Change::Present(lease) => Some(lease),
            Change::Deleted(_) | Change::Absent => None,
        };
        self.guard.observe(lease.as_ref());
        self.config
            .observer
            .tell(Event::LeaseObserved(lease.as_ref()));
        seen.send_replace(lease.map(Arc::new));
    }

    /// Asks until the kubelet has reported our own container.
    async fn publish_own_proof(&self) {
        let Some(uid) = self.identity.pod_uid() else {
            return;
        };
        let client = self.config.lease_client.clone();
        let pods: Api<Pod> = Api::namespaced(client, &self.config.lease.namespace);
        loop {
            if let Some(proof) = proof::own(&pods, self.identity.name(), uid, self.started).await {
                return self.guard.publish(Some(proof));
            }
            sleep(OWN_PROOF_INTERVAL).await;
        }
    }

    async fn contend(
        &self,
        work: Arc<impl LeaderWork>,
        mut lease: watch::Receiver<Option<Arc<Lease>>>,
        mut wake: watch::Receiver<()>,
        shutdown: &CancellationToken,
    ) {
        let of = &self.config.lease;
        while !shutdown.is_cancelled() {
            let me = self.identity.fresh_holder();
            self.guard.become_identity(&me);
            let client = self.config.lease_client.clone();
            let params = LeaseLockParams {
                lease_name: of.name.clone(),
                holder_id: me,
                lease_ttl: self.config.timings.lease_duration,
            };
            let client = self.guard.client(client, &of.namespace);
            let lock = LeaseLock::new(client, &of.namespace, params);
            let acquired = self.acquire(&lock, &mut lease, &mut wake, shutdown).await;
            let Some((term, reason)) = acquired else {
                return;
            };
            let cause = reason.map_or("free", AcquireReason::as_str);
            tracing::info!(%term, cause, "leading");
            self.config.observer.tell(Event::Acquired {
                term: &term,
                reason,
            });
            let reason = self.lead(&lock, &term, &work, &mut lease, shutdown).await;
            let term = &term;
            log_end(term, reason);
            self.config.observer.tell(Event::Ended { term, reason });
            self.show(&lease, None);
        }
    }

    /// Returns with a term and why it could begin, or `None` at shutdown.
    async fn acquire(
        &self,
        lock: &LeaseLock,
        lease: &mut watch::Receiver<Option<Arc<Lease>>>,
        wake: &mut watch::Receiver<()>,
        shutdown: &CancellationToken,
    ) -> Option<(Term, Option<AcquireReason>)> {
        let retry_period = self.config.timings.retry_period;
        let mut failures = 0_u32;
        loop {
            self.heartbeat.tick();
            self.show(lease, None);
            wake.borrow_and_update();
            let now = self.config.clock.boot();
            let standing = self.guard.standing();
            let reason = match standing {
                Standing::Free(reason) => Some(reason),
                Standing::Ours | Standing::HeldUntil(_) => None,
            };
            let pause = match standing {
                Standing::HeldUntil(until) => pause_while_held(until, now, retry_period),
                Standing::Ours | Standing::Free(_) => match lock.try_acquire_or_renew().await {
                    Ok(LeaseLockResult::Acquired(acquired)) => match term_of(&acquired) {
                        Some(term) => return Some((term, reason)),
                        None => retry_period,
                    },
                    Ok(LeaseLockResult::NotAcquired(_)) => {
                        failures = 0;
                        Duration::from_millis(20)
                    }
                    Err(error) => {
                        // A 409 is a lost race; anything else is the API server's.
                        tracing::info!(error = %Loggable(&error), "not acquired");
                        failures += 1;
                        Duration::from_millis(25_u64 << failures.min(5))
                    }
                },
            };
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = self.rest(pause + jitter()) => {}
                Ok(()) = wake.changed() => {}
            }
        }
    }

    /// Waits, and ticks meanwhile: how long a round may wait follows from the timings, and
    /// is no sign that the election hangs.
    async fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            sleep_until(until.min(Instant::now() + TICK_INTERVAL)).await;
            self.heartbeat.tick();
        }
    }

    async fn show_others(&self, mut lease: watch::Receiver<Option<Arc<Lease>>>) {
        while lease.changed().await.is_ok() {
            self.show(&lease, None);
        }
    }

    /// Publishes who leads; `ours` while our term runs.
    fn show(&self, lease: &watch::Receiver<Option<Arc<Lease>>>, ours: Option<&Term>) {
        let leader = match ours {
            Some(term) => Some(Leader {
                term: term.clone(),
                address: self.identity.address().map(str::to_owned),
                is_local: true,
            }),
            None => lease.borrow().as_deref().and_then(|l| self.other_leader(l)),
        };
        self.leader.send_if_modified(|shown| {
            let changed = shown.as_deref() != leader.as_ref();
            if changed {
                *shown = leader.map(Arc::new);
            }
            changed
        });
    }

    fn other_leader(&self, lease: &Lease) -> Option<Leader> {
        let term = term_of(lease)?;
        let holder = Holder::parse(&term.holder)?;
        // A record of ours without a term that runs leads nobody.
        if self.identity.is_place_of(&holder) {
            return None;
        }
        let address = holder.address.map(str::to_owned);
        Some(Leader {
            term,
            address,
            is_local: false,
        })
    }
}

fn term_of(lease: &Lease) -> Option<Term> {
    let spec = lease.spec.as_ref()?;
    let holder = spec.holder_identity.clone().filter(|h| !h.is_empty())?;
    Some(Term {
        lease_uid: lease.metadata.uid.clone()?,
        transitions: spec.lease_transitions.unwrap_or(0),
        holder,
    })
}

#[cfg(test)]
#[path = "contender_tests.rs"]
mod tests;

/// Returns the time until a Lease that is held may be acquired, as far as it is known.
fn pause_while_held(until: Duration, now: Duration, retry_period: Duration) -> Duration {
    until
        .saturating_sub(now)
        .min(retry_period * MAX_RETRY_PERIODS)
}

/// Logs the end of a term. One that nobody wanted is a warning.
fn log_end(term: &Term, reason: EndReason) {
    if reason == EndReason::HandedOver {
        tracing::info!(%term, "handed over");
    } else {
        tracing::warn!(%term, why = reason.as_str(), "no longer leading");
    }
}

#[cfg(test)]
#[path = "contest_tests.rs"]
mod contest_tests;
