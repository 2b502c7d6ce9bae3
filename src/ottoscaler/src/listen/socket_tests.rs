#![expect(clippy::unwrap_used)]
use rustix::io::Errno;
use tokio::{io::AsyncReadExt as _, time::timeout};

use super::*;

const LONG: Duration = Duration::from_secs(20);

fn on_loopback(limits: ConnectionLimits) -> (Listener, u16) {
    let listener = Listener::bind(0, limits, Metrics::default()).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// `getsockopt` is called on the socket that the port hands to the server.
#[tokio::test]
async fn accepted_sockets_have_nagle_off_on_every_port() {
    for limits in [
        ConnectionLimits::grpc(),
        ConnectionLimits::health(),
        ConnectionLimits::metrics(),
    ] {
        let (mut listener, port) = on_loopback(limits);
        for host in ["127.0.0.1", "::1"] {
            let _peer = TcpStream::connect((host, port)).await.unwrap();
            let accepted = listener.accept().await;
            assert!(sockopt::tcp_nodelay(&accepted.stream).unwrap(), "{host}");
            assert!(
                sockopt::socket_keepalive(&accepted.stream).unwrap(),
                "{host}"
            );
        }
    }
}

#[tokio::test]
async fn where_the_kernel_has_no_ipv6_ipv4_is_listened_on() {
    let listener = listen_on_all(0, || Err(Errno::AFNOSUPPORT.into())).unwrap();
    let address = listener.local_addr().unwrap();
    assert!(address.is_ipv4(), "{address}");
    let peer = TcpStream::connect(("127.0.0.1", address.port())).await;
    assert!(peer.is_ok(), "{peer:?}");
}

#[tokio::test]
async fn a_port_taken_in_either_family_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = Listener::bind(port, ConnectionLimits::grpc(), Metrics::default()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn beyond_the_bound_a_connection_is_closed_at_once() {
    let (mut listener, port) = on_loopback(ConnectionLimits {
        max_connections: 3,
        ..ConnectionLimits::health()
    });
    let mut peers = Vec::new();
    let mut accepted = Vec::new();
    for _ in 0..3 {
        peers.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        accepted.push(listener.accept().await);
    }
    let mut late = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut byte = [0];
    let refused = tokio::select! {
        _ = listener.accept() => panic!("it has a place"),
        read = late.read(&mut byte) => read,
    };
    assert!(matches!(refused, Ok(0) | Err(_)), "{refused:?}");
    assert_eq!(listener.metrics.counts("health", "table_full").1, 1);
    // A slot that is free again is used.
    accepted.pop();
    let _next = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    timeout(LONG, listener.accept()).await.unwrap();
}
