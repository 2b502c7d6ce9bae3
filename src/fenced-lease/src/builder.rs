//! How a contender is made.
use std::{fmt, time::Duration};

use tokio::runtime::Handle;

use crate::{
    BuildError, Clock, Contender, Identity, Timings,
    event::{Event, Observer},
    keys::Keys,
    policy::FencePolicy,
};

/// How long work that was told to end may take before it is aborted. It is the time by which a
/// lease duration exceeds the renew deadline in the default timings, after which another replica
/// may lead.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Which Lease is contended for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name. The first leader creates the Lease.
    pub name: String,
}

impl LeaseRef {
    /// Names a Lease.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// Configures a [`Contender`]; see [`Contender::builder`].
#[must_use = "a builder does nothing until it is built"]
pub struct ContenderBuilder {
    pub(crate) lease: LeaseRef,
    pub(crate) lease_client: kube::Client,
    pub(crate) work_client: kube::Client,
    pub(crate) identity: Option<Identity>,
    pub(crate) timings: Timings,
    pub(crate) runtime: Option<Handle>,
    pub(crate) clock: Clock,
    pub(crate) keys: Keys,
    pub(crate) policy: FencePolicy,
    pub(crate) observer: Observer,
    pub(crate) abort_timeout: Duration,
    pub(crate) linger: Duration,
}

impl fmt::Debug for ContenderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContenderBuilder")
            .field("lease", &self.lease)
            .field("identity", &self.identity)
            .field("timings", &self.timings)
            .finish_non_exhaustive()
    }
}

impl ContenderBuilder {
    pub(crate) fn new(client: kube::Client, lease: LeaseRef) -> Self {
        Self {
            lease,
            work_client: client.clone(),
            lease_client: client,
            identity: None,
            timings: Timings::default(),
            runtime: None,
            clock: Clock::default(),
            keys: Keys::default(),
            policy: FencePolicy::none(),
            observer: Observer::default(),
            abort_timeout: ABORT_TIMEOUT,
            linger: Duration::ZERO,
        }
    }

    /// Sets who contends; required.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Sets the timings; [`Timings::default`] otherwise.
    pub fn timings(mut self, timings: Timings) -> Self {
        self.timings = timings;
        self
    }

    /// Gives the leader's work a client, and so connections, of its own, so that the work
    /// does not hold up renewals. Otherwise it shares the Lease's.
    pub fn work_client(mut self, client: kube::Client) -> Self {
        self.work_client = client;
        self
    }

    /// Spawns the work on this runtime. Where the contender itself runs on another runtime
    /// with a thread of its own, work that keeps all its threads busy costs no term.
    pub fn work_runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Names the fence policy; [`FencePolicy::none`] otherwise.
    pub fn fence_policy(mut self, policy: FencePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the prefix of the annotations `<prefix>/term` (of every object that a leader
    /// writes), `<prefix>/released-by`, `<prefix>/holder-pod-uid` and
    /// `<prefix>/holder-container-id` (of the Lease), and the field manager of the Lease.
    /// All candidates must agree; `fenced-lease.io` and `fenced-lease` otherwise.
    pub fn names(mut self, annotation_prefix: &str, field_manager: &str) -> Self {
        self.keys = Keys::new(annotation_prefix, field_manager);
        self
    }

    /// Calls `observe` at each [`Event`], on the contender's task or in a leader's request:
    /// it must not block.
    pub fn on_event(mut self, observe: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(observe);
        self
    }

    /// Sets the clock; the system's otherwise.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Sets how long work that was told to end may take before it is aborted, and how long an
    /// abort may take before the Lease is left to expire; 2 s each otherwise.
    pub fn abort_timeout(mut self, timeout: Duration) -> Self {
        self.abort_timeout = timeout;
        self
    }

    /// Keeps [`Leadership`](crate::Leadership) up to date for this long after the Lease was
    /// released, for requests that still come here to be forwarded; not at all otherwise.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Makes the contender. It does nothing until it [runs](Contender::run).
    ///
    /// # Errors
    /// What it is given cannot work; see [`BuildError`].
    pub fn build(self) -> Result<Contender, BuildError> {
        self.timings.validate()?;
        self.keys.validate()?;
        let identity = self.identity.clone().filter(|id| !id.name().is_empty());
        let identity = identity.ok_or(BuildError::NoIdentity)?;
        Ok(Contender::new(self, identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_server::Server;

    fn builder() -> ContenderBuilder {
        let server = std::sync::Arc::new(Server::default());
        Contender::builder(server.client(), LeaseRef::new("n", "l"))
    }

    #[tokio::test]
    async fn a_contender_that_cannot_work_is_not_made() {
        let named = || builder().identity(Identity::new("me"));
        assert!(named().build().is_ok());
        let refused = |builder: ContenderBuilder| builder.build().err();
        assert_eq!(refused(builder()), Some(BuildError::NoIdentity));
        let nameless = builder().identity(Identity::new(""));
        assert_eq!(refused(nameless), Some(BuildError::NoIdentity));
        for (prefix, manager, bad) in [("", "m", ""), ("a/b", "m", "a/b"), ("p", "m&x=y", "m&x=y")]
        {
            let error = Some(BuildError::Name(bad.to_owned()));
            assert_eq!(refused(named().names(prefix, manager)), error);
        }
        let timings = Timings {
            renew_deadline: Duration::from_secs(6),
            ..Timings::default()
        };
        let error = refused(named().timings(timings));
        assert!(matches!(error, Some(BuildError::Timings(_))), "{error:?}");
    }
}
