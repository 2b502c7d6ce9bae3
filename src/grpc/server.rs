//! The listening side: one function lists the whole stack.
use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport};
use tonic_health::pb::health_server::HealthServer;

use super::{Health, Router, Service, admin::Admin, call::Verb, errors::answered, status, watch};
use crate::{
    domain::template::Policy,
    election::{Pause, PauseSwitch},
    index::Index,
    logs::Show,
    proto::{
        self, ScaleRequest, ScaleResponse, WorkerEvent, WorkerStatusRequest, WorkerStatusResponse,
        ottoscaler_admin_service_server::OttoscalerAdminServiceServer,
        ottoscaler_service_server::{OttoscalerService, OttoscalerServiceServer},
    },
    telemetry,
};

const KEEPALIVE: Duration = Duration::from_secs(30);
/// A request is at most two maps of 128 KiB and some text.
const MAX_REQUEST: usize = 1024 * 1024;
/// Calls of one connection under way.
const MAX_STREAMS: u32 = 1_000;
/// For calls to end after the drain.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// The server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error("cannot listen on {0}: {1}; is the port taken?")]
    Listen(SocketAddr, std::io::Error),
    #[error("the gRPC server stopped: {0}")]
    Transport(#[from] transport::Error),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves one replica.
#[derive(Debug, Clone)]
pub struct Server {
    pub router: Arc<Router>,
    pub index: Index,
    pub policy: Arc<Policy>,
    pub pause: Pause,
    pub switch: PauseSwitch,
    pub show: Show,
    pub health: Health,
    /// Long streams end, so that clients go elsewhere.
    pub drain: CancellationToken,
}

impl Server {
    /// # Errors
    /// The port cannot be listened on.
    pub async fn listen(port: u16) -> Result<TcpListener, Stopped> {
        let address = SocketAddr::from(([0, 0, 0, 0], port));
        TcpListener::bind(address)
            .await
            .map_err(|e| Stopped::Listen(address, e))
    }

    /// Serves until `stop`, then for the last calls.
    ///
    /// # Errors
    /// See [`Stopped`].
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<(), Stopped> {
        let service = Service {
            router: self.router,
            index: self.index,
            policy: self.policy,
            pause: self.pause.clone(),
            drain: self.drain.clone(),
        };
        let admin = Admin {
            pause: self.pause,
            switch: self.switch,
            show: self.show,
            drain: self.drain,
        };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let serve = transport::Server::builder()
            // Outermost: a span for every call, in the caller's trace.
            .trace_fn(span)
            // Dead peers are noticed, so that held calls end with their client.
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE / 2))
            .tcp_nodelay(true)
            // One client cannot take all memory.
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(
                OttoscalerServiceServer::new(service)
                    .max_decoding_message_size(MAX_REQUEST)
                    .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
                    .send_compressed(tonic::codec::CompressionEncoding::Gzip),
            )
            .add_service(OttoscalerAdminServiceServer::new(admin))
            .add_service(HealthServer::new(self.health.service()))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .serve_with_incoming_shutdown(incoming(listener), stop.clone().cancelled_owned());
        bounded(serve, stop).await
    }

    /// Health alone, on the port of its own that probes use.
    ///
    /// # Errors
    /// See [`Stopped`].
    pub async fn serve_health(
        health: Health,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<(), Stopped> {
        let serve = transport::Server::builder()
            .add_service(HealthServer::new(health.service()))
            .serve_with_incoming_shutdown(incoming(listener), stop.clone().cancelled_owned());
        bounded(serve, stop).await
    }
}

fn incoming(listener: TcpListener) -> tokio_stream::wrappers::TcpListenerStream {
    tokio_stream::wrappers::TcpListenerStream::new(listener)
}

/// A graceful stop can hang on an idle connection (hyper#4170): it is bounded.
async fn bounded(
    serve: impl Future<Output = Result<(), transport::Error>>,
    stop: CancellationToken,
) -> Result<(), Stopped> {
    let last_calls = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_CALLS).await;
    };
    tokio::select! {
        result = serve => Ok(result?),
        () = last_calls => Ok(()),
    }
}

fn span(request: &http::Request<()>) -> tracing::Span {
    let method = request.uri().path().trim_start_matches('/');
    // Probes every few seconds are no traces.
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

#[tonic::async_trait]
impl OttoscalerService for Service {
    async fn scale_up(
        &self,
        request: Request<ScaleRequest>,
    ) -> Result<Response<ScaleResponse>, Status> {
        answered(self.scale(Verb::Up, request).await)
    }

    async fn scale_down(
        &self,
        request: Request<ScaleRequest>,
    ) -> Result<Response<ScaleResponse>, Status> {
        answered(self.scale(Verb::Down, request).await)
    }

    async fn get_worker_status(
        &self,
        request: Request<WorkerStatusRequest>,
    ) -> Result<Response<WorkerStatusResponse>, Status> {
        answered(self.status(&request))
    }

    type WatchWorkersStream = Pin<Box<dyn Stream<Item = Result<WorkerEvent, Status>> + Send>>;

    async fn watch_workers(
        &self,
        request: Request<WorkerStatusRequest>,
    ) -> Result<Response<Self::WatchWorkersStream>, Status> {
        let selection = answered(status::selection(request.get_ref()))?;
        let events = watch::watch(self.index.clone(), selection, self.drain.clone());
        Ok(Response::new(Box::pin(events)))
    }
}
