//! The one hop from a follower to the leader.
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
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
/// Leaders that a channel is kept for.
const MAX_CHANNELS: usize = 8;

#[derive(Debug)]
pub(super) struct Forward {
    pod_name: String,
    /// By address. Written and read by calls.
    channels: Mutex<HashMap<String, Channel>>,
}

impl Forward {
    pub(super) fn new(pod_name: &str) -> Self {
        Self {
            pod_name: pod_name.to_owned(),
            channels: Mutex::default(),
        }
    }

    #[tracing::instrument(level = "info", name = "forward to leader", skip_all, fields(otel.kind = "client", server.address = leader.address))]
    pub(super) async fn send(&self, leader: &Leader, call: &Call) -> Result<Answer, Status> {
        let (address, term) = (leader.address.as_str(), leader.term.to_string());
        let mut client = OttoscalerServiceClient::new(self.channel(address)?);
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
        if result.is_err() || !is_of_leader {
            self.forget(address);
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

    fn channel(&self, address: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
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
        if channels.len() >= MAX_CHANNELS {
            channels.clear();
        }
        let channel = endpoint.connect_lazy();
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A connection that failed is not used again.
    fn forget(&self, address: &str) {
        self.channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(address);
    }
}

pub(super) fn put(metadata: &mut MetadataMap, key: &'static str, value: &str) {
    // A value that is no header value is left out.
    if let Ok(value) = value.parse() {
        metadata.insert(key, value);
    }
}
