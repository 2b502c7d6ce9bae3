//! How long nobody acted: from a fault, or from the release of a Lease, to the
//! first pod that the next term created, by the API server's audit log. Runs the
//! command that is the fault once it has read what was logged before and has been
//! quiet for a while, so that it takes no processor time from those it measures;
//! prints milliseconds, and after them where they went. Exits 1 if the pod did not
//! come in time.
use std::{
    fs::File,
    io::{BufReader, Seek as _, SeekFrom},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use jiff::Timestamp;
use ottoscaler_partners::tail::Tail;
use serde_json::Value;

/// Enough of the log to know the term that acted last.
const BEFORE: u64 = 16 * 1024 * 1024;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    log: PathBuf,
    #[arg(long)]
    namespace: String,
    #[arg(long, value_enum, default_value = "fault")]
    from: From,
    /// Seconds to be quiet for before the fault.
    #[arg(long, default_value_t = 1.0)]
    quiet: f64,
    /// Seconds.
    #[arg(long, default_value_t = 60)]
    within: u64,
    /// The fault.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum From {
    Fault,
    /// The write that empties the Lease after it.
    Release,
}

#[derive(Debug, Default)]
struct Seen {
    old: Option<String>,
    held: Option<String>,
    /// When the fault happened: nanoseconds since 1970. None: not yet.
    since: Option<i128>,
    from: Option<i128>,
    acting: Option<i128>,
    /// The steps before it: the Lease is taken, a task is made or sealed.
    acquired: Option<i128>,
    tasked: Option<i128>,
    refused: usize,
}

impl Seen {
    fn take(&mut self, args: &Args, event: &Value) {
        let at = event["stageTimestamp"].as_str().unwrap_or_default();
        let at = at.parse::<Timestamp>().map_or(0, Timestamp::as_nanosecond);
        let code = event["responseStatus"]["code"].as_u64().unwrap_or(0);
        let of = &event["objectRef"];
        if event["stage"] != "ResponseComplete" || of["namespace"] != args.namespace.as_str() {
            return;
        }
        let (resource, verb) = (&of["resource"], &event["verb"]);
        if !(200..300).contains(&code) {
            let ours = self.acquired.is_some() && resource == "pods" && verb == "create";
            self.refused += usize::from(ours);
            return;
        }
        let object = &event["responseObject"];
        let after = self.since.is_some_and(|since| at >= since);
        if resource == "leases" {
            let holder = object["spec"]["holderIdentity"].as_str();
            if !after {
                self.held = holder.map(str::to_owned);
            } else if args.from == From::Release && holder.is_none_or(str::is_empty) {
                self.from.get_or_insert(at);
            } else if self.held.as_deref() != holder && self.from.is_some() {
                self.acquired.get_or_insert(at);
            }
        }
        if resource == "workertasks" && self.acquired.is_some() {
            self.tasked.get_or_insert(at);
        }
        if resource == "pods" && verb == "create" {
            let Some(term) = object["metadata"]["annotations"]["ottoscaler.io/term"].as_str()
            else {
                return;
            };
            if !after || self.old.is_none() {
                self.old = Some(term.to_owned());
            } else if self.old.as_deref() != Some(term) {
                self.acting.get_or_insert(at);
            }
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let mut file = File::open(&args.log)?;
    let start = file.metadata()?.len().saturating_sub(BEFORE);
    file.seek(SeekFrom::Start(start))?;
    let mut log = Tail::new(BufReader::new(file));
    let mut seen = Seen::default();
    let mut deadline = Instant::now() + Duration::from_secs(args.within);
    let mut fault_at: Option<Instant> = None;
    loop {
        if let Some(line) = log.line()? {
            if let Ok(event) = serde_json::from_slice::<Value>(line) {
                seen.take(&args, &event);
            }
            continue;
        }
        let fault_at =
            *fault_at.get_or_insert_with(|| Instant::now() + Duration::from_secs_f64(args.quiet));
        if seen.since.is_none() && fault_at <= Instant::now() {
            deadline = Instant::now() + Duration::from_secs(args.within);
            let now = Timestamp::now().as_nanosecond();
            seen.since = Some(now);
            seen.from = (args.from == From::Fault).then_some(now);
            let fault = Command::new(&args.command[0])
                .args(&args.command[1..])
                .stdout(Stdio::null())
                .status()?;
            anyhow::ensure!(fault.success(), "the fault: {fault}");
        }
        if let (Some(from), Some(acting)) = (seen.from, seen.acting) {
            let after = |at: Option<i128>| at.map_or(f64::NAN, |at| (at - from) as f64 / 1e6);
            println!(
                "{:.1} acquired {:.1} task {:.1} refused {}",
                after(Some(acting)),
                after(seen.acquired),
                after(seen.tasked),
                seen.refused
            );
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() > deadline {
            eprintln!("takeover: not within {} s: {seen:?}", args.within);
            return Ok(ExitCode::FAILURE);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
