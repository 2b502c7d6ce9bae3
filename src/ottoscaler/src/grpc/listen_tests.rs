#![expect(clippy::unwrap_used)]
use rustix::io::Errno;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::*;

const LIMITS: ConnectionLimits = ConnectionLimits {
    max_connections: 3,
    opening_bytes: 4,
    idle_timeout: None,
};

fn on_loopback(limits: ConnectionLimits) -> (Listener, u16) {
    let listener = Listener::bind(0, limits).unwrap();
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
    let refused = Listener::bind(port, LIMITS).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
}

/// Sends some bytes, then nothing more, and returns how the connection ended.
async fn silent_after(sent: &'static [u8], idle_timeout: Option<Duration>) -> io::Result<usize> {
    let (mut listener, port) = on_loopback(ConnectionLimits {
        idle_timeout,
        ..LIMITS
    });
    let mut peer = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut accepted = listener.accept().await;
    peer.write_all(sent).await.unwrap();
    let mut all = vec![0; sent.len()];
    accepted.read_exact(&mut all).await.unwrap();
    tokio::time::pause();
    let read = timeout(OPENING_TIMEOUT * 100, accepted.read(&mut [0])).await;
    tokio::time::resume();
    read.unwrap_or(Ok(usize::MAX))
}

#[tokio::test]
async fn a_peer_that_sends_nothing_or_half_an_opening_is_closed() {
    for sent in ["", "PRI"] {
        let ended = silent_after(sent.as_bytes(), None).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut, "{sent}");
    }
}

#[tokio::test]
async fn a_peer_that_has_opened_is_the_protocols() {
    assert_eq!(silent_after(b"PRI *", None).await.unwrap(), usize::MAX);
}

#[tokio::test]
async fn where_the_protocol_finds_no_dead_peers_a_quiet_one_is_closed() {
    let ended = silent_after(b"GET /", Some(Duration::from_secs(60))).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

#[tokio::test]
async fn one_peer_cannot_keep_the_others_out() {
    let table = Arc::new(ConnectionTable::new(4));
    let greedy: Vec<_> = (0..4).filter_map(|_| table.admit(ip(1))).collect();
    assert_eq!(greedy.len(), 4);
    // It gets no more connections.
    assert!(table.admit(ip(1)).is_none());
    // The others replace its newest connections.
    let others: Vec<_> = (2..5).filter_map(|n| table.admit(ip(n))).collect();
    assert_eq!(others.len(), 3);
    let closed: Vec<bool> = greedy.iter().map(|p| p.close.is_cancelled()).collect();
    assert_eq!(closed, [false, true, true, true]);
    // No peer has more connections than another one by now.
    assert!(table.admit(ip(5)).is_none());
    drop(greedy);
    assert!(table.admit(ip(5)).is_some());
    drop(others);
    let open = table.open.lock().unwrap();
    assert_eq!((open.count, open.by_peer.len()), (0, 0));
}

#[tokio::test]
async fn beyond_the_bound_a_connection_is_closed_at_once() {
    let (mut listener, port) = on_loopback(LIMITS);
    let mut peers = Vec::new();
    let mut accepted = Vec::new();
    for _ in 0..LIMITS.max_connections {
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
    // A slot that is free again is used.
    accepted.pop();
    let _next = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    timeout(OPENING_TIMEOUT, listener.accept()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_accept_that_fails_is_tried_again_after_a_backoff() {
    let (mut backoff, mut tries, began) = (AcceptBackoff::default(), 0, Instant::now());
    while began.elapsed() < Duration::from_secs(60) {
        let failed: io::Result<()> = Err(Errno::MFILE.into());
        assert!(backoff.handle(failed).await.is_none());
        tries += 1;
    }
    assert!((60..80).contains(&tries), "{tries} tries in a minute");
    assert!(backoff.handle(Ok(())).await.is_some());
    assert_eq!(backoff.errors, 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_left_before_it_was_accepted_delays_nobody() {
    let (mut backoff, began) = (AcceptBackoff::default(), Instant::now());
    for _ in 0..100 {
        let left: io::Result<()> = Err(Errno::CONNABORTED.into());
        assert!(backoff.handle(left).await.is_none());
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[test]
fn as_many_files_as_the_system_allows_may_be_open() {
    raise_open_files();
    let limit = getrlimit(Resource::Nofile);
    assert_eq!(limit.current, limit.maximum);
}
