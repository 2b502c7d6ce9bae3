//! W3C trace context in and out.
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const TRACEPARENT: &str = "traceparent";

struct One<'a>(&'a str);

impl Extractor for One<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }
    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

#[derive(Default)]
struct Taken(Option<String>);

impl Injector for Taken {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = Some(value);
        }
    }
}

/// Puts a span into the trace of a `traceparent`; a text that is none changes
/// nothing.
pub fn set_parent_from(span: &Span, traceparent: &str) {
    let parent =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &One(traceparent));
    // Without a tracing layer there is nothing to set.
    let _ = span.set_parent(parent);
}

/// The same from the headers of a call.
pub fn set_parent_from_headers(span: &Span, headers: &http::HeaderMap) {
    if let Some(text) = headers.get(TRACEPARENT).and_then(|v| v.to_str().ok()) {
        set_parent_from(span, text);
    }
}

/// The `traceparent` of a span; None when nothing is traced.
pub fn traceparent(span: &Span) -> Option<String> {
    let mut taken = Taken::default();
    TraceContextPropagator::new().inject_context(&span.context(), &mut taken);
    taken.0
}

/// Sends the current span's context along with a call; without one, what came
/// with the caller (`fallback`).
pub fn inject(metadata: &mut MetadataMap, fallback: Option<&str>) {
    let text = traceparent(&Span::current()).or_else(|| fallback.map(str::to_owned));
    if let Some(value) = text.and_then(|t| t.parse().ok()) {
        metadata.insert(MetadataKey::from_static(TRACEPARENT), value);
    }
}
