//! The standard output and standard error of the programs, which may be closed by their readers
//! early (`ottoctl status | head -1`).
use std::{
    fmt::Arguments,
    io::{self, Write as _},
    process::ExitCode,
};

/// The exit code that shells report for a program which SIGPIPE has ended.
const SIGPIPE_EXIT_CODE: u8 = 141;

/// Writes a line to standard output.
///
/// # Errors
/// Returns the error of the write. [`is_broken_pipe`] reports whether the reader has closed it.
pub fn print_line(text: Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(text)?;
    out.write_all(b"\n")
}

/// Writes to standard error. A failure is ignored.
pub fn print_to_stderr(text: Arguments<'_>) {
    // There is nowhere left to report a failure.
    let _ = io::stderr().lock().write_fmt(text);
}

/// Reports whether a write failed because the reader has closed the output.
pub fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Returns the exit code of a program whose reader has closed the output. It prints no message.
pub fn broken_pipe_exit_code() -> ExitCode {
    ExitCode::from(SIGPIPE_EXIT_CODE)
}
