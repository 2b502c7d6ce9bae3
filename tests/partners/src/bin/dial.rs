//! Asks for a status a hundred times a second, each time over a connection of its own
//! and once only; ends with its input. Prints how many calls it made, and exits 1 with
//! those that failed.
use std::{io, process::ExitCode, time::Duration};

use clap::Parser;
use ottoscaler_partners::proto::{
    WorkerStatusRequest, ottoscaler_service_client::OttoscalerServiceClient,
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, interval, timeout},
};
use tonic::transport::Endpoint;

const EVERY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
struct Args {
    /// `host:port`
    #[arg(long)]
    server: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let endpoint = Endpoint::from_shared(format!("http://{}", args.server))?;
    let (began, mut tick) = (Instant::now(), interval(EVERY));
    let mut input = spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink()));
    let (mut calls, mut made, mut failed) = (JoinSet::new(), 0, Vec::new());
    let mut over = false;
    while !over || !calls.is_empty() {
        tokio::select! {
            _ = &mut input, if !over => over = true,
            _ = tick.tick(), if !over => {
                let (endpoint, at) = (endpoint.clone(), began.elapsed());
                calls.spawn(async move { (at, timeout(PATIENCE, ask(&endpoint)).await) });
            }
            Some(call) = calls.join_next() => {
                made += 1;
                match call? {
                    (_, Ok(Ok(()))) => {}
                    (at, Ok(Err(error))) => failed.push(format!("after {at:?}: {error:#}")),
                    (at, Err(_)) => failed.push(format!("after {at:?}: no answer")),
                }
            }
        }
    }
    println!("{made} calls, {} failed", failed.len());
    failed.iter().take(20).for_each(|line| println!("{line}"));
    Ok(ExitCode::from(u8::from(!failed.is_empty() || made == 0)))
}

async fn ask(endpoint: &Endpoint) -> anyhow::Result<()> {
    let mut service = OttoscalerServiceClient::new(endpoint.connect().await?);
    let none = WorkerStatusRequest {
        task_id: "none".to_owned(),
        ..WorkerStatusRequest::default()
    };
    service.get_worker_status(none).await?;
    Ok(())
}
