//! Metrics for Prometheus (OpenMetrics text), on a port of their own.
//!
//! Each part registers what it counts; nothing is global.
use std::sync::Arc;

use axum::{Router, extract::State, http::header::CONTENT_TYPE, response::IntoResponse, routing};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What [`encode`] writes
/// (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `GET /metrics` until told to stop.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    registry: Registry,
    listener: TcpListener,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/metrics", routing::get(metrics))
        .with_state(Arc::new(registry));
    tokio::select! {
        served = axum::serve(listener, app).into_future() => served,
        // A scrape that is under way may be lost.
        () = stop.cancelled() => Ok(()),
    }
}

async fn metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &registry);
    ([(CONTENT_TYPE, OPEN_METRICS)], text)
}
