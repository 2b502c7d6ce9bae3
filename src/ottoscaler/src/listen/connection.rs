//! One connection, from the TLS handshake to its end.
use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{either::Either, sync::CancellationToken};
use tower::{BoxError, Service, ServiceExt as _};

use super::{
    limits::{ConnectionLimits, Protocol},
    metrics::{Metrics, Refusal},
    peer::{ConnectionHandle, PeerNames},
    socket::Accepted,
    transport::{Stream, Transport},
};
use crate::tls::Tls;

/// The time in which a peer must send its first bytes, a TLS handshake included. A client sends them
/// as soon as it is connected; this allows for three losses and retransmissions.
pub(super) const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that the calls in flight have after a connection was told to close. It is longer than
/// the longest unary call; streams are told to end at once.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(310);
/// The keepalive interval of HTTP/2, by which a peer that is gone is noticed, so that its held calls
/// end.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// The time in which a keepalive ping must be acknowledged: losses are repaired within seconds.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// The number of streams that a peer may make the server reset by its errors. This is hyper's
/// default (RUSTSEC-2024-0003).
const MAX_LOCAL_ERROR_RESETS: usize = 1_024;

/// A `Port` holds what all connections of a port have in common.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) limits: ConnectionLimits,
    pub(super) metrics: Metrics,
    pub(super) tls: Option<Tls>,
    /// Cancelled when the replica drains; streams then end.
    pub(super) drain: CancellationToken,
    /// Cancelled when the port stops; connections then close in an orderly way.
    pub(super) stop: CancellationToken,
}

/// Serves one connection until it ends.
pub(super) async fn run<S, B>(accepted: Accepted, port: Port, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send + Sync + 'static,
{
    let Accepted { stream, slot } = accepted;
    let name = port.limits.name;
    let _open = port.metrics.open(name);
    let opened_by = Instant::now() + OPENING_TIMEOUT;
    // Cancelled, too, when the replica drains.
    let closing = port.drain.child_token();
    let mut tls = port.tls.clone();
    let (stream, certificates) = match &tls {
        None => (Either::Left(stream), Vec::new()),
        Some(tls) => {
            let secured = tokio::select! {
                secured = handshake(stream, tls, opened_by) => secured,
                () = slot.close.cancelled() => None,
            };
            let Some(secured) = secured else {
                return port.metrics.refused(name, Refusal::Handshake);
            };
            secured
        }
    };
    let names = certificates.first().map(PeerNames::of);
    let handle = ConnectionHandle::new(slot.close.clone(), closing.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(handle.clone());
        if let Some(names) = &names {
            request.extensions_mut().insert(names.clone());
        }
        service.clone().oneshot(request)
    });
    let transport = Transport::new(stream, &port.limits, opened_by, slot.close.clone());
    let http = http(port.limits.protocol);
    let mut connection = pin!(http.serve_connection(TokioIo::new(transport), service));
    let mut end = pin!(sleep(port.limits.jittered_age()));
    let mut is_closing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                // The table and the limits bound what a peer can do wrong.
                if let Err(error) = ended {
                    tracing::debug!(port = name, error, "a connection ended");
                }
                return;
            }
            () = end.as_mut() => {
                if is_closing {
                    return;
                }
            }
            () = port.stop.cancelled(), if !is_closing => {}
            () = distrusted(tls.as_mut(), &certificates), if !is_closing => {
                tracing::info!(port = name, "the certificate of a client is no longer trusted");
            }
        }
        is_closing = true;
        closing.cancel();
        connection.as_mut().graceful_shutdown();
        end.as_mut().reset(Instant::now() + CLOSE_GRACE);
    }
}

/// Returns the secured stream with the certificates that the client showed and the handshake
/// verified, or none when it failed.
async fn handshake(
    stream: TcpStream,
    tls: &Tls,
    until: Instant,
) -> Option<(Stream, Vec<CertificateDer<'static>>)> {
    let acceptor = TlsAcceptor::from(tls.current().server.clone());
    match timeout_at(until, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let shown = shown.iter().map(|c| c.clone().into_owned()).collect();
            Some((Either::Right(stream), shown))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// Waits until the certificates that a client showed are no longer trusted.
async fn distrusted(tls: Option<&mut Tls>, certificates: &[CertificateDer<'_>]) {
    let Some(tls) = tls.filter(|_| !certificates.is_empty()) else {
        return std::future::pending().await;
    };
    while tls.changed().await.trusts_client(certificates) {}
}

/// Returns the settings of HTTP on a port.
fn http(protocol: Protocol) -> auto::Builder<TokioExecutor> {
    // hyper ends a call with its connection, so the tasks of calls need no other owner.
    let mut http = auto::Builder::new(TokioExecutor::new());
    match protocol {
        Protocol::Http2 { max_streams } => {
            http = http.http2_only();
            http.http2()
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .max_concurrent_streams(max_streams)
                .max_local_error_reset_streams(MAX_LOCAL_ERROR_RESETS);
        }
        Protocol::Http1 => {
            http = http.http1_only();
            http.http1().timer(TokioTimer::new());
        }
    }
    http
}
