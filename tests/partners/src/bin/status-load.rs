//! Asks for the state of workers again and again, one call at a time; prints how many
//! workers an answer has, and the median of the calls in milliseconds.
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use ottoscaler_partners::proto::{
    WorkerStatusRequest, ottoscaler_service_client::OttoscalerServiceClient,
};

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
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let url = format!("http://{}", args.server);
    let mut client = OttoscalerServiceClient::connect(url)
        .await?
        .max_decoding_message_size(64 * 1024 * 1024);
    let (mut took, mut workers) = (Vec::new(), 0);
    for _ in 0..args.calls {
        let request = WorkerStatusRequest {
            task_id: args.task.clone(),
            ..WorkerStatusRequest::default()
        };
        let started = Instant::now();
        let answer = client.get_worker_status(request).await?;
        took.push(started.elapsed().as_secs_f64() * 1e3);
        workers = answer.into_inner().workers.len();
    }
    took.sort_by(f64::total_cmp);
    let median = took.get(took.len() / 2).context("no call")?;
    println!("{workers} {median:.3}");
    Ok(())
}
