//! The command line: parse, run, exit code.
use std::process::ExitCode;

use clap::Parser as _;
use ottoscaler::ctl;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    ctl::run(ctl::Args::parse()).await
}
