#![expect(clippy::unwrap_used)]
use std::{
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::StreamExt as _;
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tonic::{Request, Response, Status as Refused, Streaming};

use super::*;
use crate::{
    args::{AckMode, HandlerOptions},
    logs::read::{
        follow::{Error, Open, Reader},
        line::Splitter,
        position::{Resume, Step},
        tail::Next,
    },
    proto::{
        LogForwardResponse, WorkerLogEntry, WorkerStatusAck, WorkerStatusNotification,
        log_forward_response::Status,
        otto_handler_log_service_server::{OttoHandlerLogService, OttoHandlerLogServiceServer},
    },
};

#[path = "session_tests/checkpoints.rs"]
mod checkpoints;
#[path = "session_tests/epochs.rs"]
mod epochs;
#[path = "session_tests/handlers.rs"]
mod handlers;

/// A finished container's log; opens break off after so many lines, in turn.
#[derive(Default)]
struct File {
    lines: Vec<String>,
    breaks: Vec<usize>,
    opens: AtomicUsize,
    /// Epochs that were stored, and how often storing one fails before.
    reserved: Mutex<Vec<u32>>,
    unstored: AtomicUsize,
}

#[tonic::async_trait]
impl Source for File {
    async fn open(&self, _: &Pod, how: Open) -> Result<Reader, Error> {
        let since = how.since.unwrap_or(i64::MIN);
        let from = |l: &&String| {
            let stamp: jiff::Timestamp = l.split(' ').next().unwrap().parse().unwrap();
            stamp.as_second() >= since
        };
        let served: Vec<&String> = self.lines.iter().filter(from).collect();
        let open = self.opens.fetch_add(1, Ordering::Relaxed);
        let upto = self.breaks.get(open).copied();
        let text: String = served
            .iter()
            .take(upto.unwrap_or(usize::MAX))
            .map(|l| format!("{l}\n"))
            .collect();
        let mut parts = vec![Ok(text.into_bytes())];
        if upto.is_some() {
            parts.push(Err(std::io::Error::other("broke off")));
        }
        let bytes = futures::TryStreamExt::into_async_read(futures::stream::iter(parts));
        Ok(Reader::new(Box::pin(bytes)))
    }
}

#[tonic::async_trait]
impl EpochStore for File {
    async fn reserve(&self, _: &Pod, least: u32) -> Result<u32, Error> {
        let fails = |left: usize| left.checked_sub(1);
        let failed = self
            .unstored
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fails);
        if failed.is_ok() {
            return Err(Error::Timeout);
        }
        self.reserved.lock().unwrap().push(least);
        Ok(least)
    }
}

/// The pod stands still.
#[derive(Clone)]
struct Still(Arc<Pod>);

impl PodLookup for Still {
    fn latest(&self, _: &Pod) -> Option<Arc<Pod>> {
        Some(self.0.clone())
    }
}

/// Of this one's streams a peer reads one entry, and no more.
const UNREAD_WORKER: &str = "unread";

type Mood = fn(u64) -> Option<Status>;

/// Answers the nth entry by its mood (None: not at all); keeps what it took.
#[derive(Clone)]
struct Peer {
    mood: Mood,
    count: Arc<AtomicUsize>,
    /// Answers nothing until so many streams are open at once.
    gathers: usize,
    streams: watch::Sender<usize>,
    taken: Arc<Mutex<Vec<(u64, String)>>>,
}

#[tonic::async_trait]
impl OttoHandlerLogService for Peer {
    type ForwardWorkerLogsStream =
        Pin<Box<dyn futures::Stream<Item = Result<LogForwardResponse, Refused>> + Send>>;

    async fn forward_worker_logs(
        &self,
        request: Request<Streaming<WorkerLogEntry>>,
    ) -> Result<Response<Self::ForwardWorkerLogsStream>, Refused> {
        let peer = self.clone();
        let mut entries = request.into_inner();
        // As grpc-js does it: no headers before the first answer.
        let first = entries.next().await;
        peer.streams.send_modify(|n| *n += 1);
        let mut streams = peer.streams.subscribe();
        let _ = streams.wait_for(|n| *n >= peer.gathers).await;
        if matches!(&first, Some(Ok(entry)) if entry.worker_id == UNREAD_WORKER) {
            let never = futures::stream::unfold(entries, |entries| async move {
                std::future::pending::<()>().await;
                Some((Ok(LogForwardResponse::default()), entries))
            });
            return Ok(Response::new(Box::pin(never)));
        }
        let entries = futures::stream::iter(first).chain(entries);
        let answers = entries.filter_map(move |entry| {
            let n = peer.count.fetch_add(1, Ordering::Relaxed) as u64;
            let mut answer = (peer.mood)(n);
            if let (Ok(entry), Some(Status::Ack | Status::Drop)) = (&entry, answer) {
                let sequence: u64 = entry.metadata["sequence"].parse().unwrap();
                let mut taken = peer.taken.lock().unwrap();
                // What follows an entry asked for again waits for that one.
                let newest = taken.iter().map(|(s, _)| *s).max();
                if newest.is_some_and(|newest| sequence > newest + 1) {
                    answer = Some(Status::Retry);
                } else {
                    taken.push((sequence, entry.message.clone()));
                }
            }
            std::future::ready(answer.map(|status| {
                Ok(LogForwardResponse {
                    status: status.into(),
                    ..Default::default()
                })
            }))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn notify_worker_status(
        &self,
        _: Request<WorkerStatusNotification>,
    ) -> Result<Response<WorkerStatusAck>, Refused> {
        Ok(Response::new(WorkerStatusAck::default()))
    }
}

fn lines(n: usize) -> Vec<String> {
    (0..n)
        .map(|i| {
            let at = jiff::Timestamp::from_second(1_790_000_000 + i as i64 / 3).unwrap();
            format!("{at} line {i}")
        })
        .collect()
}

/// A file of so many lines that is read without a break.
fn file(n: usize) -> File {
    File {
        lines: lines(n),
        ..File::default()
    }
}

/// A session over a file, for whoever serves there.
fn session(host: &str, file: File, checkpoint: Option<String>) -> Session<File, Still> {
    let handler = HandlerOptions {
        host: Some(host.to_owned()),
        ack: AckMode::Each,
        ack_timeout: Duration::from_millis(500),
        window: 16,
        spool_dir: std::env::temp_dir(),
        spool_size: 1 << 30,
    };
    let pod = Arc::new(Pod {
        name: "p".into(),
        uid: "u".into(),
        phase: crate::domain::pod::PodPhase::Succeeded,
        started: Some(1_790_000_000),
        finished: Some(1_790_009_999),
        checkpoint,
        ..Pod::default()
    });
    Session {
        pod: pod.clone(),
        source: Arc::new(file),
        pods: Still(pod),
        drained: Drained::default(),
        checkpoints: Checkpoints::default(),
        handler: HandlerClient::new(host, None).unwrap(),
        context: Context::new(&handler, "n", Duration::from_secs(2)),
        term: "t/3/h".parse().unwrap(),
        drain: CancellationToken::new(),
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    (listener, host)
}

/// Serves as a peer of that mood while `work` runs; what the peer took, in order.
async fn against<T>(
    listener: TcpListener,
    mood: Mood,
    work: impl Future<Output = T>,
) -> (T, Vec<(u64, String)>) {
    serving(listener, mood, 0, work).await
}

async fn serving<T>(
    listener: TcpListener,
    mood: Mood,
    gathers: usize,
    work: impl Future<Output = T>,
) -> (T, Vec<(u64, String)>) {
    let peer = Peer {
        mood,
        count: Arc::default(),
        gathers,
        streams: watch::Sender::default(),
        taken: Arc::default(),
    };
    let service = OttoHandlerLogServiceServer::new(peer.clone());
    // The windows of Node, and the limit of many servers.
    let serve = tonic::transport::Server::builder()
        .max_concurrent_streams(100)
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535)
        .add_service(service)
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    let done = tokio::select! {
        done = work => done,
        _ = serve => unreachable!(),
    };
    let taken = peer.taken.lock().unwrap().clone();
    (done, taken)
}

/// Runs a session over a file against a peer.
async fn run(
    file: File,
    mood: Mood,
    checkpoint: Option<String>,
) -> (End, Vec<(u64, String)>, Context) {
    let (listener, host) = listener().await;
    let session = session(&host, file, checkpoint);
    let context = session.context.clone();
    let (ended, taken) = against(listener, mood, session.run()).await;
    (ended.end, taken, context)
}

/// Where a session stands that has read so many lines.
fn after(n: usize) -> String {
    let (mut resume, mut at) = (Resume::new(None), Checkpoint::start(0));
    for text in lines(n) {
        Splitter::default().feed(format!("{text}\n").as_bytes(), |l| match resume.step(&l) {
            Step::New(anchor) => at.pass(anchor),
            step => unreachable!("{step:?}"),
        });
    }
    at.annotation()
}

/// As Prometheus is served.
fn metrics(context: &Context) -> String {
    let mut registry = Registry::default();
    context.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn value(context: &Context, name: &str) -> u64 {
    let text = metrics(context);
    let prefix = format!("ottoscaler_log_{name} ");
    let line = text.lines().find(|l| l.starts_with(&prefix)).unwrap();
    line[prefix.len()..].parse().unwrap()
}

fn expected(n: usize) -> Vec<(u64, String)> {
    (1..).zip((0..n).map(|i| format!("line {i}"))).collect()
}

/// Drops repeats as the contract tells a receiver to.
fn without_repeats(taken: Vec<(u64, String)>) -> Vec<(u64, String)> {
    let mut newest = 0;
    taken
        .into_iter()
        .filter(|(sequence, _)| {
            let new = *sequence > newest;
            newest = newest.max(*sequence);
            new
        })
        .collect()
}

#[tokio::test]
async fn every_line_is_taken_once_and_in_order() {
    let (end, taken, _) = run(file(100), |_| Some(Status::Ack), None).await;
    assert_eq!((end, taken), (End::Drained, expected(100)));
}

#[tokio::test]
async fn what_happened_to_lines_is_counted() {
    let mood: Mood = |n| {
        Some(match n {
            5 => Status::Retry,
            40 => Status::Drop,
            _ => Status::Ack,
        })
    };
    let file = file(100);
    let (_, _, context) = run(file, mood, None).await;
    let value = |name: &str| value(&context, name);
    let retried = value("retried_total");
    assert!((1..20).contains(&retried), "{retried}");
    assert_eq!(
        [
            "lines_total",
            "acknowledged_total",
            "dropped_total",
            "lag_seconds_count"
        ]
        .map(value),
        [100, 99, 1, 99]
    );
    assert_eq!(["follows", "held_bytes"].map(value), [0, 0]);
}

#[tokio::test]
async fn a_log_that_breaks_off_again_and_again_is_resumed_exactly() {
    // Also inside of what is held back.
    let file = File {
        lines: lines(100),
        breaks: vec![30, 10, 25, 5, 60, 40],
        ..Default::default()
    };
    let (_, taken, _) = run(file, |_| Some(Status::Ack), None).await;
    assert_eq!(taken, expected(100));
}

#[tokio::test]
async fn a_log_that_gives_nothing_is_asked_for_less_and_less() {
    let began = Instant::now();
    let file = File {
        lines: lines(10),
        breaks: vec![0; 13],
        ..Default::default()
    };
    let (end, taken, _) = run(file, |_| Some(Status::Ack), None).await;
    assert_eq!((end, taken), (End::Drained, expected(10)));
    // 11 waits of 200 ms, then 400 and 800.
    assert!(began.elapsed() >= Duration::from_millis(3_400));
}

#[tokio::test]
async fn while_otto_handler_is_away_lines_wait_on_disk() {
    let (listener, host) = listener().await;
    drop(listener);
    let file = file(5_000);
    let session = session(&host, file, None);
    let context = session.context.clone();
    #[expect(clippy::disallowed_methods, reason = "awaited below")]
    let ended = tokio::spawn(session.run());
    while value(&context, "lines_total") < 5_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(value(&context, "spool_bytes") > 100_000);
    assert!(value(&context, "held_bytes") < 10_000);
    let listener = TcpListener::bind(host).await.unwrap();
    let (ended, taken) = against(listener, |_| Some(Status::Ack), ended).await;
    assert_eq!((ended.unwrap().end, taken), (End::Drained, expected(5_000)));
    assert_eq!(value(&context, "spool_bytes"), 0);
}

#[tokio::test]
async fn lines_that_the_disk_lost_are_read_again() {
    let (listener, host) = listener().await;
    let file = file(5_000);
    let session = session(&host, file, None);
    let mut state = session.state(Checkpoint::start(0));
    state.backlog.fall_behind();
    while state.may_read() {
        let next = state.tail.next().await;
        session.take(&mut state, next).await;
    }
    state.backlog.lose().unwrap();
    let ended = session.streams(&mut state);
    let (end, taken) = against(listener, |_| Some(Status::Ack), ended).await;
    assert_eq!((end, taken), (End::Drained, expected(5_000)));
}

#[tokio::test]
async fn the_last_lines_of_a_pod_that_went_are_given_up_in_the_end() {
    let (listener, host) = listener().await;
    drop(listener);
    let file = file(100);
    let session = session(&host, file, None);
    let mut state = session.state(Checkpoint::start(0));
    let next = state.tail.next().await;
    session.take(&mut state, next).await;
    session.take(&mut state, Next::Gone).await;
    assert_eq!(session.streams(&mut state).await, End::Gone);
    assert_eq!(value(&session.context, "cut_total"), 1);
}

/// `tests/nest.sh` starts it: it breaks its streams before answers, and keeps what it
/// takes as repeats only once.
#[tokio::test]
#[ignore = "needs tests/nest.sh"]
async fn a_nest_handler_keeps_each_line_once() {
    let host = std::env::var("OTTO_NEST_HANDLER").unwrap();
    let record = std::env::var("OTTO_NEST_RECORD").unwrap();
    let file = file(500);
    let session = session(&host, file, None);
    let context = session.context.clone();
    assert_eq!(session.run().await.end, End::Drained);
    let kept = std::fs::read_to_string(record).unwrap();
    let expected: String = (0..500).map(|n| format!("p line {n}\n")).collect();
    assert_eq!(kept, expected);
    let text = metrics(&context);
    assert!(
        text.contains("ottoscaler_log_acknowledged_total 500\n"),
        "{text}"
    );
}
