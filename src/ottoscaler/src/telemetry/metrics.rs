//! The metrics for Prometheus, in the OpenMetrics text format and on a port of their own.
//!
//! Each module registers its own metrics; none of them is global.
use std::sync::Arc;

use axum::{Router, extract::State, http::header::CONTENT_TYPE, response::IntoResponse, routing};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text::encode},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use tokio_util::sync::CancellationToken;

use crate::listen::{self, Lifecycle, Listener};

/// The content type of what [`encode`] writes
/// (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A `RuntimeTasks` reports the number of live tasks of the tokio runtime.
#[derive(Debug)]
struct RuntimeTasks(tokio::runtime::RuntimeMetrics);

impl Collector for RuntimeTasks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let alive = i64::try_from(self.0.num_alive_tasks()).unwrap_or(i64::MAX);
        let about = "Tasks of the runtime";
        let encoder =
            encoder.encode_descriptor("ottoscaler_tasks", about, None, MetricType::Gauge)?;
        ConstGauge::new(alive).encode(encoder)
    }
}

/// Registers the metrics of the process. It must be called inside the runtime.
pub fn register(registry: &mut Registry) {
    let runtime = tokio::runtime::Handle::current().metrics();
    registry.register_collector(Box::new(RuntimeTasks(runtime)));
}

/// Serves `GET /metrics` until `stop` is cancelled.
pub async fn serve(registry: Registry, listener: Listener, stop: CancellationToken) {
    let app = Router::new()
        .route("/metrics", routing::get(metrics))
        .with_state(Arc::new(registry));
    let drain = CancellationToken::new();
    listen::serve(listener, None, app, Lifecycle { drain, stop }).await;
}

async fn metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    // A write to a String does not fail.
    let _ = encode(&mut text, &registry);
    ([(CONTENT_TYPE, OPEN_METRICS)], text)
}
