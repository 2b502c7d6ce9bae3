//! Leadership of Ottoscaler: what the crate `fenced-lease` leaves to an application.
//!
//! The names under which it writes, the pause on the Lease, metrics, Kubernetes Events, and
//! the identity of a replica, all of which hang on the contender's events.
mod events;
mod metrics;
mod pause;

use std::{sync::Arc, time::Duration};

use fenced_lease::{BuildError, Contender, FencePolicy, Identity, LeaseRef};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub use fenced_lease::{
    Clock, Clocks, Heartbeat, Leader, LeaderClient, LeaderContext, LeaderTime, LeaderWork,
    Leadership, NotLeading, System, Term, Time, is_fenced,
};
pub use metrics::{Metrics, register_skew};
pub use pause::{NO_REASON, NotSet, Pause, PauseSwitch};

use crate::{
    args::{LeaseOptions, ReplicaOptions},
    cluster::events::Publisher,
};
use events::LeaderEvents;
use pause::PauseSource;

/// The annotations on the Lease and on what a leader writes begin with it.
const PREFIX: &str = "ottoscaler.io";
const FIELD_MANAGER: &str = "ottoscaler";
/// The field of a WorkerTask's status that carries the term.
const STATUS_FIELD: &str = "term";
/// How long a replica that has released the Lease forwards calls to its successor: until
/// every node knows that calls must no longer come here (EndpointSlices reach them by
/// watches).
const LINGER: Duration = Duration::from_secs(2);

/// The clients of a contender. The Lease has one, and so connections, of its own: work must
/// not hold up renewals.
#[derive(Clone)]
pub struct Clients {
    /// Of the Lease.
    pub lease: kube::Client,
    /// Becomes the leader's.
    pub work: kube::Client,
    /// Where the work runs; `None`: beside the contest.
    pub runtime: Option<Handle>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

/// This replica's contender, with what hangs on it.
#[derive(Debug)]
pub struct Election {
    contender: Contender,
    /// Held here alone, so that the publisher ends with the election.
    events: Arc<LeaderEvents>,
    publisher: Publisher,
    pause: Arc<PauseSource>,
}

impl Election {
    /// Makes the contender of `replica`.
    ///
    /// # Errors
    /// The options cannot work; those that [`crate::args`] has checked can.
    pub fn new(
        lease: &LeaseOptions,
        replica: &ReplicaOptions,
        namespace: &str,
        clients: Clients,
        metrics: Metrics,
        clock: Clock,
    ) -> Result<Self, BuildError> {
        let (events, publisher) = LeaderEvents::channel(
            clients.work.clone(),
            namespace,
            &lease.name,
            &replica.pod_name,
        );
        let events = Arc::new(events);
        let pause = Arc::new(PauseSource::default());
        // A leader's client may outlive the election; it must not hold the publisher up.
        let (tell, source) = (Arc::downgrade(&events), pause.clone());
        let mut builder = Contender::builder(clients.lease, LeaseRef::new(namespace, &lease.name))
            .identity(identity(replica))
            .timings(lease.timings.clone())
            .names(PREFIX, FIELD_MANAGER)
            .fence_policy(policy(lease.fence_policy.as_deref(), namespace))
            .work_client(clients.work)
            .clock(clock)
            .linger(LINGER)
            .on_event(move |event| {
                metrics.observe(event);
                source.observe(event);
                if let Some(events) = tell.upgrade() {
                    events.observe(event);
                }
            });
        if let Some(runtime) = clients.runtime {
            builder = builder.work_runtime(runtime);
        }
        Ok(Self {
            contender: builder.build()?,
            events,
            publisher,
            pause,
        })
    }

    /// Returns who leads, from now on.
    pub fn leadership(&self) -> Leadership {
        self.contender.leadership()
    }

    /// Returns the sign of life of the election.
    pub fn heartbeat(&self) -> Heartbeat {
        self.contender.heartbeat()
    }

    /// Returns the pause; `configured` means paused whatever the Lease says.
    pub fn pause(&self, configured: bool) -> Pause {
        self.pause.pause(configured)
    }

    /// Contends, and runs `work` for each term, until `shutdown`; then until the work has
    /// drained, the Lease is released and the last Event is published.
    pub async fn run(self, work: impl LeaderWork, shutdown: CancellationToken) {
        let Self {
            contender,
            events,
            mut publisher,
            pause: _,
        } = self;
        let contend = async {
            Box::pin(contender.run(work, shutdown)).await;
            drop(events);
        };
        futures::future::join(contend, publisher.run()).await;
    }
}

fn identity(replica: &ReplicaOptions) -> Identity {
    let identity = match &replica.pod_uid {
        Some(uid) => Identity::of_pod(&replica.pod_name, uid),
        None => Identity::new(&replica.pod_name),
    };
    identity.with_address(&replica.address)
}

/// The fence policy: the named one, or that of a release `ottoscaler` of the chart.
fn policy(name: Option<&str>, namespace: &str) -> FencePolicy {
    let name = name.map_or_else(|| format!("{namespace}.ottoscaler-fence"), str::to_owned);
    FencePolicy::named(name).with_status_field(STATUS_FIELD)
}

/// A leader's client whose term never ends.
#[cfg(test)]
pub(crate) fn test_client(client: kube::Client, namespace: &str, term: Term) -> LeaderClient {
    LeaderClient::for_tests(client, namespace, term, PREFIX, policy(None, namespace))
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
