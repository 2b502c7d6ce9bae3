//! Opens the connections of gRPC clients, with or without TLS.
use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use tower::{BoxError, Service};

/// A `TlsPeer` is the name that a peer's certificate must have, and the configuration with which it
/// is verified.
#[derive(Clone)]
pub struct TlsPeer {
    name: ServerName<'static>,
    /// Returns the configuration that is current.
    config: Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>,
}

impl TlsPeer {
    pub fn new(
        name: ServerName<'static>,
        config: impl Fn() -> Arc<ClientConfig> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            config: Arc::new(config),
        }
    }
}

impl fmt::Debug for TlsPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsPeer").field(&self.name).finish()
    }
}

/// How the sockets of connections are kept alive.
#[derive(Debug, Clone, Copy)]
pub struct TcpOptions {
    /// The silence before a keepalive probe, and between probes.
    pub keepalive: Duration,
    /// The number of unanswered probes after which a connection counts as broken.
    pub retries: u32,
}

/// A `Connector` opens connections for [`tonic::transport::Endpoint`]s whose scheme is http, also
/// where they use TLS: an endpoint of its own TLS would take the name from the address.
#[derive(Debug, Clone)]
pub struct Connector {
    tcp: HttpConnector,
    tls: Option<TlsPeer>,
}

impl Connector {
    /// Returns a connector. With `tls` the peer is verified at each connection.
    pub fn new(tcp: TcpOptions, tls: Option<TlsPeer>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_keepalive(Some(tcp.keepalive));
        connector.set_keepalive_interval(Some(tcp.keepalive));
        connector.set_keepalive_retries(Some(tcp.retries));
        Self {
            tcp: connector,
            tls,
        }
    }

    /// Says whether the connections use TLS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }
}

/// TCP, or TLS over it.
type Stream = TokioIo<Either<TcpStream, TlsStream<TcpStream>>>;

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.tcp.call(uri);
        let tls = self.tls.clone();
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let Some(TlsPeer { name, config }) = tls else {
                return Ok(TokioIo::new(Either::Left(stream)));
            };
            let secured = TlsConnector::from(config()).connect(name, stream).await?;
            if secured.get_ref().1.alpn_protocol() == Some(b"h2") {
                return Ok(TokioIo::new(Either::Right(secured)));
            }
            let why = "the peer does not offer HTTP/2 over TLS (ALPN h2)";
            Err(io::Error::new(io::ErrorKind::Unsupported, why).into())
        })
    }
}

#[cfg(test)]
#[path = "connector_tests.rs"]
mod tests;
