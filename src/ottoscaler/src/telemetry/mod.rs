//! Telemetry: logs to stderr, traces by OTLP, and metrics for Prometheus.
//!
//! Invariants:
//! - Tracing never delays the work and never ends the program. The exporter batches spans in a
//!   thread of its own and drops them when the collector is unreachable.
//! - The log holds identifiers (of tasks, pods, requests, terms), numbers and texts of this
//!   program. What callers, otto-handler or the API server sent is not logged at any level, because
//!   it may be secret. For this reason the log lines of libraries, which print what they read, are
//!   filtered out, and errors of the API server are logged by [`crate::cluster::Loggable`].
pub mod metrics;
mod propagation;

#[cfg(test)]
#[path = "exporter_tests.rs"]
mod exporter_tests;

use std::time::Duration;

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tonic::transport::ClientTlsConfig;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt as _, FilterFn, filter_fn},
    fmt::MakeWriter,
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::args::{Invalid, LogFormat, OWN_TARGETS, TelemetryOptions};

pub use propagation::{inject, set_parent_from, set_parent_from_headers, traceparent};

/// The time in which the collector must accept a batch. A collector that takes longer is
/// overloaded; its spans are dropped, and nothing else waits for them.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// The time in which the last spans must be exported. An end must not wait longer for what only
/// observes it.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// A `TracerGuard` exports the spans that are left at the end of the process.
#[derive(Debug)]
pub struct TracerGuard(Option<SdkTracerProvider>);

impl TracerGuard {
    /// Exports the spans that are left. This blocks for at most two seconds.
    pub fn flush(self) {
        if let Some(provider) = self.0 {
            // The process does not fail when the collector is unreachable.
            let _ = provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Starts logging and tracing. It must be called inside the tokio runtime.
///
/// # Errors
/// Returns [`Invalid`] when a setting of the exporter cannot be used.
pub fn init(
    settings: &TelemetryOptions,
    replica: &str,
    namespace: &str,
) -> anyhow::Result<TracerGuard> {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = match &settings.otel_exporter_otlp_endpoint {
        None => None,
        Some(endpoint) => {
            let roots = ClientTlsConfig::new().with_native_roots();
            let exporter = exporter(endpoint, roots)?;
            let resource = Resource::builder()
                .with_service_name("ottoscaler")
                .with_attributes([
                    KeyValue::new("service.instance.id", replica.to_owned()),
                    KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                    KeyValue::new("k8s.pod.name", replica.to_owned()),
                    KeyValue::new("k8s.namespace.name", namespace.to_owned()),
                ])
                .build();
            Some(
                SdkTracerProvider::builder()
                    .with_resource(resource)
                    .with_batch_exporter(exporter)
                    .build(),
            )
        }
    };
    let otel = provider.as_ref().map(|p| {
        tracing_opentelemetry::layer()
            .with_tracer(p.tracer("ottoscaler"))
            .with_filter(own_targets())
    });
    tracing_subscriber::registry()
        .with(otel)
        .with(log_layer(settings, std::io::stderr)?)
        .try_init()?;
    Ok(TracerGuard(provider))
}

/// Returns a filter that keeps the events and spans of this program and drops those of libraries.
fn own_targets() -> FilterFn<impl Fn(&Metadata<'_>) -> bool> {
    filter_fn(|meta| {
        let target = meta.target();
        OWN_TARGETS.iter().any(|own| target.starts_with(own))
    })
}

/// Returns the layer that writes the log.
///
/// # Errors
/// Returns an error when the level is not a valid filter.
pub(crate) fn log_layer<S>(
    settings: &TelemetryOptions,
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
) -> anyhow::Result<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = EnvFilter::try_new(&settings.log_level)?.and(own_targets());
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    Ok(match settings.log_format {
        LogFormat::Json => layer
            .json()
            .with_span_list(false)
            .with_filter(filter)
            .boxed(),
        LogFormat::Text => layer.with_filter(filter).boxed(),
    })
}

/// Returns an exporter that sends spans to the collector at `endpoint`, over TLS if its scheme is
/// https. It connects when there is something to send, and again after a failure.
fn exporter(endpoint: &str, roots: ClientTlsConfig) -> Result<SpanExporter, Invalid> {
    let builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT);
    let builder = if endpoint.starts_with("https:") {
        builder.with_tls_config(roots)
    } else {
        builder
    };
    builder.build().map_err(|error| {
        let takes = format!("usable with the other OTEL_EXPORTER_OTLP_ variables: {error}");
        Invalid::new("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint, &takes)
    })
}
