//! Logs to stderr, traces by OTLP, metrics for Prometheus.
//!
//! The exporter batches in a thread of its own and drops when the collector is
//! away: tracing never holds work up, and never ends the program.
//!
//! What is logged holds identifiers (of tasks, pods, requests, terms), numbers and words of
//! our own. What callers, otto-handler or the API server sent stays out of it at every
//! level: it may be secret. So the lines of libraries, which print what they read, are left
//! out, and errors of the API server are logged by [`crate::cluster::Loggable`].
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

use crate::config::{Invalid, LogFormat, OWN_TARGET, Telemetry};

pub use propagation::{inject, set_parent_from, set_parent_from_headers, traceparent};

/// For the collector to take a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// For the last spans to leave.
const FLUSH: Duration = Duration::from_secs(2);

/// Flushes what is left when asked.
#[derive(Debug)]
pub struct Guard(Option<SdkTracerProvider>);

impl Guard {
    /// Blocks for at most two seconds.
    pub fn flush(self) {
        if let Some(provider) = self.0 {
            // A collector that is away is no reason to fail.
            let _ = provider.shutdown_with_timeout(FLUSH);
        }
    }
}

/// Starts logging and tracing; must run inside the tokio runtime.
///
/// # Errors
/// [`Invalid`]: a setting of the exporter cannot be used.
pub fn init(settings: &Telemetry, replica: &str, namespace: &str) -> anyhow::Result<Guard> {
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
            .with_filter(own())
    });
    tracing_subscriber::registry()
        .with(otel)
        .with(lines(settings, std::io::stderr)?)
        .try_init()?;
    Ok(Guard(provider))
}

/// Our own events and spans, at the level that is set; those of libraries are left out.
fn own() -> FilterFn<impl Fn(&Metadata<'_>) -> bool> {
    filter_fn(|meta| meta.target().starts_with(OWN_TARGET))
}

/// Writes the log.
///
/// # Errors
/// The level is no filter.
pub(crate) fn lines<S>(
    settings: &Telemetry,
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
) -> anyhow::Result<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let logged = EnvFilter::try_new(&settings.log_level)?.and(own());
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    Ok(match settings.log_format {
        LogFormat::Json => lines
            .json()
            .with_span_list(false)
            .with_filter(logged)
            .boxed(),
        LogFormat::Text => lines.with_filter(logged).boxed(),
    })
}

/// Sends spans to the collector at `endpoint`, over TLS where its scheme is https. It
/// connects when there is something to send, and again when that failed.
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
