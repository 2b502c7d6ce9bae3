//! Asks for one worker again and again, each in a task of its own that is cancelled once
//! it was answered. Each call dials anew and is repeated where it met nobody.
use std::time::Duration;

use clap::Parser;
use ottoscaler_partners::proto::{
    ScaleRequest, ottoscaler_service_client::OttoscalerServiceClient,
};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Code, Request, Status, transport::Endpoint};

const PATIENCE: Duration = Duration::from_secs(40);

#[derive(Debug, Parser)]
struct Args {
    /// `host:port`
    #[arg(long)]
    server: String,
    #[arg(long, default_value_t = 10)]
    per_second: u32,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let endpoint = Endpoint::from_shared(format!("http://{}", args.server))?
        .connect_timeout(Duration::from_secs(2));
    let mut tick = tokio::time::interval(Duration::from_secs(1) / args.per_second);
    // Whoever demanded before has cancelled his tasks for good.
    let began = jiff::Timestamp::now().as_millisecond();
    let mut asked = JoinSet::new();
    for n in 1_u64.. {
        tick.tick().await;
        asked.spawn(timeout(
            PATIENCE,
            ask(endpoint.clone(), format!("demand-{began}-{n}")),
        ));
        while asked.try_join_next().is_some() {}
    }
    Ok(())
}

async fn ask(endpoint: Endpoint, task: String) {
    for workers in [1, 0] {
        while let Err(status) = scale(&endpoint, &task, workers).await {
            if status.code() != Code::Unavailable {
                eprintln!("{task}: {status}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

async fn scale(endpoint: &Endpoint, task: &str, workers: i32) -> Result<(), Status> {
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut service = OttoscalerServiceClient::new(channel);
    let mut request = Request::new(ScaleRequest {
        task_id: task.to_owned(),
        repository: "r".to_owned(),
        commit_sha: "c".to_owned(),
        worker_count: workers,
        ..ScaleRequest::default()
    });
    request.set_timeout(PATIENCE);
    match workers {
        0 => service.scale_down(request).await.map(drop),
        _ => service.scale_up(request).await.map(drop),
    }
}
