//! The gRPC servers of a replica. [`Server::serve`] lists the whole stack of layers.
use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport};
use tonic_health::pb::health_server::HealthServer;

use super::{
    Callers, ConnectionLimits, Health, Listener, ReplicaService, Router,
    admin::Admin,
    call::ScaleMethod,
    errors,
    errors::record_outcome,
    limits::CallLimits,
    listen::ConnectionHandle,
    reads::SyncedIndex,
    status,
    task_watch::TaskWatch,
    tasks,
    undelivered::{DeliverySlot, UndeliveredResponses},
    watch::WorkerWatch,
};
use crate::{
    domain::template::Policy,
    election::{Pause, PauseSwitch},
    index::Index,
    logs::LogViewer,
    proto::{
        self, ListTasksRequest, ListTasksResponse, ScaleRequest, ScaleResponse, TaskEvent,
        WorkerStatusRequest,
        encoded::{
            WorkerEvent, WorkerStatusResponse,
            ottoscaler_service_server::{OttoscalerService, OttoscalerServiceServer},
        },
        ottoscaler_admin_service_server::OttoscalerAdminServiceServer,
    },
    telemetry,
};

/// The keepalive interval of TCP and HTTP/2. Firewalls and load balancers forget silent connections
/// after minutes, and a host that is gone frees what its calls hold.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// The largest ScaleUp or ScaleDown request in bytes: two maps of at most 128 KiB, and some text.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// The largest request in bytes of all other methods, which carry little more than names.
const MAX_SMALL_REQUEST_BYTES: usize = 64 * 1024;
/// The number of calls in flight over one connection. otto-handler may use a single connection for
/// as many workers as a task may have.
const MAX_STREAMS_PER_CONNECTION: u32 = 1_000;
/// The number of calls in flight over all connections. They stay far below the memory limit, for
/// the bytes of their requests and responses have bounds of their own.
const MAX_CALLS: usize = 4_000;
/// The bytes of status responses that clients have yet to read: an eighth of 512 MiB, and room for
/// twenty pages of the default size.
const MAX_UNDELIVERED_BYTES: usize = 64 * 1024 * 1024;
/// The number of streams of WatchWorkers and WatchTasks. Over 10,000 workers each of them holds
/// about a megabyte.
const MAX_WATCHES: usize = 64;
/// The number of calls in flight over one connection of the probe port. A probe needs one.
const MAX_PROBE_STREAMS_PER_CONNECTION: u32 = 4;
/// The number of calls in flight on the probe port. Its connections together cannot reach it, so
/// that no other caller can keep the kubelet's probe from being answered.
const MAX_PROBE_CALLS: usize = 512;
/// The bytes of all requests that have yet to be answered: 500 held calls of 64 KiB. Each of them
/// is in memory about three times while it is forwarded.
const MAX_PENDING_REQUEST_BYTES: usize = 32 * 1024 * 1024;
/// The time in which a client must send its whole request: 1 MiB at 50 KiB a second.
const REQUEST_BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// The time that calls in flight have to end once the server stops. It is well within the
/// termination grace period; what does not end by then is a stream or a client that does not read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A `ServeError` says why a server could not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on port {0}: {1}; is the port taken?")]
    Listen(u16, std::io::Error),
    #[error("the gRPC server stopped: {0}")]
    Transport(#[from] transport::Error),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A `Server` serves the gRPC services of one replica.
#[derive(Debug, Clone)]
pub struct Server {
    pub router: Arc<Router>,
    pub index: Index,
    pub policy: Arc<Policy>,
    pub pause: Pause,
    pub switch: PauseSwitch,
    pub show: LogViewer,
    pub health: Health,
    pub callers: Callers,
    /// Cancelled when the replica drains. Long streams then end, so that their clients go to
    /// another replica.
    pub drain: CancellationToken,
}

impl Server {
    /// Listens on a port.
    ///
    /// # Errors
    /// Returns [`ServeError::Listen`] when the port cannot be listened on.
    pub fn listen(port: u16, guest: ConnectionLimits) -> Result<Listener, ServeError> {
        Listener::bind(port, guest).map_err(|e| ServeError::Listen(port, e))
    }

    /// Serves until `stop`, and then until the calls in flight have ended, for at most
    /// [`DRAIN_TIMEOUT`].
    ///
    /// # Errors
    /// Returns a [`ServeError`] when the server cannot start or fails.
    pub async fn serve(
        self,
        listener: Listener,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        let reads = SyncedIndex::new(self.index);
        let service = ReplicaService {
            router: self.router,
            index: reads.clone(),
            policy: self.policy,
            pause: self.pause.clone(),
            drain: self.drain.clone(),
            response_bytes: UndeliveredResponses::new(MAX_UNDELIVERED_BYTES),
            watch_streams: UndeliveredResponses::new(MAX_WATCHES),
        };
        let admin = Admin {
            pause: self.pause,
            switch: self.switch,
            show: self.show,
            index: reads,
            drain: self.drain,
        };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let serve = server_builder(MAX_STREAMS_PER_CONNECTION)
            // The outermost layer opens a span for every call, in the caller's trace.
            .trace_fn(call_span)
            .layer(CallLimits::new(
                MAX_CALLS,
                MAX_PENDING_REQUEST_BYTES,
                REQUEST_BODY_TIMEOUT,
            ))
            // Inside the limits, which bound the time of a review too.
            .layer(tower::util::option_layer(self.callers.layer()))
            .add_service(
                OttoscalerServiceServer::new(service)
                    .max_decoding_message_size(MAX_REQUEST_BYTES)
                    // Responses stay uncompressed: inside a cluster gzip costs more time than
                    // it saves, and grpc-js always offers it.
                    .accept_compressed(tonic::codec::CompressionEncoding::Gzip),
            )
            .add_service(
                OttoscalerAdminServiceServer::new(admin)
                    .max_decoding_message_size(MAX_SMALL_REQUEST_BYTES),
            )
            .add_service(
                HealthServer::new(self.health).max_decoding_message_size(MAX_SMALL_REQUEST_BYTES),
            )
            .add_service(
                reflection()
                    .build_v1()?
                    .max_decoding_message_size(MAX_SMALL_REQUEST_BYTES),
            )
            .add_service(
                reflection()
                    .build_v1alpha()?
                    .max_decoding_message_size(MAX_SMALL_REQUEST_BYTES),
            )
            .serve_with_incoming_shutdown(listener.incoming(), stop.clone().cancelled_owned());
        serve_until_stopped(serve, stop).await
    }

    /// Serves the health service alone, on the port for probes.
    ///
    /// # Errors
    /// Returns a [`ServeError`] when the server fails.
    pub async fn serve_health(
        health: Health,
        listener: Listener,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        let serve = server_builder(MAX_PROBE_STREAMS_PER_CONNECTION)
            .layer(CallLimits::new(
                MAX_PROBE_CALLS,
                MAX_SMALL_REQUEST_BYTES,
                REQUEST_BODY_TIMEOUT,
            ))
            .add_service(
                HealthServer::new(health).max_decoding_message_size(MAX_SMALL_REQUEST_BYTES),
            )
            .serve_with_incoming_shutdown(listener.incoming(), stop.clone().cancelled_owned());
        serve_until_stopped(serve, stop).await
    }
}

/// Returns the settings that both ports share, with at most `streams` calls at a time over one
/// connection.
fn server_builder(streams: u32) -> transport::Server {
    transport::Server::builder()
        // A dead peer is noticed, so that held calls end with their client.
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_INTERVAL / 2))
        // One client cannot use up the memory.
        .max_concurrent_streams(streams)
        // This is hyper's default, which tonic overrides with no limit (RUSTSEC-2024-0003).
        .http2_max_local_error_reset_streams(Some(1_024))
}

/// Runs a server until it has stopped, and at most [`DRAIN_TIMEOUT`] after `stop`: a graceful stop
/// can hang on an idle connection (hyper#4170).
async fn serve_until_stopped(
    serve: impl Future<Output = Result<(), transport::Error>>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let drain_timeout = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        result = serve => Ok(result?),
        () = drain_timeout => Ok(()),
    }
}

/// Returns the span of a call, in its caller's trace.
fn call_span(request: &http::Request<()>) -> tracing::Span {
    let method = request.uri().path().trim_start_matches('/');
    // Health probes come every few seconds and are not traced.
    if method.starts_with("grpc.") {
        return tracing::Span::none();
    }
    let span = tracing::info_span!(
        "grpc",
        otel.name = method,
        otel.kind = "server",
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = tracing::field::Empty
    );
    telemetry::set_parent_from_headers(&span, request.headers());
    span
}

impl ReplicaService {
    /// Returns the index and the capacity for a stream that follows it.
    fn watch_slot(
        &self,
        extensions: &tonic::Extensions,
    ) -> Result<(Index, Arc<DeliverySlot>), Status> {
        let index = self.index.synced()?.clone();
        let peer = extensions.get::<ConnectionHandle>();
        let slot = self.watch_streams.reserve(1, peer).ok_or_else(|| {
            errors::resource_exhausted(format!(
                "this replica has {MAX_WATCHES} watches in flight; try another replica, or try again later"
            ))
        })?;
        Ok((index, slot))
    }
}

#[tonic::async_trait]
impl OttoscalerService for ReplicaService {
    async fn scale_up(
        &self,
        request: Request<ScaleRequest>,
    ) -> Result<Response<ScaleResponse>, Status> {
        record_outcome(self.scale(ScaleMethod::Up, request).await)
    }

    async fn scale_down(
        &self,
        request: Request<ScaleRequest>,
    ) -> Result<Response<ScaleResponse>, Status> {
        record_outcome(self.scale(ScaleMethod::Down, request).await)
    }

    async fn get_worker_status(
        &self,
        request: Request<WorkerStatusRequest>,
    ) -> Result<Response<WorkerStatusResponse>, Status> {
        record_outcome(self.status(&request))
    }

    type WatchWorkersStream = Pin<Box<dyn Stream<Item = Result<WorkerEvent, Status>> + Send>>;

    async fn watch_workers(
        &self,
        request: Request<WorkerStatusRequest>,
    ) -> Result<Response<Self::WatchWorkersStream>, Status> {
        let watch = status::parse_selection(request.get_ref()).and_then(|selection| {
            let (index, slot) = self.watch_slot(request.extensions())?;
            Ok(WorkerWatch::new(index, selection, self.drain.clone(), slot))
        });
        Ok(Response::new(Box::pin(record_outcome(watch)?.events())))
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        record_outcome(self.tasks(&request))
    }

    type WatchTasksStream = Pin<Box<dyn Stream<Item = Result<TaskEvent, Status>> + Send>>;

    async fn watch_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<Self::WatchTasksStream>, Status> {
        let watch = tasks::parse_filter(request.get_ref()).and_then(|filter| {
            let (index, slot) = self.watch_slot(request.extensions())?;
            Ok(TaskWatch::new(index, filter, self.drain.clone(), slot))
        });
        Ok(Response::new(Box::pin(record_outcome(watch)?.events())))
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
