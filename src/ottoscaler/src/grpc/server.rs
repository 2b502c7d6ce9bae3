//! The listening side: one function lists the whole stack.
use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport};
use tonic_health::pb::health_server::HealthServer;

use super::{
    Guest, Health, Listener, Router, Service, admin::Admin, call::Verb, errors, errors::answered,
    limits::Limits, listen::Peer, reads::Reads, status, untaken::Untaken, watch::Watch,
};
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
/// Of all other requests, which carry little but names.
const MAX_NAMES: usize = 64 * 1024;
/// Calls of one connection under way, and of all.
const MAX_STREAMS: u32 = 1_000;
const MAX_CALLS: usize = 4_000;
/// Bytes of status answers that clients have yet to take.
const MAX_ANSWERS: usize = 64 * 1024 * 1024;
/// Streams of WatchWorkers. Over 10,000 workers each holds about a megabyte.
const MAX_WATCHES: usize = 64;
/// The same on the port for probes. All its connections together cannot take as many,
/// so that no caller's can keep the kubelet's probe from its answer.
const MAX_PROBE_STREAMS: u32 = 4;
const MAX_PROBES: usize = 512;
/// Bytes of all requests that have yet to be answered: 500 held calls of 64 KiB. Each
/// is in memory about three times while it crosses the hop.
const MAX_REQUESTS: usize = 32 * 1024 * 1024;
/// For a request to be sent whole: 1 MiB at 50 KiB a second.
const REQUEST_WITHIN: Duration = Duration::from_secs(20);
/// For calls to end after the drain.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// The server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error("cannot listen on port {0}: {1}; is the port taken?")]
    Listen(u16, std::io::Error),
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
    pub fn listen(port: u16, guest: Guest) -> Result<Listener, Stopped> {
        Listener::bind(port, guest).map_err(|e| Stopped::Listen(port, e))
    }

    /// Serves until `stop`, then for the last calls.
    ///
    /// # Errors
    /// See [`Stopped`].
    pub async fn serve(self, listener: Listener, stop: CancellationToken) -> Result<(), Stopped> {
        let reads = Reads::new(self.index);
        let service = Service {
            router: self.router,
            index: reads.clone(),
            policy: self.policy,
            pause: self.pause.clone(),
            drain: self.drain.clone(),
            answers: Untaken::new(MAX_ANSWERS),
            watches: Untaken::new(MAX_WATCHES),
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
        let serve = transport(MAX_STREAMS)
            // Outermost: a span for every call, in the caller's trace.
            .trace_fn(span)
            .layer(Limits::new(MAX_CALLS, MAX_REQUESTS, REQUEST_WITHIN))
            .add_service(
                OttoscalerServiceServer::new(service)
                    .max_decoding_message_size(MAX_REQUEST)
                    .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
                    .send_compressed(tonic::codec::CompressionEncoding::Gzip),
            )
            .add_service(
                OttoscalerAdminServiceServer::new(admin).max_decoding_message_size(MAX_NAMES),
            )
            .add_service(HealthServer::new(self.health).max_decoding_message_size(MAX_NAMES))
            .add_service(
                reflection()
                    .build_v1()?
                    .max_decoding_message_size(MAX_NAMES),
            )
            .add_service(
                reflection()
                    .build_v1alpha()?
                    .max_decoding_message_size(MAX_NAMES),
            )
            .serve_with_incoming_shutdown(listener.incoming(), stop.clone().cancelled_owned());
        bounded(serve, stop).await
    }

    /// Health alone, on the port of its own that probes use.
    ///
    /// # Errors
    /// See [`Stopped`].
    pub async fn serve_health(
        health: Health,
        listener: Listener,
        stop: CancellationToken,
    ) -> Result<(), Stopped> {
        let serve = transport(MAX_PROBE_STREAMS)
            .layer(Limits::new(MAX_PROBES, MAX_NAMES, REQUEST_WITHIN))
            .add_service(HealthServer::new(health).max_decoding_message_size(MAX_NAMES))
            .serve_with_incoming_shutdown(listener.incoming(), stop.clone().cancelled_owned());
        bounded(serve, stop).await
    }
}

/// What holds for the connections of both ports; `streams` of each at a time.
fn transport(streams: u32) -> transport::Server {
    transport::Server::builder()
        // Dead peers are noticed, so that held calls end with their client.
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE / 2))
        // One client cannot take all memory.
        .max_concurrent_streams(streams)
        // hyper's own default, which tonic takes away (RUSTSEC-2024-0003).
        .http2_max_local_error_reset_streams(Some(1_024))
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
        let watch = status::selection(request.get_ref()).and_then(|selection| {
            let index = self.index.synced()?.clone();
            let peer = request.extensions().get::<Peer>();
            let place = self.watches.hold(1, peer).ok_or_else(|| {
                errors::exhausted(format!(
                    "this replica has {MAX_WATCHES} watches under way; ask another one, or later"
                ))
            })?;
            Ok(Watch::new(index, selection, self.drain.clone(), place))
        });
        Ok(Response::new(Box::pin(answered(watch)?.events())))
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
