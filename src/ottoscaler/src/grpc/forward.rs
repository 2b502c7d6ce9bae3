//! The one hop from a follower to the leader.
//!
//! Invariants:
//! - An address has one connection, one attempt to connect in flight, and one backoff, however
//!   many calls wait for it.
//! - A connection is discarded when a call over it gets no response, or one that is not from the
//!   leader that the call was meant for.
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
    call::{Checked, RoutedResponse, ScaleCall},
    callers::{CALLER, Caller},
    errors,
};
use crate::{
    election::Leader,
    proto::ottoscaler_service_client::OttoscalerServiceClient,
    telemetry,
    tls::{Connector, TcpOptions, TlsPeer},
};

/// The metadata key that marks a forwarded call; its value is the replica that sent it.
pub(super) const FORWARDED: &str = "ottoscaler-forwarded";
/// The metadata key of the term that a forwarded call is meant for, which the response repeats:
/// the address may belong to another pod by now, even to one of another installation.
pub(super) const TERM: &str = "ottoscaler-term";
pub(super) const REQUEST_ID: &str = "request_id";
pub(super) const TASK_VERSION: &str = "ottoscaler-task-version";
pub(super) const POD_VERSION: &str = "ottoscaler-pod-version";

/// The timeout of one attempt to connect to the leader. It is in the same cluster, where a
/// connection takes milliseconds; a leader that is gone must not use up the call's deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The keepalive interval of HTTP/2 while a call is in flight, and of TCP. With it, the loss of
/// the leader's host is noticed before the call's deadline. The peer is Ottoscaler, which does not
/// limit pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The number of addresses for which a connection is kept. One replica leads at a time; former
/// leaders are kept because they may lead again.
const MAX_CONNECTIONS: usize = 8;
/// The first delay before an address is tried again. It doubles up to [`MAX_BACKOFF`]. A call
/// that waits for it still notices a new leader at once.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// The longest delay before an address is tried again: a leader that is reachable again is reached
/// within a second.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// A `ForwardingClient` sends calls to the leader in another replica.
#[derive(Debug)]
pub(super) struct ForwardingClient {
    pod_name: String,
    connector: Connector,
    /// The connections by address. Calls write and read them.
    connections: Mutex<HashMap<String, SharedConnection>>,
    /// The number of attempts to connect so far.
    attempts: AtomicU64,
}

/// A `SharedConnection` is the connection to one address, which all calls to it share.
#[derive(Debug, Default)]
struct SharedConnection {
    /// The connection with the number of its attempt. When there is none, the next call connects.
    current: Option<(ConnectFuture, u64)>,
    /// The number of attempts in a row over which no leader answered.
    failures: u32,
    /// The reason for which the last connection was discarded.
    last_error: Option<Arc<str>>,
}

/// The outcome of an attempt to connect, which many calls await.
type ConnectFuture = Shared<BoxFuture<'static, Result<Channel, Arc<str>>>>;

impl ForwardingClient {
    /// With `tls` the leader must have the certificate of a replica.
    pub(super) fn new(pod_name: &str, tls: Option<TlsPeer>) -> Self {
        let tcp = TcpOptions {
            keepalive: KEEPALIVE_INTERVAL,
            retries: 1,
        };
        Self {
            pod_name: pod_name.to_owned(),
            connector: Connector::new(tcp, tls),
            connections: Mutex::default(),
            attempts: AtomicU64::new(0),
        }
    }

    /// Sends a call to the leader. It waits for a connection without a limit of its own: the
    /// caller bounds it.
    #[tracing::instrument(level = "info", name = "forward to leader", skip_all, fields(otel.kind = "client", server.address = leader.address.as_deref()))]
    pub(super) async fn send(
        &self,
        leader: &Leader,
        call: &ScaleCall,
    ) -> Result<RoutedResponse, Status> {
        let (address, term) = (
            leader.address.as_deref().unwrap_or_default(),
            leader.term.to_string(),
        );
        let (channel, attempt) = self.channel(address).await?;
        let mut client = OttoscalerServiceClient::new(channel);
        let mut request = Request::new(call.request.clone());
        let metadata = request.metadata_mut();
        insert_metadata(metadata, FORWARDED, &self.pod_name);
        if let Some(caller) = &call.caller {
            self.insert_caller(metadata, caller);
        }
        insert_metadata(metadata, TERM, &term);
        insert_metadata(metadata, REQUEST_ID, &call.request_id);
        telemetry::inject(metadata, call.traceparent.as_deref());
        request.set_timeout(call.deadline.saturating_duration_since(Instant::now()));
        let result = match call.checked {
            Checked::Up(_) => client.scale_up(request).await,
            Checked::Down(_) => client.scale_down(request).await,
        };
        let answered_term = match &result {
            Ok(response) => response.metadata().get(TERM),
            Err(status) => status.metadata().get(TERM),
        };
        let is_from_leader =
            answered_term.is_some_and(|answered| answered.as_bytes() == term.as_bytes());
        if is_from_leader {
            self.record_success(address, attempt);
        } else {
            let error = match &result {
                Ok(_) => "another server answers at this address",
                Err(status) => status.message(),
            };
            self.record_failure(address, attempt, error.into());
        }
        let response = match result {
            Err(status) if errors::is_retryable(status.code()) => return Err(status),
            // A success or a final refusal counts only when it is from the leader.
            _ if !is_from_leader => {
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
        Ok(RoutedResponse {
            task_version: version(TASK_VERSION),
            pod_version: version(POD_VERSION),
            response: response.into_inner(),
        })
    }

    /// Names the caller, for a leader that believes this replica, and passes the caller's token on,
    /// for one that has no proof of who forwards. To the latter the marks count the hops.
    fn insert_caller(&self, metadata: &mut MetadataMap, caller: &Caller) {
        insert_metadata(metadata, CALLER, &caller.name);
        for _ in 0..caller.hops {
            if let Ok(mark) = self.pod_name.parse() {
                metadata.append(FORWARDED, mark);
            }
        }
        if let Some(authorization) = &caller.authorization {
            metadata.insert("authorization", authorization.clone());
        }
    }

    /// Returns why the last connection to an address failed, unless one has worked since.
    pub(super) fn last_error(&self, address: &str) -> Option<Arc<str>> {
        self.connections()
            .get(address)
            .and_then(|connection| connection.last_error.clone())
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<String, SharedConnection>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a connection to an address and the number of the attempt that made it.
    async fn channel(&self, address: &str) -> Result<(Channel, u64), Status> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| {
                errors::not_leader(format!("the leader's address {address:?} is invalid: {e}"))
            })?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_INTERVAL / 2);
        loop {
            let (connected, attempt) = self.current_connection(address, &endpoint);
            match connected.await {
                Ok(channel) => return Ok((channel, attempt)),
                Err(error) => self.record_failure(address, attempt, error),
            }
        }
    }

    /// Returns the connection to an address. If there is none, it starts the next attempt.
    fn current_connection(&self, address: &str, endpoint: &Endpoint) -> (ConnectFuture, u64) {
        let mut connections = self.connections();
        if connections.len() >= MAX_CONNECTIONS && !connections.contains_key(address) {
            connections.clear();
        }
        let connection = connections.entry(address.to_owned()).or_default();
        if let Some((connected, attempt)) = &connection.current {
            return (connected.clone(), *attempt);
        }
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let (endpoint, backoff) = (endpoint.clone(), backoff(connection.failures));
        let connector = self.connector.clone();
        let connect = async move {
            sleep(backoff).await;
            let connected: Result<Channel, Arc<str>> = endpoint
                .connect_with_connector(connector)
                .await
                .map_err(|e| format!("{:#}", anyhow::Error::from(e)).into());
            connected
        };
        let connected = connect.boxed().shared();
        connection.current = Some((connected.clone(), attempt));
        (connected, attempt)
    }

    /// Records that the leader answered over the connection of this attempt.
    fn record_success(&self, address: &str, attempt: u64) {
        if let Some(connection) = self
            .connections()
            .get_mut(address)
            .filter(|c| c.is_of(attempt))
        {
            connection.failures = 0;
            connection.last_error = None;
        }
    }

    /// Discards the connection of this attempt; the next call connects again after the backoff.
    /// The first of the calls that shared the connection discards it for all of them.
    fn record_failure(&self, address: &str, attempt: u64, error: Arc<str>) {
        if let Some(connection) = self
            .connections()
            .get_mut(address)
            .filter(|c| c.is_of(attempt))
        {
            tracing::debug!(address, "the leader was not reached");
            connection.failures = connection.failures.saturating_add(1);
            connection.last_error = Some(error);
            connection.current = None;
        }
    }

    #[cfg(test)]
    pub(super) fn connect_attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }
}

impl SharedConnection {
    fn is_of(&self, attempt: u64) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|(_, current)| *current == attempt)
    }
}

fn backoff(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(more) => (MIN_BACKOFF * 2_u32.pow(more.min(10))).min(MAX_BACKOFF),
    }
}

pub(super) fn insert_metadata(metadata: &mut MetadataMap, key: &'static str, value: &str) {
    // A value that is not a valid header value is left out.
    if let Ok(value) = value.parse() {
        metadata.insert(key, value);
    }
}
