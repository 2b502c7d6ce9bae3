//! Ends workers by writing their pods' status, as the kubelet would, and tells how
//! long after that otto-handler was notified, beside a plain watch of the same pods.
//!
//! The phase is in the API, at the latest, when the write is answered or the watch
//! shows it, whichever comes first. Prints p50, p99 and the maximum in milliseconds:
//! of the notification, then of the watch; the raw times go to `--csv`.
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use ottoscaler_partners::record::{self, Record};
use serde_json::json;
use tokio::task::JoinSet;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    namespace: String,
    /// Labels of the pods to end.
    #[arg(long)]
    selector: String,
    /// Pods ended per second; 0: as fast as 64 at a time can be.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// What the recording handler got; without it nothing is waited for.
    #[arg(long)]
    record: Option<PathBuf>,
    #[arg(long)]
    csv: Option<PathBuf>,
    /// For the last notification, seconds.
    #[arg(long, default_value_t = 60)]
    within: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Times {
    sent: Option<Timestamp>,
    answered: Option<Timestamp>,
    watched: Option<Timestamp>,
    notified: Option<Timestamp>,
}

type All = Arc<Mutex<BTreeMap<String, Times>>>;

fn note(all: &All, pod: &str, set: impl FnOnce(&mut Times)) {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    set(all.entry(pod.to_owned()).or_default());
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let pods: Api<Pod> = Api::namespaced(Client::try_default().await?, &args.namespace);
    let listed = pods
        .list(&ListParams::default().labels(&args.selector))
        .await?;
    let version = listed.metadata.resource_version.unwrap_or_default();
    let names: Vec<String> = listed.items.iter().map(ResourceExt::name_any).collect();
    anyhow::ensure!(!names.is_empty(), "no pods of {}", args.selector);
    let all = All::default();
    let watcher = tokio::spawn(watch(
        pods.clone(),
        args.selector.clone(),
        version,
        all.clone(),
    ));
    end(&args, &pods, &names, &all).await?;
    if let Some(record) = &args.record {
        wait_notified(&args, record, &names, &all).await?;
        tell(&args, &all)?;
    }
    watcher.abort();
    Ok(())
}

async fn end(args: &Args, pods: &Api<Pod>, names: &[String], all: &All) -> anyhow::Result<()> {
    if args.rate == 0 {
        let ends = names
            .iter()
            .map(|name| end_one(pods.clone(), name.clone(), all.clone()));
        return futures::stream::iter(ends)
            .buffer_unordered(64)
            .try_for_each(|()| async { Ok(()) })
            .await;
    }
    let mut tick = tokio::time::interval(Duration::from_secs(1) / args.rate);
    let mut ends = JoinSet::new();
    for name in names {
        tick.tick().await;
        ends.spawn(end_one(pods.clone(), name.clone(), all.clone()));
    }
    while let Some(ended) = ends.join_next().await {
        ended??;
    }
    Ok(())
}

async fn end_one(pods: Api<Pod>, name: String, all: All) -> anyhow::Result<()> {
    let status = json!({"status": {"phase": "Succeeded", "containerStatuses": [{
        "name": "worker", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}});
    note(&all, &name, |t| t.sent = Some(Timestamp::now()));
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    note(&all, &name, |t| t.answered = Some(Timestamp::now()));
    Ok(())
}

/// Ended by its caller.
async fn watch(pods: Api<Pod>, selector: String, mut version: String, all: All) {
    loop {
        let params = WatchParams::default().labels(&selector);
        let Ok(events) = pods.watch(&params, &version).await else {
            return;
        };
        let mut events = events.boxed();
        while let Ok(Some(event)) = events.try_next().await {
            let (WatchEvent::Modified(pod) | WatchEvent::Added(pod)) = event else {
                continue;
            };
            version = pod.resource_version().unwrap_or(version);
            if pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded") {
                note(&all, &pod.name_any(), |t| {
                    t.watched.get_or_insert_with(Timestamp::now);
                });
            }
        }
    }
}

async fn wait_notified(
    args: &Args,
    path: &Path,
    names: &[String],
    all: &All,
) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(args.within);
    loop {
        let mut told: HashMap<String, Timestamp> = HashMap::new();
        for record in record::read(path, 0, "")? {
            if let Record::Notify(n) = record
                && n.status == "COMPLETED"
            {
                told.entry(n.worker).or_insert(n.at.parse()?);
            }
        }
        let missing = names
            .iter()
            .filter(|name| !told.contains_key(*name))
            .count();
        if missing == 0 {
            for name in names {
                note(all, name, |t| t.notified = told.get(name).copied());
            }
            return Ok(());
        }
        anyhow::ensure!(
            tokio::time::Instant::now() < deadline,
            "{missing} of {} were not notified",
            names.len()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn tell(args: &Args, all: &All) -> anyhow::Result<()> {
    let all = all.lock().unwrap_or_else(PoisonError::into_inner);
    let mut raw = String::from("pod,sent_ns,answered_ms,watched_ms,notified_ms\n");
    let (mut notified, mut watched) = (Vec::new(), Vec::new());
    for (pod, times) in all.iter() {
        let sent = times.sent.context("not sent")?;
        let answered = times.answered.context("not answered")?;
        let there = times.watched.map_or(answered, |w| w.min(answered));
        let ms = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64() * 1e3;
        // Not watched yet when all was over: as late as the notification.
        let told = times.notified.context("not notified")?;
        let seen = times.watched.unwrap_or(told);
        notified.push(ms(there, told));
        watched.push(ms(there, seen));
        let (a, w, n) = (ms(sent, answered), ms(sent, seen), ms(sent, told));
        writeln!(raw, "{pod},{},{a:.3},{w:.3},{n:.3}", sent.as_nanosecond())?;
    }
    if let Some(path) = &args.csv {
        std::fs::write(path, raw)?;
    }
    let mut shown = Vec::new();
    for values in [&mut notified, &mut watched] {
        values.sort_by(f64::total_cmp);
        for share in [0.5, 0.99, 1.0] {
            let at = (values.len() as f64 * share).ceil() as usize;
            shown.push(format!("{:.2}", values[at.clamp(1, values.len()) - 1]));
        }
    }
    println!("{}", shown.join(" "));
    Ok(())
}
