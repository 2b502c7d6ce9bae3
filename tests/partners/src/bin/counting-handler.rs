//! An otto-handler that acknowledges and counts, and keeps nothing: for benches.
//!
//! `--out`: JSON, by task: what came (`ottoscaler_partners::pace::Seen`), written when no
//! line has come for a tenth of a second.
use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::Parser;
use futures::{Stream, StreamExt as _};
use ottoscaler_partners::{
    pace::{Pace, Seen},
    proto::{
        LogForwardResponse, WorkerLogEntry, WorkerStatusAck, WorkerStatusNotification,
        otto_handler_log_service_server::{OttoHandlerLogService, OttoHandlerLogServiceServer},
    },
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    listen: std::net::SocketAddr,
    #[arg(long)]
    out: PathBuf,
    /// Streams a connection may have.
    #[arg(long)]
    max_streams: Option<u32>,
}

#[derive(Debug, Clone, Default)]
struct Handler(Arc<Mutex<BTreeMap<String, Pace>>>);

#[tonic::async_trait]
impl OttoHandlerLogService for Handler {
    type ForwardWorkerLogsStream =
        Pin<Box<dyn Stream<Item = Result<LogForwardResponse, Status>> + Send>>;

    async fn forward_worker_logs(
        &self,
        request: Request<Streaming<WorkerLogEntry>>,
    ) -> Result<Response<Self::ForwardWorkerLogsStream>, Status> {
        let handler = self.clone();
        let answers = request.into_inner().map(move |entry| {
            let entry = entry?;
            let now = jiff::Timestamp::now();
            let mut tasks = handler.0.lock().unwrap_or_else(PoisonError::into_inner);
            let pace = match tasks.get_mut(&entry.task_id) {
                Some(pace) => pace,
                None => tasks.entry(entry.task_id).or_default(),
            };
            pace.arrived(now, &entry.timestamp);
            Ok(LogForwardResponse::default())
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn notify_worker_status(
        &self,
        _: Request<WorkerStatusNotification>,
    ) -> Result<Response<WorkerStatusAck>, Status> {
        Ok(Response::new(WorkerStatusAck::default()))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let handler = Handler::default();
    let serve = Server::builder()
        .max_concurrent_streams(args.max_streams)
        .add_service(OttoHandlerLogServiceServer::new(handler.clone()))
        .serve(args.listen);
    tokio::select! {
        served = serve => Ok(served?),
        told = tell(&handler, &args) => told,
    }
}

async fn tell(handler: &Handler, args: &Args) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let (mut before, mut told) = (0, 0);
    loop {
        tick.tick().await;
        let all: u64 = {
            let tasks = handler.0.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.values().map(Pace::lines).sum()
        };
        // While lines come, counting must cost next to nothing.
        if std::mem::replace(&mut before, all) != all || all == told {
            continue;
        }
        told = all;
        let tasks = handler
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let seen: BTreeMap<&String, Seen> = tasks.iter().map(|(t, p)| (t, p.seen())).collect();
        let new = args.out.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&seen)?)?;
        std::fs::rename(new, &args.out)?;
    }
}
