//! Parse, run, exit code.
use std::process::ExitCode;

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
        Some("--help" | "-h") => println!("{}", config::Help),
        Some("--version" | "-V") => println!("ottoscaler {}", env!("CARGO_PKG_VERSION")),
        Some("crd") => match crd::definition() {
            Ok(definition) => println!("{definition}"),
            Err(error) => return failed(1, &error.into()),
        },
        _ => return serve(args),
    }
    ExitCode::SUCCESS
}

fn serve(args: Vec<String>) -> ExitCode {
    let config = config::parse_flags(args).and_then(|flags| {
        config::Config::from_lookup(&|name| {
            let flag = flags
                .iter()
                .rev()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v.clone());
            flag.or_else(|| std::env::var(name).ok())
        })
    });
    match config {
        Err(invalid) => failed(EX_USAGE, &invalid.into()),
        Ok(config) => match app::run(config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(1, &error),
        },
    }
}

fn failed(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("ottoscaler: {error:#}");
    ExitCode::from(code)
}
