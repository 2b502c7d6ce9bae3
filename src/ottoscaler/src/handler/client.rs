//! Connections to otto-handler.
//!
//! Servers may allow as few as 100 streams on a connection, so log streams are spread over
//! several. A connection is opened when it is needed, and again after it broke. The streams of
//! a connection share its flow-control window: a stream that otto-handler does not read blocks
//! the others. Such a stream is moved to a connection of its own once this is noticed, as long
//! as there are few of them.
//!
//! No HTTP/2 pings are sent. gRPC servers count them, and close a connection with
//! too_many_pings after three pings within five minutes without data in between. TCP keepalive
//! detects that the peer's host is gone. The deadlines of calls detect a peer that does not
//! answer, and its connection is abandoned with the call.
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

use crate::{
    proto::LogForwardResponse,
    telemetry,
    tls::{Connector, TcpOptions, TlsPeer},
};

/// The path that the generated client calls. It is called without that client, because the
/// entries of a stream are encoded in parts.
const FORWARD: &str = "/ottoscaler.v1.OttoHandlerLogService/ForwardWorkerLogs";
/// The timeout of one attempt to connect. It allows for one lost SYN, which is sent again after a
/// second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The silence before a TCP keepalive probe, and between probes. It is well below the five
/// minutes or so after which NATs and load balancers forget a silent connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(20);
/// The number of unanswered probes after which the connection counts as broken: one or two may be
/// lost by chance.
const TCP_KEEPALIVE_RETRIES: u32 = 3;
/// How many streams share a connection: fewer than any known server's limit.
const STREAMS_PER_CONNECTION: usize = 64;
/// How many streams that are not read may have a connection of their own. They are rare; where many
/// streams stand still the handler is slow as a whole, and more connections would not help.
const CONNECTIONS_APART: usize = 8;
/// How many entries of a stream wait for the connection to take them. They keep the connection
/// busy; what waits here is held in the window as well.
const UNSENT: usize = 64;
/// The largest message from otto-handler, in bytes. Its answers are numbers and a short text.
const MAX_ANSWER: usize = 64 * 1024;

/// The client of otto-handler. It is cheap to clone.
#[derive(Debug, Clone)]
pub struct HandlerClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    connector: Connector,
    /// The connection for notifications; replaced after a call on it was not answered.
    notify: Mutex<Channel>,
    /// Connections, and how many streams each of them carries. Callers add connections and
    /// remove none but those that left a stream unanswered: an idle one costs next to nothing.
    connections: Mutex<Vec<(Channel, Arc<AtomicUsize>)>>,
    /// How many connections carry a stream of their own.
    apart: Arc<AtomicUsize>,
}

impl Inner {
    /// Returns a channel that connects with its first call.
    fn connect(&self) -> Channel {
        let connector = self.connector.clone();
        self.endpoint.connect_with_connector_lazy(connector)
    }
}

/// The right to one stream on a connection, given back when it is dropped.
#[derive(Debug)]
struct StreamSlot {
    channel: Channel,
    streams: Arc<AtomicUsize>,
}

impl StreamSlot {
    /// Opens no new streams on this connection. Those that it carries stay on it.
    fn abandon(&self, inner: &Inner) {
        let mut connections = inner
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connections.retain(|(_, streams)| !Arc::ptr_eq(streams, &self.streams));
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HandlerClient {
    /// Returns a client that connects with its first call. It must be called inside the Tokio
    /// runtime.
    ///
    /// # Errors
    /// Fails if `host` (OTTO_HANDLER_HOST) is no host and port.
    pub fn new(host: &str, tls: Option<TlsPeer>) -> Result<Self, tonic::transport::Error> {
        let tcp = TcpOptions {
            keepalive: TCP_KEEPALIVE,
            retries: TCP_KEEPALIVE_RETRIES,
        };
        let connector = Connector::new(tcp, tls);
        let mut endpoint =
            Endpoint::from_shared(format!("http://{host}"))?.connect_timeout(CONNECT_TIMEOUT);
        // The calls say https, which a proxy before otto-handler may check.
        if connector.is_secure()
            && let Ok(origin) = format!("https://{host}").parse()
        {
            endpoint = endpoint.origin(origin);
        }
        let notify = endpoint.connect_with_connector_lazy(connector.clone());
        Ok(Self(Arc::new(Inner {
            endpoint,
            connector,
            notify: Mutex::new(notify),
            connections: Mutex::default(),
            apart: Arc::default(),
        })))
    }

    /// Opens a stream of a worker's entries, which are encoded as `WorkerLogEntry`.
    ///
    /// Entries can be sent at once: many servers (grpc-js) send no headers before their first
    /// message. `apart` asks for a connection of its own, if one is free.
    pub(crate) fn forward<M: prost::Message + Default + 'static>(
        &self,
        traceparent: Option<&str>,
        apart: bool,
    ) -> (mpsc::Sender<M>, Answers) {
        let (entries, outgoing) = mpsc::channel(UNSENT);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        telemetry::inject(request.metadata_mut(), traceparent);
        let slot = apart.then(|| self.slot_apart()).flatten();
        let slot = slot.unwrap_or_else(|| self.slot());
        let mut client = Grpc::new(slot.channel.clone()).max_decoding_message_size(MAX_ANSWER);
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
            slot,
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
        *notify = self.0.connect();
    }

    fn slot_apart(&self) -> Option<StreamSlot> {
        let streams = self.0.apart.clone();
        let there_is_room = |n| (n < CONNECTIONS_APART).then_some(n + 1);
        streams
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, there_is_room)
            .ok()?;
        let channel = self.0.connect();
        Some(StreamSlot { channel, streams })
    }

    fn slot(&self) -> StreamSlot {
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
                let new = (self.0.connect(), Arc::new(AtomicUsize::new(0)));
                connections.push(new.clone());
                new
            }
        };
        streams.fetch_add(1, Ordering::Relaxed);
        StreamSlot { channel, streams }
    }
}

/// An answer; None if otto-handler ended the stream.
pub(crate) type Answered = Result<Option<LogForwardResponse>, Status>;

/// The answers of otto-handler on a stream.
pub(crate) struct Answers {
    stream: Stream,
    slot: StreamSlot,
    of: HandlerClient,
}

type Opened = Result<Response<Streaming<LogForwardResponse>>, Status>;

enum Stream {
    Opening(Pin<Box<dyn Future<Output = Opened> + Send>>),
    Open(Box<Streaming<LogForwardResponse>>),
}

impl Answers {
    /// Opens the next streams on another connection, because this one's peer does not answer.
    /// It may lead to another replica of otto-handler.
    pub(crate) fn abandon_connection(&self) {
        self.slot.abandon(&self.of.0);
    }

    /// Returns the next answer. It is cancel safe.
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

/// Describes a failed call for our own log: the error of the connection, or the code that
/// otto-handler answered. Its message is left out, because it may quote what it was sent.
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
