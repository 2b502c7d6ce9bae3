//! A task's lines on the terminal, each worker in a colour of its own.
use std::{
    collections::HashMap,
    io::{self, Write as _},
};

use serde_json::json;
use tonic::Code;

use super::{
    Failure, Output,
    client::{Client, REOPEN_AFTER, REOPENS},
    render,
};
use crate::proto::{ShowLogsRequest, ShownLine, shown_line::Kind};

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
    for _ in 0..REOPENS {
        printer.again.clear();
        match once(client, request.clone(), &mut printer).await {
            Err(Failure::Call(status)) if status.code() == Code::Unavailable => {}
            ended => return ended,
        }
        tokio::time::sleep(REOPEN_AFTER).await;
    }
    Err(tonic::Status::unavailable("the stream broke again and again").into())
}

/// One stream, to its end.
async fn once(
    client: &Client,
    request: ShowLogsRequest,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let mut lines = client.logs(request).await?;
    while let Some(line) = lines.message().await? {
        printer.take(&line).map_err(anyhow::Error::from)?;
    }
    Ok(())
}

struct Printer {
    output: Output,
    /// Lines of each worker: in all, and on this stream.
    printed: HashMap<String, u64>,
    again: HashMap<String, u64>,
    colours: HashMap<String, u8>,
}

impl Printer {
    fn take(&mut self, line: &ShownLine) -> io::Result<()> {
        let worker = &line.worker_pod_name;
        let seen = self.again.entry(worker.clone()).or_default();
        *seen += 1;
        let known = self.printed.entry(worker.clone()).or_default();
        if *seen <= *known {
            return Ok(());
        }
        *known = *seen;
        let next = COLOURS[self.colours.len() % COLOURS.len()];
        let colour = *self.colours.entry(worker.clone()).or_insert(next);
        print(line, colour, self.output)
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
        (Output::Table, Kind::Note) => writeln!(io::stderr(), "ottoctl: {}", line.message),
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
