//! What the API server's audit log says of pods and of calls: how long it took until
//! the last of some pods was created, and how many calls workers and tasks cost us.
use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use jiff::Timestamp;
use ottoscaler_partners::tail::Tail;
use serde_json::Value;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    log: PathBuf,
    #[arg(long)]
    namespace: String,
    /// Pods and tasks whose names begin so.
    #[arg(long)]
    prefix: String,
    /// Nanoseconds since 1970; what was before is left out.
    #[arg(long)]
    since: i128,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Waits until so many pods are created; prints milliseconds from `since` on.
    Created {
        #[arg(long)]
        count: usize,
        /// Seconds.
        #[arg(long, default_value_t = 120)]
        within: u64,
    },
    /// Prints our calls per worker, our calls per task, and per worker our writes of shards of
    /// log checkpoints.
    Calls {
        #[arg(long)]
        workers: usize,
        #[arg(long)]
        tasks: usize,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    match args.what {
        What::Created { count, within } => created(&args, count, within),
        What::Calls { workers, tasks } => calls(&args, workers, tasks),
    }
}

fn at(event: &Value, key: &str) -> i128 {
    let text = event[key].as_str().unwrap_or_default();
    text.parse::<Timestamp>()
        .map_or(0, Timestamp::as_nanosecond)
}

/// The object's name; that of a create is in what was answered.
fn name(event: &Value) -> &str {
    let asked = event["objectRef"]["name"].as_str();
    let made = || event["responseObject"]["metadata"]["name"].as_str();
    asked.or_else(made).unwrap_or_default()
}

/// A create that timed out may have taken effect: the next one finds the pod there,
/// or none follows. Whoever asks knows that all were made; this is when, at the latest.
fn exists(event: &Value) -> bool {
    matches!(
        event["responseStatus"]["code"].as_u64(),
        Some(201 | 409 | 504)
    )
}

fn created(args: &Args, count: usize, within: u64) -> anyhow::Result<ExitCode> {
    let mut log = Tail::new(BufReader::new(File::open(&args.log)?));
    let deadline = Instant::now() + Duration::from_secs(within);
    let (mut names, mut last) = (BTreeSet::new(), 0);
    loop {
        if let Some(line) = log.line()? {
            if String::from_utf8_lossy(line).contains(&args.prefix)
                && let Ok(event) = serde_json::from_slice::<Value>(line)
                && event["verb"] == "create"
                && event["stage"] == "ResponseComplete"
                && event["objectRef"]["resource"] == "pods"
                && event["objectRef"]["namespace"] == *args.namespace
                && exists(&event)
                && name(&event).starts_with(&args.prefix)
                && at(&event, "stageTimestamp") >= args.since
            {
                last = last.max(at(&event, "stageTimestamp"));
                names.insert(name(&event).to_owned());
            }
            continue;
        }
        if names.len() >= count {
            println!("{:.1}", (last - args.since) as f64 / 1e6);
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() > deadline {
            eprintln!("audit-cost: {} of {count} pods in {within} s", names.len());
            return Ok(ExitCode::FAILURE);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn calls(args: &Args, workers: usize, tasks: usize) -> anyhow::Result<ExitCode> {
    let user = format!("system:serviceaccount:{}:ottoscaler", args.namespace);
    let (mut of_workers, mut of_tasks, mut checkpoints) = (0, 0, 0);
    // A follow is told when it begins and when it ends.
    let mut seen = BTreeSet::new();
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for line in BufReader::new(File::open(&args.log)?).lines() {
        let line = line?;
        let Ok(event) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let of = &event["objectRef"];
        let resource = of["resource"].as_str().unwrap_or_default();
        let ours = event["user"]["username"] == *user
            && at(&event, "requestReceivedTimestamp") >= args.since
            && matches!(resource, "pods" | "workertasks" | "configmaps")
            && seen.insert(event["auditID"].as_str().unwrap_or_default().to_owned());
        let named = name(&event).trim_start_matches("otto-agent-");
        let verb = event["verb"].as_str().unwrap_or_default();
        // Of many pods, and it names none: whoever asks has no other tasks.
        let of_many = verb == "deletecollection";
        // Nor does a shard of log checkpoints.
        let of_all = of_many || resource == "configmaps";
        if !ours || !(of_all || named.starts_with(&args.prefix)) {
            continue;
        }
        let sub = of["subresource"].as_str().unwrap_or_default();
        *kinds.entry(format!("{verb} {resource} {sub}")).or_default() += 1;
        match (resource, verb) {
            ("configmaps", _) => checkpoints += 1,
            _ if of_many => of_tasks += 1,
            ("pods", _) => of_workers += 1,
            _ => of_tasks += 1,
        }
    }
    eprintln!("{kinds:?}");
    let per = |n: usize, of: usize| n as f64 / of.max(1) as f64;
    println!(
        "{:.3} {:.3} {:.3}",
        per(of_workers, workers),
        per(of_tasks, tasks),
        per(checkpoints, workers)
    );
    Ok(ExitCode::from(u8::from(of_workers == 0 || of_tasks == 0)))
}
