//! The socket of a port.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{
    backoff::AcceptBackoff,
    limits::ConnectionLimits,
    metrics::{Metrics, Refusal},
    table::{ConnectionSlot, ConnectionTable},
};

/// The silence before a TCP keepalive probe, and between probes. Firewalls and load balancers forget
/// silent connections after minutes, and a host that is gone frees what its connections hold.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// The number of connections that the kernel completes before they are accepted. It is what a burst
/// of clients that reconnect needs; the kernel caps it by its own limit.
const BACKLOG: u32 = 1_024;

/// A `Listener` accepts the connections of one port.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    pub(super) limits: ConnectionLimits,
    pub(super) metrics: Metrics,
    table: Arc<ConnectionTable>,
    backoff: AcceptBackoff,
}

/// An `Accepted` is a TCP connection that the table admitted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) slot: ConnectionSlot,
}

impl Listener {
    /// Listens on a port at every address. It must be called inside the runtime.
    ///
    /// # Errors
    /// Returns an error when the port is taken or the process may not listen on it.
    pub fn bind(port: u16, limits: ConnectionLimits, metrics: Metrics) -> io::Result<Self> {
        let socket = listen_on_all(port, TcpSocket::new_v6)?;
        Ok(Self {
            socket,
            limits,
            metrics,
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

    /// Waits for the next connection that the table admits. It is cancel safe.
    pub(super) async fn accept(&mut self) -> Accepted {
        loop {
            let accepted = self.socket.accept().await;
            let Some((stream, peer)) = self.backoff.handle(accepted).await else {
                continue;
            };
            // Either fails when the peer is gone already, which the next read reports.
            if let Err(error) = stream.set_nodelay(true).and_then(|()| keep_alive(&stream)) {
                tracing::debug!(%error, "an option of an accepted socket was not set");
            }
            match self.table.admit(peer.ip().to_canonical()) {
                Some(slot) => return Accepted { stream, slot },
                None => self.metrics.refused(self.limits.name, Refusal::TableFull),
            }
        }
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, TCP_KEEPALIVE)?;
    Ok(())
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

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
