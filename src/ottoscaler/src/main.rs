//! Parse, run, exit code.
use std::{fmt::Arguments, process::ExitCode};

use ottoscaler::{
    app,
    args::{self, Invalid, Invocation},
    cluster::crd,
};

/// jemalloc: glibc fragments; its RSS at 10,000 workers varied between 52 and 66 MiB.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// BSD `EX_USAGE`: the configuration is wrong; nothing was contacted.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1);
    match args::parse(args, &|name| std::env::var(name).ok()) {
        Err(invalid) => failed(EX_USAGE, &invalid.into()),
        Ok(Invocation::Show(text)) => show(format_args!("{}", text.trim_end())),
        Ok(Invocation::Crd) => match crd::definition() {
            Ok(definition) => show(format_args!("{definition}")),
            Err(error) => failed(1, &error.into()),
        },
        Ok(Invocation::Serve(options)) => match app::run(*options) {
            Ok(()) => ExitCode::SUCCESS,
            // What only the start can show to be wrong.
            Err(error) if error.is::<Invalid>() => failed(EX_USAGE, &error),
            Err(error) => failed(1, &error),
        },
    }
}

fn show(text: Arguments<'_>) -> ExitCode {
    match output::print_line(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => output::broken_pipe_exit_code(),
        Err(error) => failed(1, &error.into()),
    }
}

fn failed(code: u8, error: &anyhow::Error) -> ExitCode {
    output::print_to_stderr(format_args!("ottoscaler: {error:#}\n"));
    ExitCode::from(code)
}
