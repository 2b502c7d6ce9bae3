//! Parse, run, exit code.
use std::{fmt::Arguments, process::ExitCode};

use ottoscaler::{app, cluster::crd, config};

/// glibc's keeps what ten thousand workers need while they come, by how threads met: 52 to
/// 66 MiB of the same work.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// BSD `EX_USAGE`: the configuration is wrong; nothing was contacted.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--help" | "-h") => show(format_args!("{}", config::Help)),
        Some("--version" | "-V") => show(format_args!("ottoscaler {}", env!("CARGO_PKG_VERSION"))),
        Some("crd") => match crd::definition() {
            Ok(definition) => show(format_args!("{definition}")),
            Err(error) => failed(1, &error.into()),
        },
        _ => serve(args),
    }
}

fn show(text: Arguments<'_>) -> ExitCode {
    match output::line(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::reader_is_gone(&error) => output::gone(),
        Err(error) => failed(1, &error.into()),
    }
}

fn serve(args: Vec<String>) -> ExitCode {
    let config = config::Config::load(args, &|name| std::env::var(name).ok());
    match config {
        Err(invalid) => failed(EX_USAGE, &invalid.into()),
        Ok(config) => match app::run(config) {
            Ok(()) => ExitCode::SUCCESS,
            // What only the start can show to be wrong.
            Err(error) if error.is::<config::Invalid>() => failed(EX_USAGE, &error),
            Err(error) => failed(1, &error),
        },
    }
}

fn failed(code: u8, error: &anyhow::Error) -> ExitCode {
    output::note(format_args!("ottoscaler: {error:#}\n"));
    ExitCode::from(code)
}
