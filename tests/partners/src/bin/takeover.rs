//! How long nobody acted: from a fault, or from the release of a Lease, to the
//! first pod that the next term created, by the API server's audit log. Waits for
//! it; prints milliseconds. Exits 1 if it did not come in time.
use std::{
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use jiff::Timestamp;
use serde_json::Value;

/// Enough of the log to know the term that acted last.
const BEFORE: u64 = 16 * 1024 * 1024;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    log: PathBuf,
    #[arg(long)]
    namespace: String,
    /// When the fault happened: nanoseconds since 1970.
    #[arg(long)]
    since: i128,
    #[arg(long, value_enum, default_value = "fault")]
    from: From,
    /// Seconds.
    #[arg(long, default_value_t = 60)]
    within: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum From {
    Fault,
    /// The write that empties the Lease after `since`.
    Release,
}

#[derive(Debug, Default)]
struct Seen {
    old: Option<String>,
    from: Option<i128>,
    acting: Option<i128>,
}

impl Seen {
    fn take(&mut self, args: &Args, event: &Value) {
        let at = event["stageTimestamp"].as_str().unwrap_or_default();
        let at = at.parse::<Timestamp>().map_or(0, Timestamp::as_nanosecond);
        let code = event["responseStatus"]["code"].as_u64().unwrap_or(0);
        let of = &event["objectRef"];
        if event["stage"] != "ResponseComplete"
            || of["namespace"] != args.namespace.as_str()
            || !(200..300).contains(&code)
        {
            return;
        }
        let (resource, verb) = (&of["resource"], &event["verb"]);
        let object = &event["responseObject"];
        if resource == "leases" && at >= args.since {
            let holder = object["spec"]["holderIdentity"].as_str();
            if args.from == From::Release && holder.is_none_or(str::is_empty) {
                self.from.get_or_insert(at);
            }
        }
        if resource == "pods" && verb == "create" {
            let Some(term) = object["metadata"]["annotations"]["ottoscaler.io/term"].as_str()
            else {
                return;
            };
            if at < args.since || self.old.is_none() {
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
    let mut reader = BufReader::new(file);
    let mut seen = Seen {
        from: (args.from == From::Fault).then_some(args.since),
        ..Seen::default()
    };
    let deadline = Instant::now() + Duration::from_secs(args.within);
    let mut line = String::new();
    loop {
        // A line that is being written comes in pieces.
        if reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
            if let Ok(event) = serde_json::from_str::<Value>(&line) {
                seen.take(&args, &event);
            }
            line.clear();
            continue;
        }
        if let (Some(from), Some(acting)) = (seen.from, seen.acting) {
            println!("{:.1}", (acting - from) as f64 / 1e6);
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() > deadline {
            eprintln!("takeover: not within {} s: {seen:?}", args.within);
            return Ok(ExitCode::FAILURE);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
