//! The one hop from a follower to the leader.
//!
//! What holds: to an address there is one connection, one attempt to connect at a
//! time, and one backoff, however many calls wait for it. A connection over which
//! somebody else than the leader answered, or nobody, is left for the next one.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::time::{Instant, sleep};
use tonic::{
    Request, Status,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{
    call::{Answer, Call, Verb},
    errors,
};
use crate::{
    election::Leader, proto::ottoscaler_service_client::OttoscalerServiceClient, telemetry,
};

/// Marks a forwarded call with the replica that sent it.
pub(super) const FORWARDED: &str = "ottoscaler-forwarded";
/// Of the leader that a forwarded call is meant for; its answer says it again. An
/// address may be somebody else's by now, even another install's.
pub(super) const TERM: &str = "ottoscaler-term";
pub(super) const REQUEST_ID: &str = "request_id";
pub(super) const TASK_VERSION: &str = "ottoscaler-task-version";
pub(super) const POD_VERSION: &str = "ottoscaler-pod-version";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Of HTTP/2 while a call is under way, and of TCP: a leader whose host is gone is noticed
/// before the call's deadline. The peer is Ottoscaler, which does not count pings.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Leaders that a connection is kept for.
const MAX_LINKS: usize = 8;
/// Before an address is tried again; it doubles up to the longest. Calls need not
/// wait for it to notice a new leader.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Forward {
    pod_name: String,
    /// By address. Written and read by calls.
    links: Mutex<HashMap<String, Link>>,
    /// Attempts to connect so far.
    attempts: AtomicU64,
}

/// The way to an address. Every call that needs it waits for the same connection.
#[derive(Debug, Default)]
struct Link {
    /// With the number of the attempt. None: the next call makes it.
    current: Option<(Connected, u64)>,
    /// Attempts in a row over which no leader answered.
    failures: u32,
    /// Why the last one was left.
    why: Option<Arc<str>>,
}

type Connected = Shared<BoxFuture<'static, Result<Channel, Arc<str>>>>;

impl Forward {
    pub(super) fn new(pod_name: &str) -> Self {
        Self {
            pod_name: pod_name.to_owned(),
            links: Mutex::default(),
            attempts: AtomicU64::new(0),
        }
    }

    /// Waits for a connection for as long as it takes: the caller bounds it.
    #[tracing::instrument(level = "info", name = "forward to leader", skip_all, fields(otel.kind = "client", server.address = leader.address))]
    pub(super) async fn send(&self, leader: &Leader, call: &Call) -> Result<Answer, Status> {
        let (address, term) = (leader.address.as_str(), leader.term.to_string());
        let (channel, number) = self.channel(address).await?;
        let mut client = OttoscalerServiceClient::new(channel);
        let mut request = Request::new(call.request.clone());
        let metadata = request.metadata_mut();
        put(metadata, FORWARDED, &self.pod_name);
        put(metadata, TERM, &term);
        put(metadata, REQUEST_ID, &call.request_id);
        telemetry::inject(metadata, call.traceparent.as_deref());
        request.set_timeout(call.deadline.saturating_duration_since(Instant::now()));
        let result = match call.verb {
            Verb::Up => client.scale_up(request).await,
            Verb::Down => client.scale_down(request).await,
        };
        let said = match &result {
            Ok(response) => response.metadata().get(TERM),
            Err(status) => status.metadata().get(TERM),
        };
        let is_of_leader = said.is_some_and(|said| said.as_bytes() == term.as_bytes());
        if is_of_leader {
            self.works(address, number);
        } else {
            let why = match &result {
                Ok(_) => "somebody else answers there",
                Err(status) => status.message(),
            };
            self.leave(address, number, why.into());
        }
        let response = match result {
            Err(status) if errors::is_passing(status.code()) => return Err(status),
            // For good, or done: the leader's word only.
            _ if !is_of_leader => {
                let message = format!("{address} is no longer the leader's; try again");
                return Err(errors::not_leader(message));
            }
            result => result?,
        };
        let version = |key: &str| {
            response
                .metadata()
                .get(key)
                .and_then(|v| v.to_str().ok())
                .and_then(|v| v.parse().ok())
                .unwrap_or(0)
        };
        Ok(Answer {
            task_version: version(TASK_VERSION),
            pod_version: version(POD_VERSION),
            response: response.into_inner(),
        })
    }

    /// Why there is no connection to an address, if there was one that failed.
    pub(super) fn why(&self, address: &str) -> Option<Arc<str>> {
        self.links().get(address).and_then(|link| link.why.clone())
    }

    fn links(&self) -> MutexGuard<'_, HashMap<String, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to an address, and the number of its link.
    async fn channel(&self, address: &str) -> Result<(Channel, u64), Status> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| {
                Status::unavailable(format!("the leader's address {address:?} is none: {e}"))
            })?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE / 2)
            .tcp_keepalive(Some(KEEPALIVE))
            .tcp_keepalive_interval(Some(KEEPALIVE))
            .tcp_keepalive_retries(Some(1))
            .tcp_nodelay(true);
        loop {
            let (connected, number) = self.link(address, &endpoint);
            match connected.await {
                Ok(channel) => return Ok((channel, number)),
                Err(why) => self.leave(address, number, why),
            }
        }
    }

    /// The link to an address: the one there is, or the next attempt.
    fn link(&self, address: &str, endpoint: &Endpoint) -> (Connected, u64) {
        let mut links = self.links();
        if links.len() >= MAX_LINKS && !links.contains_key(address) {
            links.clear();
        }
        let link = links.entry(address.to_owned()).or_default();
        if let Some((connected, number)) = &link.current {
            return (connected.clone(), *number);
        }
        let number = self.attempts.fetch_add(1, Ordering::Relaxed);
        let (endpoint, backoff) = (endpoint.clone(), backoff(link.failures));
        let connect = async move {
            sleep(backoff).await;
            let connected: Result<Channel, Arc<str>> = endpoint
                .connect()
                .await
                .map_err(|e| format!("{:#}", anyhow::Error::from(e)).into());
            connected
        };
        let connected = connect.boxed().shared();
        link.current = Some((connected.clone(), number));
        (connected, number)
    }

    /// The leader answered over it.
    fn works(&self, address: &str, number: u64) {
        if let Some(link) = self.links().get_mut(address).filter(|l| l.is(number)) {
            link.failures = 0;
            link.why = None;
        }
    }

    /// The next call connects anew, after a backoff. Of the calls that shared a link
    /// the first one leaves it for all.
    fn leave(&self, address: &str, number: u64, why: Arc<str>) {
        if let Some(link) = self.links().get_mut(address).filter(|l| l.is(number)) {
            tracing::debug!(address, "the leader was not reached");
            link.failures = link.failures.saturating_add(1);
            link.why = Some(why);
            link.current = None;
        }
    }

    #[cfg(test)]
    pub(super) fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }
}

impl Link {
    fn is(&self, number: u64) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|(_, current)| *current == number)
    }
}

fn backoff(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(more) => (SHORTEST_BACKOFF * 2_u32.pow(more.min(10))).min(LONGEST_BACKOFF),
    }
}

pub(super) fn put(metadata: &mut MetadataMap, key: &'static str, value: &str) {
    // A value that is no header value is left out.
    if let Ok(value) = value.parse() {
        metadata.insert(key, value);
    }
}
