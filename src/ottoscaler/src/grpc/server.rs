//! The gRPC servers of a replica. [`Server::serve`] lists the whole stack of layers.
use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, body::Body, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use tower::ServiceBuilder;

use super::{
    Callers, Health, ReplicaService, Router,
    admin::Admin,
    call::ScaleMethod,
    errors,
    errors::record_outcome,
    limits::CallLimits,
    reads::SyncedIndex,
    span::CallSpans,
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
    listen::{self, ConnectionHandle, Lifecycle, Listener},
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
    tls::Tls,
};

/// The largest ScaleUp or ScaleDown request in bytes: two maps of at most 128 KiB, and some text.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// The largest request in bytes of all other methods, which carry little more than names.
const MAX_SMALL_REQUEST_BYTES: usize = 64 * 1024;
/// The number of calls in flight over all connections. They stay far below the memory limit, for
/// the bytes of their requests and responses have bounds of their own.
const MAX_CALLS: usize = 4_000;
/// The bytes of status responses that clients have yet to read: an eighth of 512 MiB, and room for
/// twenty pages of the default size.
const MAX_UNDELIVERED_BYTES: usize = 64 * 1024 * 1024;
/// The number of streams of WatchWorkers and WatchTasks. Over 10,000 workers each of them holds
/// about a megabyte.
const MAX_WATCHES: usize = 64;
/// The number of calls in flight on the probe port. Its connections together cannot reach it, so
/// that no other caller can keep the kubelet's probe from being answered.
const MAX_PROBE_CALLS: usize = 512;
/// The bytes of all requests that have yet to be answered: 500 held calls of 64 KiB. Each of them
/// is in memory about three times while it is forwarded.
const MAX_PENDING_REQUEST_BYTES: usize = 32 * 1024 * 1024;
/// The time in which a client must send its whole request: 1 MiB at 50 KiB a second.
const REQUEST_BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// A `ServeError` says why a server could not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
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
    /// Serves until `stop` is cancelled. With `tls` it takes connections with TLS only.
    ///
    /// # Errors
    /// Returns a [`ServeError`] when the server cannot start.
    pub async fn serve(
        self,
        listener: Listener,
        tls: Option<Tls>,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        let reads = SyncedIndex::new(self.index);
        let service = ReplicaService {
            router: self.router,
            index: reads.clone(),
            policy: self.policy,
            pause: self.pause.clone(),
            response_bytes: UndeliveredResponses::new(MAX_UNDELIVERED_BYTES),
            watch_streams: UndeliveredResponses::new(MAX_WATCHES),
        };
        let admin = Admin {
            pause: self.pause,
            switch: self.switch,
            show: self.show,
            index: reads,
        };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let routes = Routes::new(
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
        );
        let service = ServiceBuilder::new()
            .map_request(|request: http::Request<Incoming>| request.map(Body::new))
            // The outermost layer opens a span for every call, in the caller's trace.
            .layer(CallSpans)
            .layer(CallLimits::new(
                MAX_CALLS,
                MAX_PENDING_REQUEST_BYTES,
                REQUEST_BODY_TIMEOUT,
            ))
            // Inside the limits, which bound the time of a review too.
            .layer(tower::util::option_layer(self.callers.layer()))
            .service(routes.prepare());
        let drain = self.drain;
        listen::serve(listener, tls, service, Lifecycle { drain, stop }).await;
        Ok(())
    }

    /// Serves the health service alone, without TLS, on the port for probes until `stop` is
    /// cancelled.
    pub async fn serve_health(health: Health, listener: Listener, stop: CancellationToken) {
        let health = HealthServer::new(health).max_decoding_message_size(MAX_SMALL_REQUEST_BYTES);
        let service = ServiceBuilder::new()
            .map_request(|request: http::Request<Incoming>| request.map(Body::new))
            .layer(CallLimits::new(
                MAX_PROBE_CALLS,
                MAX_SMALL_REQUEST_BYTES,
                REQUEST_BODY_TIMEOUT,
            ))
            .service(Routes::new(health).prepare());
        // The kubelet is answered until the end.
        let drain = CancellationToken::new();
        listen::serve(listener, None, service, Lifecycle { drain, stop }).await;
    }
}

impl ReplicaService {
    /// Returns the index and the capacity for a stream that follows it, and when it must end.
    fn watch_slot(
        &self,
        extensions: &tonic::Extensions,
    ) -> Result<(Index, Arc<DeliverySlot>, CancellationToken), Status> {
        let index = self.index.synced()?.clone();
        let peer = extensions.get::<ConnectionHandle>();
        let slot = self.watch_streams.reserve(1, peer).ok_or_else(|| {
            errors::resource_exhausted(format!(
                "this replica has {MAX_WATCHES} watches in flight; try another replica, or try again later"
            ))
        })?;
        Ok((index, slot, ConnectionHandle::closing_of(extensions)))
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
            let (index, slot, closing) = self.watch_slot(request.extensions())?;
            Ok(WorkerWatch::new(index, selection, closing, slot))
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
            let (index, slot, closing) = self.watch_slot(request.extensions())?;
            Ok(TaskWatch::new(index, filter, closing, slot))
        });
        Ok(Response::new(Box::pin(record_outcome(watch)?.events())))
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
