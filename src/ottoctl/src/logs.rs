//! A task's lines on the terminal, each worker in a colour of its own.
use std::{
    collections::HashMap,
    io::{self, Write as _},
};

use serde_json::json;

use super::{
    Failure, Output,
    client::{Client, Reopening},
    render,
};
use api::{ShowLogsRequest, ShownLine, shown_line::Kind};
use output as out;

const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];

/// Prints lines until the server has no more. A stream that broke is opened again, and
/// the lines of each worker that were printed are left out.
pub(super) async fn show(
    client: &Client,
    request: ShowLogsRequest,
    output: Output,
) -> Result<(), Failure> {
    let mut printer = Printer {
        output,
        printed: HashMap::new(),
        again: HashMap::new(),
        colours: HashMap::new(),
    };
    let mut reopening = Reopening::new(client);
    loop {
        printer.again.clear();
        let mut lines = client.logs(request.clone()).await?;
        let broken = loop {
            match lines.message().await {
                Ok(Some(line)) => {
                    if printer.take(&line)? {
                        reopening.progressed();
                    }
                }
                Ok(None) => return Ok(()),
                Err(status) => break status,
            }
        };
        reopening.after(broken).await?;
    }
}

struct Printer {
    output: Output,
    /// Lines of each worker: in all, and on this stream.
    printed: HashMap<String, u64>,
    again: HashMap<String, u64>,
    colours: HashMap<String, u8>,
}

impl Printer {
    /// Whether it is a line that was not printed before.
    fn take(&mut self, line: &ShownLine) -> io::Result<bool> {
        let worker = &line.worker_pod_name;
        let seen = self.again.entry(worker.clone()).or_default();
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
            out::note(format_args!("ottoctl: {}\n", line.message));
            Ok(())
        }
        (Output::Table, kind) => {
            let mark = if kind == Kind::Gap { '!' } else { '|' };
            if render::coloured() {
                writeln!(out, "\x1b[{colour}m{worker} {mark}\x1b[0m {}", line.message)
            } else {
                writeln!(out, "{worker} {mark} {}", line.message)
            }
        }
    }
}
