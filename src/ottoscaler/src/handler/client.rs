//! Connections to otto-handler.
//!
//! Peers may allow as few as 100 streams a connection: log streams are spread
//! over as many connections as that asks for. A connection is made when needed
//! and again when it broke. Streams of one connection share its flow control: one that
//! otto-handler does not read takes the room of all others, so it gets a connection of
//! its own where that is noticed, as long as there are few such.
//!
//! No HTTP/2 pings are sent: servers count them, and those of gRPC end a connection with
//! too_many_pings after three that come within five minutes without data between. TCP
//! keepalive shows a peer's host that is gone on a connection that is silent; a peer that
//! leaves calls unanswered is given up by their deadlines, and the connection with them.
use std::{
    error::Error as _,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{proto::LogForwardResponse, telemetry};

/// As the generated client has it; its entries are encoded by parts.
const FORWARD: &str = "/ottoscaler.v1.OttoHandlerLogService/ForwardWorkerLogs";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Of TCP: silence before a probe, and between probes. Below the five minutes or so after
/// which NATs and load balancers forget a silent connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(20);
const TCP_KEEPALIVE_RETRIES: u32 = 3;
const STREAMS_PER_CONNECTION: usize = 64;
/// Of streams that are not read.
const CONNECTIONS_APART: usize = 8;
/// Entries of a stream that the connection has not taken.
const UNSENT: usize = 64;
/// Of a message from otto-handler, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// otto-handler as this replica sees it; cheap to clone.
#[derive(Debug, Clone)]
pub struct HandlerClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    /// Replaced by calls that it left unanswered.
    notify: Mutex<Channel>,
    /// Connections with the streams they carry. Grown by callers, never shrunk:
    /// an idle connection costs next to nothing. One that leaves a stream unanswered goes.
    connections: Mutex<Vec<(Channel, Arc<AtomicUsize>)>>,
    /// Of one stream each.
    apart: Arc<AtomicUsize>,
}

/// A place on a connection; gives it back when dropped.
#[derive(Debug)]
struct Place {
    channel: Channel,
    streams: Arc<AtomicUsize>,
}

impl Place {
    /// New streams go elsewhere; those that it carries stay on it.
    fn abandon(&self, inner: &Inner) {
        let mut connections = inner
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connections.retain(|(_, streams)| !Arc::ptr_eq(streams, &self.streams));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HandlerClient {
    /// Connects to nothing yet; must run inside the tokio runtime.
    ///
    /// # Errors
    /// `host` (OTTO_HANDLER_HOST) is no host and port.
    pub fn new(host: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{host}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .tcp_keepalive_interval(Some(TCP_KEEPALIVE))
            .tcp_keepalive_retries(Some(TCP_KEEPALIVE_RETRIES))
            .tcp_nodelay(true);
        let notify = endpoint.connect_lazy();
        Ok(Self(Arc::new(Inner {
            endpoint,
            notify: Mutex::new(notify),
            connections: Mutex::default(),
            apart: Arc::default(),
        })))
    }

    /// Opens a stream of a worker's entries. They can be sent at once: many servers
    /// (grpc-js) send no headers before their first answer.
    /// `apart`: on a connection of its own, if that may be. `M` is encoded as a `WorkerLogEntry`.
    pub(crate) fn forward<M: prost::Message + Default + 'static>(
        &self,
        traceparent: Option<&str>,
        apart: bool,
    ) -> (mpsc::Sender<M>, Answers) {
        let (entries, outgoing) = mpsc::channel(UNSENT);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        telemetry::inject(request.metadata_mut(), traceparent);
        let place = apart.then(|| self.place_apart()).flatten();
        let place = place.unwrap_or_else(|| self.place());
        let mut client = Grpc::new(place.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let opening = Box::pin(async move {
            let gone = |error: tonic::transport::Error| {
                let mut status = Status::unavailable("otto-handler is not reached");
                status.set_source(Arc::new(error));
                status
            };
            client.ready().await.map_err(gone)?;
            let codec = ProstCodec::<M, LogForwardResponse>::default();
            let path = PathAndQuery::from_static(FORWARD);
            client.streaming(request, path, codec).await
        });
        let answers = Answers {
            stream: Stream::Opening(opening),
            place,
            of: self.clone(),
        };
        (entries, answers)
    }

    #[cfg(test)]
    pub(crate) fn connections_apart(&self) -> usize {
        self.0.apart.load(Ordering::Relaxed)
    }

    /// The connection for notifications.
    pub(super) fn notify_channel(&self) -> Channel {
        let notify = self.0.notify.lock().unwrap_or_else(PoisonError::into_inner);
        notify.clone()
    }

    /// Leaves the connection for notifications, on which a call was not answered.
    pub(super) fn reconnect_notify(&self) {
        let mut notify = self.0.notify.lock().unwrap_or_else(PoisonError::into_inner);
        *notify = self.0.endpoint.connect_lazy();
    }

    fn place_apart(&self) -> Option<Place> {
        let streams = self.0.apart.clone();
        let there_is_room = |n| (n < CONNECTIONS_APART).then_some(n + 1);
        streams
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, there_is_room)
            .ok()?;
        let channel = self.0.endpoint.connect_lazy();
        Some(Place { channel, streams })
    }

    fn place(&self) -> Place {
        let mut connections = self
            .0
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let free = connections
            .iter()
            .find(|(_, n)| n.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION);
        let (channel, streams) = match free {
            Some((channel, streams)) => (channel.clone(), streams.clone()),
            None => {
                let new = (
                    self.0.endpoint.connect_lazy(),
                    Arc::new(AtomicUsize::new(0)),
                );
                connections.push(new.clone());
                new
            }
        };
        streams.fetch_add(1, Ordering::Relaxed);
        Place { channel, streams }
    }
}

/// None: otto-handler ended the stream.
pub(crate) type Answered = Result<Option<LogForwardResponse>, Status>;

/// What otto-handler answers on a stream.
pub(crate) struct Answers {
    stream: Stream,
    place: Place,
    of: HandlerClient,
}

type Opened = Result<Response<Streaming<LogForwardResponse>>, Status>;

enum Stream {
    Opening(Pin<Box<dyn Future<Output = Opened> + Send>>),
    Open(Box<Streaming<LogForwardResponse>>),
}

impl Answers {
    /// The peer answers nothing: whatever is opened next is opened on another connection,
    /// which may lead to another replica of otto-handler.
    pub(crate) fn abandon_connection(&self) {
        self.place.abandon(&self.of.0);
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Answered {
        loop {
            match &mut self.stream {
                Stream::Opening(opening) => {
                    self.stream = Stream::Open(Box::new(opening.await?.into_inner()));
                }
                Stream::Open(answers) => return answers.message().await,
            }
        }
    }
}

/// A failed call for the log: what the connection said, or the code that otto-handler
/// answered; its own words may quote what it was sent.
pub(crate) fn loggable(status: &Status) -> String {
    let source = status.source();
    let innermost = std::iter::successors(source, |error| (*error).source()).last();
    match innermost {
        Some(error) => format!("{:?}: {error}", status.code()),
        None => format!("answered {:?}", status.code()),
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
