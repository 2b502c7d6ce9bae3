//! Tests of the exporter against a collector in the same process.
#![expect(clippy::unwrap_used)]
use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{Ready, ready};
use opentelemetry::trace::{Tracer as _, TracerProvider as _};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tonic::{
    Status,
    body::Body,
    server::NamedService,
    transport::{Certificate, ClientTlsConfig, Identity, Server, ServerTlsConfig},
};

use super::exporter;

const SOON: Duration = Duration::from_secs(10);

/// A collector that reports the path of each call and refuses it.
#[derive(Clone)]
struct Collector(mpsc::UnboundedSender<String>);

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl tower::Service<http::Request<Body>> for Collector {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let _ = self.0.send(request.uri().path().to_owned());
        ready(Ok(Status::unimplemented("a test").into_http()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_reach_a_collector_over_tls() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let identity = Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (calls, mut called) = mpsc::unbounded_channel();
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(Collector(calls))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    let mut served = tokio::task::JoinSet::new();
    served.spawn(server);

    let roots = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(made.cert.pem()));
    let exporter = exporter(&format!("https://localhost:{port}"), roots).unwrap();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .build();
    provider.tracer("test").in_span("of a test", |_| {});
    let flushed = tokio::task::spawn_blocking(move || provider.force_flush());
    let path = timeout(SOON, called.recv()).await.unwrap().unwrap();
    assert!(path.ends_with("TraceService/Export"), "{path}");
    // The flush may report that the collector refused the batch.
    let _ = flushed.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_delays_nobody() {
    for scheme in ["http", "https"] {
        let roots = ClientTlsConfig::new().with_native_roots();
        // No process listens at this address.
        let exporter = exporter(&format!("{scheme}://127.0.0.1:1"), roots).unwrap();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .build();
        provider.tracer("test").in_span("of a test", |_| {});
        let ended = tokio::task::spawn_blocking(move || super::TracerGuard(Some(provider)).flush());
        timeout(SOON, ended).await.unwrap().unwrap();
    }
}
