//! Logs to stderr, traces by OTLP, metrics for Prometheus.
//!
//! The exporter batches in a thread of its own and drops when the collector is
//! away: tracing never holds work up.
pub mod metrics;
mod propagation;

use std::time::Duration;

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::config::{LogFormat, Telemetry};

pub use propagation::{inject, set_parent_from, set_parent_from_headers, traceparent};

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
/// LOG_LEVEL is no filter, or the OTLP endpoint no URL.
pub fn init(settings: &Telemetry, replica: &str, namespace: &str) -> anyhow::Result<Guard> {
    let filter = || {
        EnvFilter::try_new(&settings.log_level).map_err(|e| {
            anyhow::anyhow!(
                "LOG_LEVEL: {:?} is not a level or filter: {e}",
                settings.log_level
            )
        })
    };
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = match &settings.otlp_endpoint {
        None => None,
        Some(endpoint) => {
            let exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(Duration::from_secs(3))
                .build()?;
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
    // Spans of the libraries below us say nothing that ours do not.
    let traced =
        tracing_subscriber::filter::filter_fn(|meta| meta.target().starts_with("ottoscaler"));
    let otel = provider.as_ref().map(|p| {
        tracing_opentelemetry::layer()
            .with_tracer(p.tracer("ottoscaler"))
            .with_filter(traced)
    });
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let stderr = match settings.log_format {
        LogFormat::Json => stderr
            .json()
            .with_span_list(false)
            .with_filter(filter()?)
            .boxed(),
        LogFormat::Text => stderr.with_filter(filter()?).boxed(),
    };
    tracing_subscriber::registry()
        .with(otel)
        .with(stderr)
        .try_init()?;
    Ok(Guard(provider))
}
