//! Runs a program and tells how it ended.
use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Runs a program whose output nobody reads any more.
pub(crate) fn unread(program: &str, args: &[&str], and_errors: bool) -> Output {
    let gone = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        Stdio::from(writer)
    };
    let errors = if and_errors { gone() } else { Stdio::piped() };
    let mut command = Command::new(program);
    command.env_clear().args(args).stdin(Stdio::null());
    let child = command
        .stdout(gone())
        .stderr(errors)
        .spawn()
        .expect("the program starts");
    child.wait_with_output().expect("the program ends")
}

pub(crate) fn run(
    program: &str,
    args: &[&str],
    environment: &[(&str, &str)],
) -> (Output, Duration) {
    let began = Instant::now();
    let mut command = Command::new(program);
    command.env_clear().envs(environment.iter().copied());
    let output = command
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program ends");
    (output, began.elapsed())
}

pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
