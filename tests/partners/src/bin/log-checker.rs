//! Compares the printers' truth with the handler's record. Exits 0 only if they
//! agree, 1 if not, 2 if it could not judge.
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use ottoscaler_partners::{
    audit,
    check::{self, Expect},
    record, tail, truth,
};

#[derive(Debug, Parser)]
struct Args {
    /// Folder of the truth files.
    #[arg(long)]
    truth: PathBuf,
    /// The handler's record.
    #[arg(long)]
    record: PathBuf,
    /// Bytes of the record that are of the time before.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only pods whose name starts so.
    #[arg(long, default_value = "")]
    prefix: String,
    #[arg(long, default_value_t = 1)]
    expect_workers: usize,
    #[arg(long, default_value_t = 1)]
    min_lines: usize,
    #[arg(long)]
    allow_gaps: bool,
    /// Each worker must have so many gap records.
    #[arg(long)]
    gaps_each: Option<usize>,
    /// A file with the last lines of those that the node rotated; they may be missing.
    #[arg(long)]
    rotated: Option<PathBuf>,
    /// Printers may have been killed.
    #[arg(long)]
    allow_unfinished: bool,
    /// The API server's audit log: who released the Lease, so that repeats of theirs are
    /// counted by themselves.
    #[arg(long)]
    audit: Option<PathBuf>,
    /// Bytes of it that are of the time before.
    #[arg(long, default_value_t = 0)]
    audit_from: u64,
    /// A holder of the Lease that was killed; repeats of others are counted by themselves.
    #[arg(long)]
    killed: Vec<String>,
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match judge(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("log-checker: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn read_lines(file: &Path) -> io::Result<BTreeSet<String>> {
    Ok(fs::read_to_string(file)?
        .lines()
        .map(str::to_owned)
        .collect())
}

fn judge(args: &Args) -> anyhow::Result<bool> {
    let mut truths = truth::read_all(&args.truth)?;
    truths.retain(|t| t.pod.starts_with(&args.prefix));
    let records = record::read(&args.record, args.from, &args.prefix)?;
    let released = match &args.audit {
        Some(log) => Some(audit::released(&tail::read_from(log, args.audit_from)?)),
        None => None,
    };
    let killed = BTreeSet::from_iter(args.killed.iter().cloned());
    let rotated = args.rotated.as_deref().map(read_lines).transpose()?;
    let verdict = check::check(
        &truths,
        &records,
        Expect {
            workers: args.expect_workers,
            min_lines: args.min_lines,
            allow_gaps: args.allow_gaps || args.gaps_each.is_some(),
            gaps_each: args.gaps_each,
            allow_unfinished: args.allow_unfinished,
            released: released.as_ref(),
            killed: Some(&killed).filter(|all| !all.is_empty()),
            rotated: rotated.as_ref(),
        },
    );
    if args.json {
        println!("{}", serde_json::to_string(&verdict)?);
    } else {
        println!(
            "lines {}/{}, {} lost ({} of them told), {} repeats, {} gaps, {} notifications of {} workers",
            verdict.recorded,
            verdict.printed,
            verdict.printed - verdict.recorded,
            verdict.told,
            verdict.repeats,
            verdict.gaps,
            verdict.notifications,
            verdict.workers
        );
        for fault in &verdict.faults {
            println!("  {fault}");
        }
    }
    Ok(verdict.faults.is_empty())
}
