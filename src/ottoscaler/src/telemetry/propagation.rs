//! The propagation of the W3C trace context from callers and to callees.
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const TRACEPARENT: &str = "traceparent";

/// A `TraceparentExtractor` presents one `traceparent` to the propagator.
struct TraceparentExtractor<'a>(&'a str);

impl Extractor for TraceparentExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }
    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

/// A `TraceparentInjector` keeps the `traceparent` that the propagator writes.
#[derive(Default)]
struct TraceparentInjector(Option<String>);

impl Injector for TraceparentInjector {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = Some(value);
        }
    }
}

/// Puts a span into the trace of a `traceparent`. An invalid text changes nothing.
pub fn set_parent_from(span: &Span, traceparent: &str) {
    let parent = TraceContextPropagator::new()
        .extract_with_context(&Context::new(), &TraceparentExtractor(traceparent));
    // This fails when there is no tracing layer, and then there is nothing to set.
    let _ = span.set_parent(parent);
}

/// Puts a span into the trace of the headers of a call.
pub fn set_parent_from_headers(span: &Span, headers: &http::HeaderMap) {
    if let Some(text) = headers.get(TRACEPARENT).and_then(|v| v.to_str().ok()) {
        set_parent_from(span, text);
    }
}

/// Returns the `traceparent` of a span, or none when nothing is traced.
pub fn traceparent(span: &Span) -> Option<String> {
    let mut injector = TraceparentInjector::default();
    TraceContextPropagator::new().inject_context(&span.context(), &mut injector);
    injector.0
}

/// Adds the context of the current span to the metadata of a call. Without a span it adds the
/// context of the caller (`fallback`).
pub fn inject(metadata: &mut MetadataMap, fallback: Option<&str>) {
    let text = traceparent(&Span::current()).or_else(|| fallback.map(str::to_owned));
    if let Some(value) = text.and_then(|t| t.parse().ok()) {
        metadata.insert(MetadataKey::from_static(TRACEPARENT), value);
    }
}
