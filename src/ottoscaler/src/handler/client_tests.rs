//! The client of otto-handler against a peer that speaks as much HTTP/2 as that takes.
#![expect(clippy::unwrap_used)]
use std::sync::atomic::AtomicU64;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{
    handler::{NotificationSink as _, Untold, notify::not_taken},
    proto::{WorkerLogEntry, WorkerStatusNotification},
};

const PREFACE: usize = 24;
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const ACK: u8 = 1;
/// As grpc-go (`keepalive.EnforcementPolicy`) and gRPC core have it by default: more than so
/// many pings that come earlier than so end the connection, unless data was sent between.
const MIN_BETWEEN_PINGS: Duration = Duration::from_secs(300);
const MAX_STRIKES: usize = 2;

/// Takes calls and answers none.
struct Peer {
    host: String,
    seen: Arc<Seen>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    calls: AtomicU64,
    pings: Mutex<Vec<Instant>>,
}

impl Peer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Seen::default());
        let mut serving = JoinSet::new();
        let of = seen.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                of.connections.fetch_add(1, Ordering::Relaxed);
                let of = of.clone();
                connections.spawn(async move {
                    // It ends with the connection.
                    let _ = serve(stream, &of).await;
                });
            }
        });
        Self {
            host,
            seen,
            _serving: serving,
        }
    }

    fn calls(&self) -> u64 {
        self.seen.calls.load(Ordering::Relaxed)
    }

    fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }
}

async fn serve(mut stream: TcpStream, seen: &Seen) -> std::io::Result<()> {
    stream.read_exact(&mut [0; PREFACE]).await?;
    stream
        .write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
        .await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        let [.., kind, flags, _, _, _, _] = head;
        match kind {
            SETTINGS if flags & ACK == 0 => {
                stream
                    .write_all(&[0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0])
                    .await?;
            }
            PING if flags & ACK == 0 => {
                seen.pings.lock().unwrap().push(Instant::now());
                let mut pong = vec![0, 0, 8, PING, ACK, 0, 0, 0, 0];
                pong.extend(payload);
                stream.write_all(&pong).await?;
            }
            HEADERS => {
                seen.calls.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_pinged_no_more_often_than_grpc_servers_allow() {
    let peer = Peer::start().await;
    let client = HandlerClient::new(&peer.host, None).unwrap();
    let (_entries, mut answers) = client.forward::<WorkerLogEntry>(None, false);
    let began = Instant::now();
    let answered = timeout(Duration::from_secs(3_600), answers.next()).await;
    assert!(answered.is_err(), "the connection ended: {answered:?}");
    assert_eq!((peer.connections(), peer.calls()), (1, 1));
    let pings = peer.seen.pings.lock().unwrap().clone();
    let mut last = began;
    let strikes = pings.iter().filter(|at| {
        let early = at.duration_since(last) < MIN_BETWEEN_PINGS;
        last = **at;
        early
    });
    assert!(strikes.count() <= MAX_STRIKES, "{} pings", pings.len());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_leaves_a_call_unanswered_is_not_used_again() {
    let peer = Peer::start().await;
    let client = HandlerClient::new(&peer.host, None).unwrap();
    let opened = async |answers: &mut Answers, calls: u64| {
        while peer.calls() < calls {
            let next = timeout(Duration::from_millis(10), answers.next()).await;
            assert!(next.is_err(), "{next:?}");
        }
    };
    let (_first, mut answers) = client.forward::<WorkerLogEntry>(None, false);
    opened(&mut answers, 1).await;
    let (_second, mut others) = client.forward::<WorkerLogEntry>(None, false);
    opened(&mut others, 2).await;
    assert_eq!(peer.connections(), 1);
    answers.abandon_connection();
    let (_third, mut answers) = client.forward::<WorkerLogEntry>(None, false);
    opened(&mut answers, 3).await;
    assert_eq!(peer.connections(), 2);

    for told in 1..=2 {
        let notification = WorkerStatusNotification::default();
        assert!(client.tell(notification).await.is_err());
        sleep(Duration::from_millis(10)).await;
        assert_eq!(peer.connections(), 2 + told);
    }
}

#[test]
fn what_otto_handler_answered_is_not_logged() {
    let answered = Status::invalid_argument("s3cr3t");
    assert_eq!(loggable(&answered), "answered InvalidArgument");
    let mut broken = Status::unavailable("s3cr3t");
    broken.set_source(Arc::new(std::io::Error::from(
        std::io::ErrorKind::ConnectionRefused,
    )));
    assert_eq!(loggable(&broken), "Unavailable: connection refused");
}

#[test]
fn an_answer_of_otto_handler_is_told_from_a_connection_that_broke() {
    let broke = std::io::Error::other("reset by peer");
    let broke = not_taken(&Status::from_error(Box::new(broke)));
    assert!(matches!(broke, Untold::Away(_)), "{broke:?}");
    let is_away = |status: Status| matches!(not_taken(&status), Untold::Away(_));
    assert!(is_away(Status::unavailable("")));
    // What an exception in a handler in NestJS becomes.
    assert!(!is_away(Status::unknown("Internal server error")));
    assert!(!is_away(Status::not_found("no such task")));
}
