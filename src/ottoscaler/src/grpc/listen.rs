//! The listening side of every port.
//!
//! Invariants:
//! - One socket listens at every address of both families, or at every address of IPv4 where the
//!   kernel has no IPv6.
//! - Every accepted socket has Nagle's algorithm off, so that a small response leaves at once.
//!   tonic's own setting does not reach sockets that it did not accept itself.
//! - A peer that does not send its first bytes within [`OPENING_TIMEOUT`] is disconnected. After
//!   that HTTP/2 keepalive finds dead peers, and [`ConnectionLimits::idle_timeout`] does where
//!   there is no keepalive.
//! - The connections of a port are bounded by a [`ConnectionTable`].
//! - An error of `accept` neither ends the loop nor makes it spin. `accept` is called again after a
//!   backoff, and only the first error in a row is logged.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream};
use rustix::{
    net::sockopt,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::connections::{ConnectionSlot, ConnectionTable};

/// The time in which a peer must send its first bytes. A client sends them as soon as it is
/// connected; this allows for three losses and retransmissions.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// The delay after the first failed `accept`. It doubles up to [`MAX_BACKOFF`]. Without a delay a
/// process that is out of files would spin.
const MIN_BACKOFF: Duration = Duration::from_millis(10);
/// The longest delay between two calls of `accept`: a second after files are free again connections
/// are accepted.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// The number of connections that the kernel completes before they are accepted. It is what a burst
/// of clients that reconnect needs; the kernel caps it by its own limit.
const BACKLOG: u32 = 1_024;

/// The `ConnectionLimits` of a port are what it requires of its peers.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// The number of connections at a time.
    pub max_connections: usize,
    /// The number of bytes that a peer must send within [`OPENING_TIMEOUT`].
    pub opening_bytes: usize,
    /// The time after which a connection is closed when nothing was received. There is none where
    /// the protocol itself finds dead peers.
    pub idle_timeout: Option<Duration>,
}

impl ConnectionLimits {
    /// The length of the connection preface of HTTP/2 (RFC 9113, 3.4).
    const HTTP2_PREFACE_BYTES: usize = 24;

    /// Returns the limits of the port for clients and other replicas. Its connections take at most
    /// a quarter of the files that this process may open, since logs and the spool need files too.
    pub fn grpc() -> Self {
        let files = getrlimit(Resource::Nofile).current;
        let quarter = files.map_or(usize::MAX, |n| usize::try_from(n / 4).unwrap_or(usize::MAX));
        Self {
            max_connections: quarter.clamp(16, 1_000),
            opening_bytes: Self::HTTP2_PREFACE_BYTES,
            idle_timeout: None,
        }
    }

    /// Returns the limits of the port for the kubelet's probes.
    pub fn health() -> Self {
        Self {
            max_connections: 64,
            ..Self::grpc()
        }
    }

    /// Returns the limits of the port for Prometheus, which uses HTTP/1.
    pub fn metrics() -> Self {
        Self {
            max_connections: 64,
            // This is the length of `GET / HTTP/1.1`.
            opening_bytes: 14,
            // A client that scrapes less often connects again.
            idle_timeout: Some(Duration::from_secs(120)),
        }
    }
}

/// Raises the limit of open files to the hard limit: the usual soft limit of 1,024 is for programs
/// that use `select`. The process calls it once, at its start.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, limit = limit.current, "the limit of open files stays as it is");
    }
}

/// A `Listener` accepts the connections of one port.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    limits: ConnectionLimits,
    table: Arc<ConnectionTable>,
    backoff: AcceptBackoff,
}

impl Listener {
    /// Listens on a port at every address. It must be called inside the runtime.
    ///
    /// # Errors
    /// Returns an error when the port is taken or the process may not listen on it.
    pub fn bind(port: u16, limits: ConnectionLimits) -> io::Result<Self> {
        let socket = listen_on_all(port, TcpSocket::new_v6)?;
        Ok(Self {
            socket,
            limits,
            table: Arc::new(ConnectionTable::new(limits.max_connections)),
            backoff: AcceptBackoff::default(),
        })
    }

    /// Returns the address on which it listens.
    ///
    /// # Errors
    /// Returns the error of the system call.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for the next connection that the table admits.
    pub async fn accept(&mut self) -> Connection {
        loop {
            let accepted = self.socket.accept().await;
            let Some((stream, peer)) = self.backoff.handle(accepted).await else {
                continue;
            };
            // This fails when the peer is gone already, which the next read reports.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY was not set");
            }
            if let Some(slot) = self.table.admit(peer.ip().to_canonical()) {
                return Connection::new(stream, self.limits, slot);
            }
        }
    }

    /// Returns the accepted connections as a stream that does not end.
    pub fn incoming(self) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold(self, |mut listener| async move {
            let connection = listener.accept().await;
            Some((Ok(connection), listener))
        })
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = Option<SocketAddr>;

    async fn accept(&mut self) -> (Connection, Option<SocketAddr>) {
        let connection = Self::accept(self).await;
        let peer = connection.stream.peer_addr().ok();
        (connection, peer)
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        Self::local_addr(self).map(Some)
    }
}

/// Listens at all addresses. `ipv6` makes the socket for both families.
fn listen_on_all(
    port: u16,
    ipv6: impl FnOnce() -> io::Result<TcpSocket>,
) -> io::Result<TcpListener> {
    let listen = |socket: TcpSocket, address: IpAddr| {
        // With it a restarted replica does not wait for its old connections in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind((address, port).into())?;
        socket.listen(BACKLOG)
    };
    let both = ipv6().and_then(|socket| {
        sockopt::set_ipv6_v6only(&socket, false)?;
        listen(socket, Ipv6Addr::UNSPECIFIED.into())
    });
    match both {
        // Another process has the port in one of the families.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(error) => {
            tracing::info!(port, %error, "no IPv6 here: listening on IPv4 only");
            listen(TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into())
        }
        both => both,
    }
}

/// An `AcceptBackoff` delays the next `accept` after an error.
#[derive(Debug, Default)]
struct AcceptBackoff {
    /// The number of errors in a row.
    errors: u32,
}

impl AcceptBackoff {
    /// Returns what was accepted, or none after it has waited for the backoff.
    async fn handle<T>(&mut self, accepted: io::Result<T>) -> Option<T> {
        match accepted {
            Ok(accepted) => {
                if self.errors > 0 {
                    tracing::info!("connections are accepted again");
                    self.errors = 0;
                }
                return Some(accepted);
            }
            // The peer left before it was accepted, which needs no backoff.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                if self.errors == 0 {
                    tracing::warn!(
                        %error,
                        "connections cannot be accepted; trying again. Is the limit of open files too low?"
                    );
                }
                let backoff = MIN_BACKOFF * 2_u32.pow(self.errors.min(10));
                self.errors = self.errors.saturating_add(1);
                sleep(backoff.min(MAX_BACKOFF)).await;
            }
        }
        None
    }
}

/// A `Connection` is an accepted connection with its slot and its deadline.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// The number of first bytes that the peer has yet to send.
    opening_bytes_missing: usize,
    /// The time at which the connection ends if nothing is received before. There is none where
    /// the protocol itself finds dead peers.
    idle_deadline: Option<Pin<Box<Sleep>>>,
    idle_timeout: Option<Duration>,
    close_requested: Pin<Box<WaitForCancellationFutureOwned>>,
    slot: ConnectionSlot,
}

impl Connection {
    fn new(stream: TcpStream, limits: ConnectionLimits, slot: ConnectionSlot) -> Self {
        Self {
            stream,
            opening_bytes_missing: limits.opening_bytes,
            idle_deadline: Some(Box::pin(sleep(OPENING_TIMEOUT))),
            idle_timeout: limits.idle_timeout,
            close_requested: Box::pin(slot.close.clone().cancelled_owned()),
            slot,
        }
    }

    /// Returns ready with the reason once the connection must end.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.close_requested.as_mut().poll(cx).is_ready() {
            let why = "closed, for others need its room";
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        }
        if let Some(idle_deadline) = &mut self.idle_deadline
            && idle_deadline.as_mut().poll(cx).is_ready()
        {
            let why = "the peer was silent for too long";
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        Poll::Pending
    }

    /// Extends the deadline once the peer has sent its first bytes.
    fn bytes_received(&mut self, bytes: usize) {
        self.opening_bytes_missing = self.opening_bytes_missing.saturating_sub(bytes);
        if bytes == 0 || self.opening_bytes_missing > 0 {
            return;
        }
        match (self.idle_timeout, &mut self.idle_deadline) {
            (None, idle_deadline) => *idle_deadline = None,
            (Some(idle_timeout), Some(idle_deadline)) => {
                idle_deadline.as_mut().reset(Instant::now() + idle_timeout)
            }
            (Some(idle_timeout), idle_deadline @ None) => {
                *idle_deadline = Some(Box::pin(sleep(idle_timeout)))
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_close(cx) {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = read {
            self.bytes_received(buffer.filled().len() - before);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // HTTP/1 does not read while it writes to a peer that does not read.
        if let Poll::Ready(error) = self.poll_close(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_close(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A `ConnectionHandle` closes the connection of a call. It is stored in the extensions of the
/// call's request.
#[derive(Debug, Clone, Default)]
pub struct ConnectionHandle(CancellationToken);

impl ConnectionHandle {
    /// Closes the connection with all its calls.
    pub(super) fn close(&self) {
        self.0.cancel();
    }

    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionHandle;

    fn connect_info(&self) -> ConnectionHandle {
        ConnectionHandle(self.slot.close.clone())
    }
}

#[cfg(test)]
#[path = "listen_tests.rs"]
mod tests;
