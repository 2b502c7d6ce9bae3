//! A task's lines on the terminal, each worker in a colour of its own.
use std::{
    collections::HashMap,
    io::{self, Write as _},
    time::Duration,
};

use serde_json::json;
use tonic::Code;

use super::{Failure, Output, client::Client, render};
use crate::proto::{ShowLogsRequest, ShownLine, shown_line::Kind};

/// Replicas that may go away one after the other.
const REOPENS: usize = 60;
const REOPEN_AFTER: Duration = Duration::from_millis(500);
const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];

/// Prints lines until the server has no more. A stream that broke is opened again, and
/// the lines of each worker that were printed are left out.
pub(super) async fn show(
    client: &Client,
    request: ShowLogsRequest,
    output: Output,
) -> Result<(), Failure> {
    let mut printed: HashMap<String, u64> = HashMap::new();
    let mut colours: HashMap<String, u8> = HashMap::new();
    for _ in 0..REOPENS {
        let mut again: HashMap<String, u64> = HashMap::new();
        let broke = match client.logs(request.clone()).await {
            Ok(mut lines) => loop {
                match lines.message().await {
                    Ok(None) => return Ok(()),
                    Ok(Some(line)) => {
                        let worker = &line.worker_pod_name;
                        let seen = again.entry(worker.clone()).or_default();
                        *seen += 1;
                        let known = printed.entry(worker.clone()).or_default();
                        if *seen > *known {
                            *known = *seen;
                            let next = COLOURS[colours.len() % COLOURS.len()];
                            let colour = *colours.entry(worker.clone()).or_insert(next);
                            print(&line, colour, output).map_err(anyhow::Error::from)?;
                        }
                    }
                    Err(status) => break status,
                }
            },
            Err(status) => status,
        };
        if broke.code() != Code::Unavailable {
            return Err(broke.into());
        }
        tokio::time::sleep(REOPEN_AFTER).await;
    }
    Err(tonic::Status::unavailable("the stream broke again and again").into())
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
