//! Judges the API server's audit log: one accepted create per worker, no write
//! of an older term. Exits 0, 1, or 2 if it could not judge.
use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use ottoscaler_partners::{audit, tail};

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    log: PathBuf,
    /// Bytes of the log that are of the time before.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// `system:serviceaccount:<namespace>:<name>`
    #[arg(long)]
    user: String,
    /// Only pods of this task.
    #[arg(long)]
    task: Option<String>,
    /// Pods that must have been created, once each.
    #[arg(long, default_value_t = 1)]
    expect_creates: usize,
    #[arg(long, default_value_t = 1)]
    min_terms: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let log = match tail::read_from(&args.log, args.from) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("audit-checker: {}: {error}", args.log.display());
            return ExitCode::from(2);
        }
    };
    let mut seen = audit::read(&log, &args.user, args.task.as_deref());
    if seen.creates.len() != args.expect_creates {
        seen.faults.push(format!(
            "{} pods created, expected {}",
            seen.creates.len(),
            args.expect_creates
        ));
    }
    if seen.terms.len() < args.min_terms {
        seen.faults.push(format!(
            "{} terms wrote, expected at least {}",
            seen.terms.len(),
            args.min_terms
        ));
    }
    println!(
        "pods {} created once each, {} deleted; {} fenced writes of {} terms; {} refused",
        seen.creates.len(),
        seen.deletes.len(),
        seen.fenced_writes,
        seen.terms.len(),
        seen.refusals
    );
    for fault in &seen.faults {
        println!("  {fault}");
    }
    ExitCode::from(u8::from(!seen.faults.is_empty()))
}
