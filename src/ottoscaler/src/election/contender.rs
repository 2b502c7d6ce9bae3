//! The contest, the term, and the way out of it; runs for the process's life.
//!
//! What holds: losing the Lease never ends the process; every demotion is
//! demote → drain or abort → fresh identity → contend. One term: [`lead`].
mod lead;

use std::{sync::Arc, time::Duration};

use fenced_lease::{
    lease::{AcquireReason, Standing},
    term::Term,
};
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    jiff::Timestamp,
};
use kube::Api;
use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};
use lead::Ended;
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Beat, Clock, Leader, Leadership, Metrics, Reign,
    events::{self, Events},
    guard::Guard,
    identity,
    pause::{self, Pause},
    proof,
};
use crate::{
    cluster::{
        Loggable, object,
        watch::{self as cluster_watch, Select, WatchHandler},
    },
    config,
    domain::unread::Unread,
};

/// Of a lease call; well under the renew deadline.
const MAX_REQUEST: Duration = Duration::from_secs(3);
/// For aborted work to end.
const ABORT_WITHIN: Duration = Duration::from_secs(2);
/// Before the first contest, for the kubelet to tell of our own container.
const OWN_PROOF_WITHIN: Duration = Duration::from_secs(2);
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Between two signs of life of an election that waits.
const SHOW_LIFE: Duration = Duration::from_secs(1);
/// After the end, until every node knows that calls must no longer come here
/// (EndpointSlices reach them by watches).
const FAREWELL: Duration = Duration::from_secs(2);

/// Contends for the Lease on behalf of this replica.
pub struct Contender {
    settings: config::Lease,
    replica: config::Replica,
    namespace: String,
    clients: Clients,
    clock: Clock,
    guard: Arc<Guard>,
    started: Timestamp,
    leader: watch::Sender<Option<Arc<Leader>>>,
    beat: Beat,
    paused: watch::Sender<Option<Arc<str>>>,
    metrics: Metrics,
    /// See [`ABORT_WITHIN`].
    pub(super) abort_within: Duration,
}

impl std::fmt::Debug for Contender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contender")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

/// The Lease has a client, and so connections, of its own: work must not hold
/// renewals up.
#[derive(Clone)]
pub struct Clients {
    pub lease: kube::Client,
    /// Becomes the leader's.
    pub work: kube::Client,
    /// Where the work runs; None: beside the contest.
    pub runtime: Option<Handle>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

impl Contender {
    pub fn new(
        settings: config::Lease,
        replica: config::Replica,
        namespace: &str,
        clients: Clients,
        metrics: Metrics,
        clock: Clock,
    ) -> (Self, Leadership) {
        let (leader, leadership) = Leadership::channel();
        let request = MAX_REQUEST.min(settings.renew_deadline / 2);
        let guard = Arc::new(Guard::new(
            &settings.name,
            settings.duration,
            settings.renew_deadline,
            request,
            clock.clone(),
        ));
        let contender = Self {
            settings,
            replica,
            namespace: namespace.to_owned(),
            clients,
            guard,
            started: clock.started(),
            leader,
            beat: Beat::new(clock.clone()),
            paused: watch::channel(None).0,
            clock,
            metrics,
            abort_within: ABORT_WITHIN,
        };
        (contender, leadership)
    }

    pub fn beat(&self) -> Beat {
        self.beat.clone()
    }

    /// `configured`: paused whatever the Lease says.
    pub fn pause(&self, configured: bool) -> Pause {
        Pause::new(configured, self.paused.subscribe())
    }

    /// Runs until `shutdown`, then until the work is drained and the Lease
    /// released; then tells for [`FAREWELL`] who leads instead.
    pub async fn run(self, reign: Arc<dyn Reign>, shutdown: CancellationToken) {
        let (seen, lease) = watch::channel(None);
        let wake = watch::channel(()).0;
        let stop = CancellationToken::new();
        let leases: Api<Lease> = Api::namespaced(self.clients.lease.clone(), &self.namespace);
        let pods: Api<Pod> = Api::namespaced(self.clients.lease.clone(), &self.namespace);
        let sink = Seen {
            guard: self.guard.clone(),
            lease: seen,
            wake: wake.clone(),
            paused: self.paused.clone(),
        };
        let name = Select::Name(self.guard.lease_name().to_owned());
        let watches = futures::future::join(
            cluster_watch::run(leases, name, sink, stop.clone()),
            proof::watch_holder(
                pods.clone(),
                lease.clone(),
                self.guard.clone(),
                wake.clone(),
                stop.clone(),
            ),
        );
        let (events, mut publisher) = events::channel(
            self.clients.work.clone(),
            &self.namespace,
            &self.settings.name,
            &self.replica.pod_name,
        );
        let published = CancellationToken::new();
        let publish = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.publish_own_proof(&pods) => published.cancel(),
            }
        };
        let contend = async {
            // Better late than without, but a missing proof holds nobody up.
            let known = timeout(OWN_PROOF_WITHIN, published.cancelled()).await;
            if let (Err(_), Some(_)) = (known, &self.replica.pod_uid) {
                tracing::info!(
                    "own container id not known yet: contending without a proof of death"
                );
            }
            self.contend(reign, lease.clone(), wake.subscribe(), &shutdown, events)
                .await;
            let _ = timeout(FAREWELL, self.show_others(lease)).await;
            stop.cancel();
        };
        let contend = Box::pin(contend);
        futures::future::join4(watches, publish, contend, publisher.run()).await;
    }

    /// Asks until the kubelet has told of our own container.
    async fn publish_own_proof(&self, pods: &Api<Pod>) {
        let Some(uid) = &self.replica.pod_uid else {
            return;
        };
        loop {
            if let Some(proof) = proof::own(pods, &self.replica.pod_name, uid, self.started).await {
                return self.guard.publish(Some(proof));
            }
            sleep(ASK_EVERY).await;
        }
    }

    async fn contend(
        &self,
        reign: Arc<dyn Reign>,
        mut lease: watch::Receiver<Option<Arc<Lease>>>,
        mut wake: watch::Receiver<()>,
        shutdown: &CancellationToken,
        events: Events,
    ) {
        while !shutdown.is_cancelled() {
            let me = identity::fresh(&self.replica.pod_name, &self.replica.address);
            self.guard.become_identity(&me);
            let lock = LeaseLock::new(
                self.guard
                    .client(self.clients.lease.clone(), &self.namespace),
                &self.namespace,
                LeaseLockParams {
                    lease_name: self.settings.name.clone(),
                    holder_id: me.clone(),
                    lease_ttl: self.settings.duration,
                },
            );
            let won = self.win(&lock, &mut lease, &mut wake, shutdown).await;
            let Some((term, why)) = won else {
                return;
            };
            let cause = why.map_or("free", AcquireReason::as_str);
            tracing::info!(%term, cause, "leading");
            self.metrics.acquired(&term, why);
            events.acquired(&term, cause);
            match self
                .lead(&lock, term.clone(), &reign, &mut lease, shutdown)
                .await
            {
                Ended::HandedOver => {
                    tracing::info!(%term, "handed over");
                    self.metrics.lost("handed over");
                    events.lost(&term, "handed over", true);
                }
                Ended::Lost(why) => {
                    tracing::warn!(%term, why, "no longer leading");
                    self.metrics.lost(why);
                    events.lost(&term, why, false);
                }
            }
            self.show(&lease, None);
        }
    }

    /// Returns with a term and why it could begin, or None at shutdown.
    async fn win(
        &self,
        lock: &LeaseLock,
        lease: &mut watch::Receiver<Option<Arc<Lease>>>,
        wake: &mut watch::Receiver<()>,
        shutdown: &CancellationToken,
    ) -> Option<(Term, Option<AcquireReason>)> {
        let mut failures = 0_u32;
        loop {
            self.beat.strike();
            self.show(lease, None);
            wake.borrow_and_update();
            let now = self.clock.boot();
            // Rounds are at most five retry periods apart, whatever the watch says.
            let standing = self.guard.standing();
            let why = match standing {
                Standing::Free(why) => Some(why),
                Standing::Ours | Standing::HeldUntil(_) => None,
            };
            let pause = match standing {
                Standing::HeldUntil(until) => until
                    .saturating_sub(now)
                    .min(self.settings.retry_period * 5),
                Standing::Ours | Standing::Free(_) => match lock.try_acquire_or_renew().await {
                    Ok(LeaseLockResult::Acquired(won)) => match term_of(&won) {
                        Some(term) => return Some((term, why)),
                        None => self.settings.retry_period,
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

    /// Waits, and shows life meanwhile: how long a round may wait is the Lease's
    /// timings to say, and no sign that the election is wedged.
    async fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            sleep_until(until.min(Instant::now() + SHOW_LIFE)).await;
            self.beat.strike();
        }
    }

    async fn show_others(&self, mut lease: watch::Receiver<Option<Arc<Lease>>>) {
        while lease.changed().await.is_ok() {
            self.show(&lease, None);
        }
    }

    /// Publishes who leads: `ours` while our term runs.
    fn show(&self, lease: &watch::Receiver<Option<Arc<Lease>>>, ours: Option<&Term>) {
        let leader = match ours {
            Some(term) => Some(Leader {
                term: term.clone(),
                address: self.replica.address.clone(),
                here: true,
            }),
            None => lease
                .borrow()
                .as_deref()
                .and_then(term_of)
                .and_then(|term| {
                    let (_, address) = identity::parse(&term.holder)?;
                    // A record of ours without a term that runs leads nobody.
                    let address = address.to_owned();
                    (address != self.replica.address).then_some(Leader {
                        term,
                        address,
                        here: false,
                    })
                }),
        };
        self.leader.send_if_modified(|shown| {
            let changed = shown.as_deref() != leader.as_ref();
            if changed {
                *shown = leader.map(Arc::new);
            }
            changed
        });
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

/// Contenders that wake together should not write together.
fn jitter() -> Duration {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    Duration::from_millis(RandomState::new().build_hasher().finish() % 20)
}

/// Takes the watch of the Lease.
struct Seen {
    guard: Arc<Guard>,
    lease: watch::Sender<Option<Arc<Lease>>>,
    wake: watch::Sender<()>,
    paused: watch::Sender<Option<Arc<str>>>,
}

impl Seen {
    fn see(&self, lease: Option<Lease>) {
        self.guard.observe(lease.as_ref());
        let paused = pause::of(lease.as_ref());
        self.paused.send_if_modified(|shown| {
            let changed = *shown != paused;
            *shown = paused;
            changed
        });
        self.lease.send_replace(lease.map(Arc::new));
        self.wake.send_replace(());
    }
}

impl WatchHandler<Lease> for Seen {
    type Item = Lease;

    fn project(object: Lease) -> Option<Lease> {
        Some(object)
    }
    fn replace(&self, all: Vec<Lease>, unread: Vec<Unread>, _: u64) {
        // One that cannot be decoded is there, whatever it says.
        unread.iter().for_each(object::log_unread);
        if unread.is_empty() {
            self.see(all.into_iter().next());
        }
    }
    fn apply(&self, object: Lease) {
        self.see(Some(object));
    }
    fn delete(&self, _: Lease) {
        self.see(None);
    }
    fn delete_unread(&self, object: Unread) {
        object::log_unread(&object);
        self.see(None);
    }
    fn synced_to(&self, _: u64) {}
}

#[cfg(test)]
#[path = "contender_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "contest_tests.rs"]
mod contest_tests;
