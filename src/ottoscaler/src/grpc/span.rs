//! The span of a call, in its caller's trace.
use std::task::{Context, Poll};

use http::Request;
use tower::{Layer, Service};
use tracing::{Instrument as _, instrument::Instrumented};

use crate::telemetry;

/// A `CallSpans` layer opens a span for each call.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallSpans;

impl<S> Layer<S> for CallSpans {
    type Service = TracedService<S>;

    fn layer(&self, inner: S) -> TracedService<S> {
        TracedService(inner)
    }
}

/// A `TracedService` runs the service inside in the span of the call.
#[derive(Debug, Clone)]
pub(super) struct TracedService<S>(S);

impl<S, B> Service<Request<B>> for TracedService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let span = span_of(&request);
        let call = span.in_scope(|| self.0.call(request));
        call.instrument(span)
    }
}

/// Returns the span of a call.
fn span_of<B>(request: &Request<B>) -> tracing::Span {
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
