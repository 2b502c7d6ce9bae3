//! Standard output and standard error of the programs, whose readers may go before the
//! writer does (`ottoctl status | head -1`).
use std::{
    fmt::Arguments,
    io::{self, Write as _},
    process::ExitCode,
};

/// The exit code of a program that SIGPIPE ends, as shells tell it.
const READER_GONE: u8 = 141;

/// Writes a line to standard output.
///
/// # Errors
/// The line was not taken; where its reader has gone, see [`reader_is_gone`].
pub fn line(text: Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(text)?;
    out.write_all(b"\n")
}

/// Writes to standard error, if anybody reads it.
pub fn note(text: Arguments<'_>) {
    // There is nowhere left to tell of a failure.
    let _ = io::stderr().lock().write_fmt(text);
}

pub fn reader_is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// How a program ends whose reader has gone: without a word.
pub fn gone() -> ExitCode {
    ExitCode::from(READER_GONE)
}
