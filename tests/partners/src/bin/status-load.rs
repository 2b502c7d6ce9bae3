//! Calls GetWorkerStatus again and again, page by page, or repeats one ScaleUp that has been
//! processed. Prints how many workers an answer has, the median and the 99th percentile of the
//! calls in milliseconds, and the calls per second.
use std::{sync::Arc, time::Instant};

use anyhow::Context as _;
use clap::Parser;
use ottoscaler_partners::proto::{
    ScaleRequest, WorkerStatusRequest, ottoscaler_service_client::OttoscalerServiceClient,
};
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
};
use tonic::transport::Channel;

#[derive(Debug, Parser)]
struct Args {
    /// `host:port`
    #[arg(long)]
    server: String,
    /// Empty: of all tasks.
    #[arg(long, default_value = "")]
    task: String,
    #[arg(long, default_value_t = 30)]
    calls: usize,
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// Repeats a ScaleUp of so many workers of the task, which exists.
    #[arg(long)]
    scale_up: Option<i32>,
}

/// Makes one call; returns how many workers its answer has.
async fn call(
    client: &mut OttoscalerServiceClient<Channel>,
    task: &str,
    scale_up: Option<i32>,
) -> anyhow::Result<usize> {
    if let Some(workers) = scale_up {
        let request = ScaleRequest {
            task_id: task.to_owned(),
            repository: "r".to_owned(),
            commit_sha: "c".to_owned(),
            worker_count: workers,
            ..ScaleRequest::default()
        };
        let answer = client.scale_up(request).await?.into_inner();
        return Ok(answer.worker_pod_names.len());
    }
    let (mut page_token, mut workers) = (String::new(), 0);
    loop {
        let request = WorkerStatusRequest {
            task_id: task.to_owned(),
            page_token,
            ..WorkerStatusRequest::default()
        };
        let answer = client.get_worker_status(request).await?.into_inner();
        workers += answer.workers.len();
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(workers);
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let url = format!("http://{}", args.server);
    let mut client = OttoscalerServiceClient::connect(url).await?;
    // The first call connects.
    let workers = call(&mut client, &args.task, args.scale_up).await?;
    let took = Arc::new(Mutex::new(Vec::new()));
    let places = Arc::new(Semaphore::new(args.in_flight));
    let mut calls = JoinSet::new();
    let began = Instant::now();
    for _ in 0..args.calls {
        let place = places.clone().acquire_owned().await?;
        let (took, mut client, task) = (took.clone(), client.clone(), args.task.clone());
        calls.spawn(async move {
            let started = Instant::now();
            let found = call(&mut client, &task, args.scale_up).await?;
            took.lock()
                .await
                .push(started.elapsed().as_secs_f64() * 1e3);
            drop(place);
            anyhow::ensure!(found == workers, "{found} workers, and {workers} before");
            Ok(())
        });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    let rate = f64::from(u32::try_from(args.calls)?) / began.elapsed().as_secs_f64();
    let mut took = took.lock().await.clone();
    took.sort_by(f64::total_cmp);
    let median = took.get(took.len() / 2).context("no call")?;
    let late = took.get(took.len() * 99 / 100).context("no call")?;
    println!("{workers} {median:.3} {late:.3} {rate:.1}");
    Ok(())
}
