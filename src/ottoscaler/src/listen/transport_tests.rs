#![expect(clippy::unwrap_used)]
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};

use super::*;

const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends some bytes, then nothing more, and returns how the connection ended.
async fn silent_after(sent: &'static [u8], idle_timeout: Option<Duration>) -> io::Result<usize> {
    let limits = ConnectionLimits {
        opening_bytes: 4,
        idle_timeout,
        ..ConnectionLimits::grpc()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut peer = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let opened_by = Instant::now() + OPENING_TIMEOUT;
    let close = CancellationToken::new();
    let mut accepted = Transport::new(Either::Left(stream), &limits, opened_by, close);
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
