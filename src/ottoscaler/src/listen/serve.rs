//! The accept loop of a port.
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service};

use super::{
    connection::{self, Port},
    socket::Listener,
};
use crate::tls::Tls;

/// The time that calls in flight have to end once the port stops. It is well within the
/// termination grace period; what does not end by then is a stream or a client that does not read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// When a port ends.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Cancelled when the replica drains. Long streams then end, so that their clients go to
    /// another replica.
    pub drain: CancellationToken,
    /// Cancelled when the port takes no more connections and calls.
    pub stop: CancellationToken,
}

/// Serves the connections of a port until `stop` is cancelled, and then until their calls in flight
/// have ended, for at most [`DRAIN_TIMEOUT`]. With `tls` it takes connections with TLS only.
pub async fn serve<S, B>(mut listener: Listener, tls: Option<Tls>, service: S, lifecycle: Lifecycle)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send + Sync + 'static,
{
    let port = Port {
        limits: listener.limits,
        metrics: listener.metrics.clone(),
        tls,
        drain: lifecycle.drain,
        stop: lifecycle.stop.clone(),
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = lifecycle.stop.cancelled() => break,
            accepted = listener.accept() => {
                connections.spawn(connection::run(accepted, port.clone(), service.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    // New clients are refused at once and go to another replica.
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN_TIMEOUT, ended).await.is_err() {
        tracing::info!(
            port = port.limits.name,
            connections = connections.len(),
            "connections that did not end are closed"
        );
        connections.shutdown().await;
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
