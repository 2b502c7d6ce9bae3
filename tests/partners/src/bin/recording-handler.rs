//! An otto-handler that records what it gets as JSON lines, and can misbehave.
//!
//! What is answered ACK is in the file first. `--control FILE` holds flags of
//! `Behaviour` as JSON and may change while it runs.
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufReader, Write as _},
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use futures::{Stream, StreamExt as _};
use ottoscaler_partners::{
    proto::{
        LogForwardResponse, WorkerLogEntry, WorkerStatusAck, WorkerStatusNotification,
        log_forward_response,
        otto_handler_log_service_server::{OttoHandlerLogService, OttoHandlerLogServiceServer},
        worker_status_ack, worker_status_notification,
    },
    record::{Log, Notify, Record},
    tail::Tail,
};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, transport::Server};

#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves OttoHandlerLogService.
    Serve {
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: std::net::SocketAddr,
        #[arg(long)]
        out: PathBuf,
        #[arg(long)]
        control: Option<PathBuf>,
        /// Streams a connection may have.
        #[arg(long)]
        max_streams: Option<u32>,
    },
    /// Follows a record file and prints worker and message, until ended.
    Tail {
        file: PathBuf,
        /// Only workers whose name starts so.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Of a worker's lines every nth; states are always shown.
        #[arg(long, default_value_t = 1)]
        every: usize,
    },
}

/// How it treats its peer; all off by default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Behaviour {
    /// Before each answer.
    delay_ms: u64,
    /// Every nth entry of a stream is answered so; 0: none.
    retry_every: u64,
    drop_every: u64,
    throttle_ms: i32,
    sequence: Habit,
    /// Takes entries and answers nothing.
    mute: bool,
    /// Every nth notification is answered ERROR; 0: none.
    error_every: u64,
    /// Refuses every call.
    away: bool,
    /// Sends no headers before its first answer, as grpc-js does.
    late_headers: bool,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Habit {
    #[default]
    Echo,
    Count,
    Zero,
}

struct Handler {
    out: Mutex<File>,
    control: Option<PathBuf>,
    streams: AtomicU64,
    notifications: AtomicU64,
}

impl Handler {
    /// Read anew for each call and each batch, so that a test can change it.
    fn behaviour(&self) -> Behaviour {
        let text = self
            .control
            .as_ref()
            .and_then(|path| fs::read_to_string(path).ok());
        text.filter(|t| !t.trim().is_empty())
            .map(|t| {
                serde_json::from_str(&t).unwrap_or_else(|e| {
                    eprintln!("recording-handler: control: {e}");
                    Behaviour::default()
                })
            })
            .unwrap_or_default()
    }

    fn write(&self, records: &[Record]) -> Result<(), Status> {
        let mut text = Vec::new();
        for record in records {
            serde_json::to_writer(&mut text, record)
                .map_err(|e| Status::internal(e.to_string()))?;
            text.push(b'\n');
        }
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(&text)
            .map_err(|e| Status::internal(e.to_string()))
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn traceparent(metadata: &MetadataMap) -> Option<String> {
    Some(metadata.get("traceparent")?.to_str().ok()?.to_owned())
}

fn sorted(map: std::collections::HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

#[derive(Clone)]
struct Service(Arc<Handler>);

#[tonic::async_trait]
impl OttoHandlerLogService for Service {
    type ForwardWorkerLogsStream =
        Pin<Box<dyn Stream<Item = Result<LogForwardResponse, Status>> + Send>>;

    async fn forward_worker_logs(
        &self,
        request: Request<Streaming<WorkerLogEntry>>,
    ) -> Result<Response<Self::ForwardWorkerLogsStream>, Status> {
        if self.0.behaviour().away {
            return Err(Status::unavailable("away"));
        }
        let handler = self.0.clone();
        let stream = handler.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let trace = traceparent(request.metadata());
        let mut entries = request.into_inner();
        let mut first = None;
        if handler.behaviour().late_headers {
            first = entries.next().await;
        }
        // Entries that are there together are recorded by one write.
        let mut entries = futures::stream::iter(first)
            .chain(entries)
            .ready_chunks(256);
        let (answers, out) = mpsc::channel(1_024);
        // Ends with its stream.
        tokio::spawn(async move {
            let mut count = 0;
            // What follows an entry asked for again waits for that one.
            let mut awaited = None;
            while let Some(batch) = entries.next().await {
                let behaviour = handler.behaviour();
                let (mut records, mut replies) = (Vec::new(), Vec::new());
                for entry in batch {
                    let Ok(entry) = entry else { return };
                    count += 1;
                    let sequence = entry.metadata.get("sequence").cloned();
                    let is_early = awaited.is_some() && awaited != sequence;
                    let (answer, reply) = treat(&behaviour, &entry, count, is_early);
                    if !is_early {
                        awaited = sequence.filter(|_| answer == "retry");
                    }
                    records.push(Record::Log(Log {
                        at: now(),
                        stream,
                        worker: entry.worker_id,
                        task: entry.task_id,
                        timestamp: entry.timestamp,
                        level: entry.level,
                        source: entry.source,
                        message: entry.message,
                        metadata: sorted(entry.metadata),
                        answer: if behaviour.mute { "none" } else { answer }.to_owned(),
                        traceparent: trace.clone(),
                    }));
                    replies.push(reply);
                }
                if behaviour.away {
                    let _ = answers.send(Err(Status::unavailable("away"))).await;
                    return;
                }
                if let Err(status) = handler.write(&records) {
                    let _ = answers.send(Err(status)).await;
                    return;
                }
                if behaviour.mute {
                    continue;
                }
                for reply in replies {
                    if behaviour.delay_ms > 0 {
                        tokio::time::sleep(Duration::from_millis(behaviour.delay_ms)).await;
                    }
                    if answers.send(Ok(reply)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn notify_worker_status(
        &self,
        request: Request<WorkerStatusNotification>,
    ) -> Result<Response<WorkerStatusAck>, Status> {
        let behaviour = self.0.behaviour();
        if behaviour.away {
            return Err(Status::unavailable("away"));
        }
        let trace = traceparent(request.metadata());
        let n = request.into_inner();
        let count = self.0.notifications.fetch_add(1, Ordering::Relaxed) + 1;
        let refuse = behaviour.error_every > 0 && count.is_multiple_of(behaviour.error_every);
        let status = worker_status_notification::StatusType::try_from(n.status)
            .map_or_else(|_| n.status.to_string(), |s| s.as_str_name().to_owned());
        self.0.write(&[Record::Notify(Notify {
            at: now(),
            worker: n.worker_id,
            task: n.task_id,
            status,
            timestamp: n.timestamp,
            reason: n.reason,
            metadata: sorted(n.metadata),
            answer: if refuse { "error" } else { "received" }.to_owned(),
            traceparent: trace,
        })])?;
        let status = if refuse {
            worker_status_ack::Status::Error
        } else {
            worker_status_ack::Status::Received
        };
        Ok(Response::new(WorkerStatusAck {
            status: status.into(),
            message: String::new(),
        }))
    }
}

fn treat(
    behaviour: &Behaviour,
    entry: &WorkerLogEntry,
    count: u64,
    is_early: bool,
) -> (&'static str, LogForwardResponse) {
    let nth = |n: u64| n > 0 && count.is_multiple_of(n);
    let (answer, status) = match () {
        () if is_early || nth(behaviour.retry_every) => {
            ("retry", log_forward_response::Status::Retry)
        }
        () if nth(behaviour.drop_every) => ("drop", log_forward_response::Status::Drop),
        () => ("ack", log_forward_response::Status::Ack),
    };
    let sequence = match behaviour.sequence {
        Habit::Echo => entry
            .metadata
            .get("sequence")
            .and_then(|s| s.parse().ok())
            .unwrap_or(0),
        Habit::Count => i64::try_from(count).unwrap_or(i64::MAX),
        Habit::Zero => 0,
    };
    let reply = LogForwardResponse {
        status: status.into(),
        message: String::new(),
        sequence,
        throttle_ms: behaviour.throttle_ms,
    };
    (answer, reply)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Serve {
            listen,
            out,
            control,
            max_streams,
        } => serve(listen, out, control, max_streams).await,
        Command::Tail {
            file,
            prefix,
            every,
        } => tail(&file, &prefix, every.max(1)).await,
    }
}

async fn serve(
    listen: std::net::SocketAddr,
    out: PathBuf,
    control: Option<PathBuf>,
    max_streams: Option<u32>,
) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&out)
        .with_context(|| out.display().to_string())?;
    let handler = Arc::new(Handler {
        out: Mutex::new(file),
        control,
        streams: AtomicU64::new(0),
        notifications: AtomicU64::new(0),
    });
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    eprintln!("recording-handler: serving on {listen}");
    Server::builder()
        .max_concurrent_streams(max_streams)
        .add_service(OttoHandlerLogServiceServer::new(Service(handler)))
        .serve_with_shutdown(listen, async move {
            end.recv().await;
            // Streams may last: give them a moment, then go.
            tokio::spawn(async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                std::process::exit(0);
            });
        })
        .await?;
    Ok(())
}

/// Prints entries as they come, one colour per worker on a terminal.
async fn tail(path: &PathBuf, prefix: &str, every: usize) -> anyhow::Result<()> {
    use std::io::IsTerminal as _;
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut log = Tail::new(BufReader::new(file));
    let mut workers: Vec<(String, usize)> = Vec::new();
    loop {
        let Some(line) = log.line()? else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (worker, text, is_line) = match serde_json::from_slice::<Record>(line)? {
            Record::Log(l) => (l.worker, l.message, true),
            Record::Notify(n) => (n.worker, format!("── {}", n.status), false),
        };
        if !worker.starts_with(prefix) {
            continue;
        }
        let at = workers
            .iter()
            .position(|(w, _)| *w == worker)
            .unwrap_or_else(|| {
                workers.push((worker.clone(), 0));
                workers.len() - 1
            });
        if is_line {
            workers[at].1 += 1;
            if !workers[at].1.is_multiple_of(every) {
                continue;
            }
        }
        if colour {
            println!("\x1b[3{}m{worker}\x1b[0m | {text}", 1 + at % 6);
        } else {
            println!("{worker} | {text}");
        }
    }
}
