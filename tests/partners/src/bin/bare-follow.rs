//! Follows pods' logs through the API server and counts their lines: what Ottoscaler's log
//! forwarder is held against. Prints JSON (`ottoscaler_partners::pace::Seen`).
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{ListParams, LogParams},
};
use ottoscaler_partners::pace::Pace;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    selector: String,
    /// Lines of all of them to wait for.
    #[arg(long)]
    lines: u64,
    /// Only what comes from now on.
    #[arg(long)]
    new: bool,
    /// Seconds.
    #[arg(long, default_value_t = 120)]
    within: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut config = Config::infer().await?;
    config.read_timeout = None;
    let pods: Api<Pod> = Api::namespaced(Client::try_from(config)?, &args.namespace);
    let listed = pods
        .list(&ListParams::default().labels(&args.selector))
        .await?;
    anyhow::ensure!(!listed.items.is_empty(), "no pods of {}", args.selector);
    let (paces, mut done) = mpsc::channel(listed.items.len());
    let mut follows = JoinSet::new();
    let each = args.lines / listed.items.len() as u64;
    for pod in &listed.items {
        let (pods, name, paces) = (pods.clone(), pod.name_any(), paces.clone());
        let new = args.new;
        follows.spawn(async move {
            let params = LogParams {
                follow: true,
                timestamps: true,
                tail_lines: new.then_some(0),
                ..LogParams::default()
            };
            let mut lines = pods.log_stream(&name, &params).await?.lines();
            let mut pace = Pace::default();
            while pace.lines() < each {
                let Some(line) = lines.try_next().await? else {
                    break;
                };
                let stamp = line.split(' ').next().unwrap_or_default();
                pace.arrived(jiff::Timestamp::now(), stamp);
            }
            paces.send(pace).await?;
            // Stays open, as a follow does.
            lines.next().await;
            anyhow::Ok(())
        });
    }
    let mut all = Pace::default();
    let collect = async {
        for _ in &listed.items {
            all.merge(done.recv().await.context("a follow ended")?);
        }
        anyhow::Ok(())
    };
    timeout(Duration::from_secs(args.within), collect)
        .await
        .context("not all lines came in time")??;
    println!("{}", serde_json::to_string(&all.seen())?);
    Ok(())
}
