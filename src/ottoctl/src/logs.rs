//! The output of `ottoctl logs`: the lines of a task, with a colour for each worker.
use std::{
    collections::HashMap,
    io::{self, Write as _},
};

use serde_json::json;

use super::{
    CommandError, Output,
    client::{Client, StreamRetry},
    render,
};
use api::{ShowLogsRequest, ShownLine, shown_line::Kind};
use output as out;

const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];

/// Prints lines until the server has no more. A broken stream is opened again, and lines that were
/// printed already are skipped.
pub(super) async fn show(
    client: &Client,
    request: ShowLogsRequest,
    output: Output,
) -> Result<(), CommandError> {
    let mut printer = Printer {
        output,
        printed: HashMap::new(),
        on_stream: HashMap::new(),
        colours: HashMap::new(),
    };
    let mut retry = StreamRetry::new(client);
    loop {
        printer.on_stream.clear();
        let mut lines = client.logs(request.clone()).await?;
        let broken = loop {
            match lines.message().await {
                Ok(Some(line)) => {
                    if printer.print_new(&line)? {
                        retry.record_progress();
                    }
                }
                Ok(None) => return Ok(()),
                Err(status) => break status,
            }
        };
        retry.wait_after(broken).await?;
    }
}

/// A `Printer` prints each line of a worker once.
struct Printer {
    output: Output,
    /// The number of lines of each worker that were printed.
    printed: HashMap<String, u64>,
    /// The number of lines of each worker that the current stream has sent.
    on_stream: HashMap<String, u64>,
    colours: HashMap<String, u8>,
}

impl Printer {
    /// Prints a line unless it was printed before, and reports whether it was new.
    fn print_new(&mut self, line: &ShownLine) -> io::Result<bool> {
        let worker = &line.worker_pod_name;
        let seen = self.on_stream.entry(worker.clone()).or_default();
        *seen += 1;
        let known = self.printed.entry(worker.clone()).or_default();
        if *seen <= *known {
            return Ok(false);
        }
        *known = *seen;
        let next = COLOURS[self.colours.len() % COLOURS.len()];
        let colour = *self.colours.entry(worker.clone()).or_insert(next);
        print(line, colour, self.output)?;
        Ok(true)
    }
}

fn print(line: &ShownLine, colour: u8, output: Output) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let worker = line.worker_pod_name.trim_start_matches("otto-agent-");
    match (output, line.kind()) {
        (Output::Json, kind) => writeln!(
            out,
            "{}",
            json!({
                "kind": kind.as_str_name(),
                "worker": line.worker_pod_name,
                "timestamp": line.timestamp,
                "level": line.level,
                "message": line.message,
            })
        ),
        (Output::Table, Kind::Note) => {
            out::print_to_stderr(format_args!("ottoctl: {}\n", line.message));
            Ok(())
        }
        (Output::Table, kind) => {
            let mark = if kind == Kind::Gap { '!' } else { '|' };
            if render::uses_colours() {
                writeln!(out, "\x1b[{colour}m{worker} {mark}\x1b[0m {}", line.message)
            } else {
                writeln!(out, "{worker} {mark} {}", line.message)
            }
        }
    }
}
