//! The listening side of every port.
//!
//! What holds:
//! - A port is listened on at every address of both families by one socket; where
//!   the kernel has no IPv6, at every address of IPv4.
//! - Every accepted socket has Nagle's algorithm off, so a small answer leaves at
//!   once. tonic's own setting does not reach sockets that it did not accept itself.
//! - A peer that sends nothing is closed: it must send its first bytes within
//!   [`OPENING`]. HTTP/2 keepalive judges it from then on, and [`Guest::quiet`]
//!   where there is none.
//! - The connections of a port are bounded. At the bound the address that holds
//!   most of them loses its newest for a peer that holds fewer; where there is
//!   none, the newcomer is closed. So one client cannot keep all others out.
//! - An error of `accept` neither ends the loop nor makes it spin: it is tried
//!   again after a backoff, and told once.
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
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

/// A client sends its first bytes as soon as it is connected; this leaves room for
/// three that were lost on the way and sent again.
const OPENING: Duration = Duration::from_secs(10);
/// Between two tries of an `accept` that fails; it doubles up to the longest.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// Connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1_024;
/// Between two log lines that tell of refused connections.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What a port asks of its peers.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Connections at a time.
    pub connections: usize,
    /// Bytes that a peer must have sent within [`OPENING`].
    pub first_bytes: usize,
    /// A connection is closed when nothing came for so long. None: the protocol
    /// itself finds peers that are gone.
    pub quiet: Option<Duration>,
}

impl Guest {
    /// The connection preface of HTTP/2 (RFC 9113, 3.4).
    const PREFACE: usize = 24;

    /// Of the port that clients and other replicas use. At most a quarter of the
    /// files that this process may open, for logs and the spool need theirs.
    pub fn grpc() -> Self {
        let files = getrlimit(Resource::Nofile).current;
        let quarter = files.map_or(usize::MAX, |n| usize::try_from(n / 4).unwrap_or(usize::MAX));
        Self {
            connections: quarter.clamp(16, 1_000),
            first_bytes: Self::PREFACE,
            quiet: None,
        }
    }

    /// Of the port that the kubelet uses.
    pub fn health() -> Self {
        Self {
            connections: 64,
            ..Self::grpc()
        }
    }

    /// Of the port that Prometheus uses, by HTTP/1.
    pub fn metrics() -> Self {
        Self {
            connections: 64,
            // `GET / HTTP/1.1`
            first_bytes: 14,
            // A scraper that comes less often connects anew.
            quiet: Some(Duration::from_secs(120)),
        }
    }
}

/// Raises the limit of open files to what the system allows: the usual soft limit
/// of 1,024 is for programs that use `select`. Called once, at the start.
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

/// A port that is listened on.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    guest: Guest,
    places: Arc<Places>,
    trouble: Trouble,
}

impl Listener {
    /// Listens on a port of every address; inside the runtime.
    ///
    /// # Errors
    /// The port is taken, or may not be listened on.
    pub fn bind(port: u16, guest: Guest) -> io::Result<Self> {
        let socket = listen_on_all(port, TcpSocket::new_v6)?;
        Ok(Self {
            socket,
            guest,
            places: Arc::new(Places::new(guest.connections)),
            trouble: Trouble::default(),
        })
    }

    /// The address that is listened on.
    ///
    /// # Errors
    /// The system does not tell it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next connection that has a place.
    pub async fn accept(&mut self) -> Connection {
        loop {
            let accepted = self.socket.accept().await;
            let Some((stream, peer)) = self.trouble.outlive(accepted).await else {
                continue;
            };
            // A peer that is gone again is found out by reading.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY was not set");
            }
            if let Some(place) = self.places.admit(peer.ip().to_canonical()) {
                return Connection::new(stream, self.guest, place);
            }
        }
    }

    /// The same as a stream without an end.
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

/// `ipv6` makes the socket for both families.
fn listen_on_all(
    port: u16,
    ipv6: impl FnOnce() -> io::Result<TcpSocket>,
) -> io::Result<TcpListener> {
    let listen = |socket: TcpSocket, address: IpAddr| {
        // A restarted replica need not wait for its old connections to fade.
        socket.set_reuseaddr(true)?;
        socket.bind((address, port).into())?;
        socket.listen(BACKLOG)
    };
    let both = ipv6().and_then(|socket| {
        sockopt::set_ipv6_v6only(&socket, false)?;
        listen(socket, Ipv6Addr::UNSPECIFIED.into())
    });
    match both {
        // Somebody has the port, of either family.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(error) => {
            tracing::info!(port, %error, "no IPv6 here: listening on IPv4 only");
            listen(TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into())
        }
        both => both,
    }
}

/// Outlives errors of `accept`.
#[derive(Debug, Default)]
struct Trouble {
    /// Errors in a row.
    errors: u32,
}

impl Trouble {
    /// What was accepted; None, after a backoff, when nothing was.
    async fn outlive<T>(&mut self, accepted: io::Result<T>) -> Option<T> {
        match accepted {
            Ok(accepted) => {
                if self.errors > 0 {
                    tracing::info!("connections are accepted again");
                    self.errors = 0;
                }
                return Some(accepted);
            }
            // The peer's: it is gone before it was accepted.
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
                let backoff = SHORTEST_BACKOFF * 2_u32.pow(self.errors.min(10));
                self.errors = self.errors.saturating_add(1);
                sleep(backoff.min(LONGEST_BACKOFF)).await;
            }
        }
        None
    }
}

/// Who holds the connections of a port.
#[derive(Debug)]
struct Places {
    max: usize,
    /// Written by the listener and by connections that end.
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    next: u64,
    /// Each with what closes it, oldest first.
    by_peer: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
    told: Option<Instant>,
}

impl Places {
    fn new(max: usize) -> Self {
        Self {
            max,
            held: Mutex::default(),
        }
    }

    /// A place for a connection of this peer, if need be somebody else's.
    fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.all >= self.max {
            held.tell(self.max);
            let own = held.by_peer.get(&peer).map_or(0, BTreeMap::len);
            let most = held.by_peer.iter().max_by_key(|(_, places)| places.len());
            let (most, newest) = most
                .filter(|(_, places)| places.len() > own + 1)
                .and_then(|(peer, places)| Some((*peer, *places.last_key_value()?.0)))?;
            if let Some(close) = held.remove(most, newest) {
                close.cancel();
            }
        }
        let (number, close) = (held.next, CancellationToken::new());
        held.next += 1;
        held.all += 1;
        let places = held.by_peer.entry(peer).or_default();
        places.insert(number, close.clone());
        Some(Place {
            places: self.clone(),
            peer,
            number,
            close,
        })
    }
}

impl Held {
    fn remove(&mut self, peer: IpAddr, number: u64) -> Option<CancellationToken> {
        let places = self.by_peer.get_mut(&peer)?;
        let close = places.remove(&number)?;
        if places.is_empty() {
            self.by_peer.remove(&peer);
        }
        self.all -= 1;
        Some(close)
    }

    fn tell(&mut self, max: usize) {
        if self.told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            tracing::warn!(
                max,
                "the port has as many connections as it takes: closing some"
            );
        }
    }
}

/// One connection's place; free again when dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    peer: IpAddr,
    number: u64,
    close: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = self.places.held.lock();
        // Somebody else may have it by now.
        let _ = held
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.peer, self.number);
    }
}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Bytes that must come before the peer counts as one that speaks.
    lacking: usize,
    /// When its silence has lasted too long. None: the protocol finds out.
    silence: Option<Pin<Box<Sleep>>>,
    quiet: Option<Duration>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    place: Place,
}

impl Connection {
    fn new(stream: TcpStream, guest: Guest, place: Place) -> Self {
        Self {
            stream,
            lacking: guest.first_bytes,
            silence: Some(Box::pin(sleep(OPENING))),
            quiet: guest.quiet,
            closed: Box::pin(place.close.clone().cancelled_owned()),
            place,
        }
    }

    /// Ready with why the connection must end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.closed.as_mut().poll(cx).is_ready() {
            let why = "closed, for others need its room";
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        }
        if let Some(silence) = &mut self.silence
            && silence.as_mut().poll(cx).is_ready()
        {
            let why = "the peer was silent for too long";
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        Poll::Pending
    }

    fn heard(&mut self, bytes: usize) {
        self.lacking = self.lacking.saturating_sub(bytes);
        if bytes == 0 || self.lacking > 0 {
            return;
        }
        match (self.quiet, &mut self.silence) {
            (None, silence) => *silence = None,
            (Some(quiet), Some(silence)) => silence.as_mut().reset(Instant::now() + quiet),
            (Some(quiet), silence @ None) => *silence = Some(Box::pin(sleep(quiet))),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = read {
            self.heard(buffer.filled().len() - before);
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
        // HTTP/1 does not read while it waits for a peer that does not read.
        if let Poll::Ready(error) = self.poll_end(cx) {
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
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The connection that a call came by, in its request's extensions.
#[derive(Debug, Clone, Default)]
pub struct Peer(CancellationToken);

impl Peer {
    /// Ends the connection with all its calls.
    pub(super) fn close(&self) {
        self.0.cancel();
    }

    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.place.close.clone())
    }
}

#[cfg(test)]
#[path = "listen_tests.rs"]
mod tests;
