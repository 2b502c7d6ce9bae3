//! The output of commands: responses as tables or JSON, errors as text.
use std::io::{self, IsTerminal as _};

use comfy_table::{Cell, Color, Table, presets::NOTHING};
use serde_json::{Value, json};
use tonic_types::StatusExt as _;

use super::Output;
use api::{PauseState, ScaleResponse, WorkerPodStatus, WorkerStatusResponse, scale_response};

macro_rules! out {
    ($($text:tt)*) => { output::print_line(format_args!($($text)*)) };
}

/// Reports whether the output has colours: only on a terminal, and not when NO_COLOR is set.
pub(super) fn uses_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

pub(super) fn scale_response(
    response: &ScaleResponse,
    trace: &str,
    output: Output,
) -> io::Result<()> {
    let status = scale_response::Status::try_from(response.status).unwrap_or_default();
    match output {
        Output::Table => {
            out!("{}: {}", status.as_str_name(), response.message)?;
            for name in &response.worker_pod_names {
                out!("  {name}")?;
            }
            out!("trace {trace}")
        }
        Output::Json => out!(
            "{}",
            json!({
                "status": status.as_str_name(),
                "message": response.message,
                "processedCount": response.processed_count,
                "workerPodNames": response.worker_pod_names,
                "startedAt": response.started_at,
                "completedAt": response.completed_at,
                "behind": response.behind,
                "trace": trace,
            })
        ),
    }
}

pub(super) fn pause(state: &PauseState, output: Output) -> io::Result<()> {
    match (output, state.paused.as_str()) {
        (Output::Json, paused) => out!("{}", json!({ "paused": paused })),
        (Output::Table, "") => out!("workers are started"),
        (Output::Table, why) => out!("paused: {why}"),
    }
}

pub(super) fn status(response: &WorkerStatusResponse, output: Output) -> io::Result<()> {
    match output {
        Output::Table => {
            out!("{}", table(&response.workers))?;
            out!(
                "{} workers: {} pending, {} running, {} succeeded, {} failed{}",
                response.total_count,
                response.pending_count,
                response.running_count,
                response.succeeded_count,
                response.failed_count,
                if response.stale {
                    " (stale: this replica has lost touch with the cluster)"
                } else {
                    ""
                }
            )?;
            if response.paused.is_empty() {
                return Ok(());
            }
            out!("paused: {}", response.paused)
        }
        Output::Json => out!(
            "{}",
            json!({
                "total": response.total_count,
                "pending": response.pending_count,
                "running": response.running_count,
                "succeeded": response.succeeded_count,
                "failed": response.failed_count,
                "stale": response.stale,
                "paused": response.paused,
                "workers": response.workers.iter().map(worker).collect::<Vec<_>>(),
            })
        ),
    }
}

pub(super) fn worker(w: &WorkerPodStatus) -> Value {
    json!({
        "pod": w.pod_name,
        "task": w.task_id,
        "index": w.worker_index,
        "attempt": w.attempt,
        "status": w.status,
        "node": w.node_name,
        "ip": w.pod_ip,
        "queuedAt": w.queued_at,
        "createdAt": w.created_at,
        "scheduledAt": w.scheduled_at,
        "preparedAt": w.prepared_at,
        "startedAt": w.started_at,
        "firstLineAt": w.first_line_at,
        "completedAt": w.completed_at,
        "exitCode": w.exit_code,
        "error": w.error_message,
        "labels": w.labels.iter().collect::<std::collections::BTreeMap<_, _>>(),
    })
}

fn table(workers: &[WorkerPodStatus]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "POD", "STATUS", "ATTEMPT", "EXIT", "NODE", "TIME", "MESSAGE",
    ]);
    let uses_colours = uses_colours();
    for w in workers {
        let status = match (uses_colours, w.status.as_str()) {
            (true, "Succeeded") => Cell::new(&w.status).fg(Color::Green),
            (true, "Failed") => Cell::new(&w.status).fg(Color::Red),
            (true, "Running") => Cell::new(&w.status).fg(Color::Cyan),
            _ => Cell::new(&w.status),
        };
        table.add_row([
            Cell::new(&w.pod_name),
            status,
            Cell::new(w.attempt),
            Cell::new(w.exit_code.map(|c| c.to_string()).unwrap_or_default()),
            Cell::new(&w.node_name),
            Cell::new(duration(w)),
            Cell::new(&w.error_message),
        ]);
    }
    table
}

/// Returns the time from the start of a worker to its end, or until now.
fn duration(w: &WorkerPodStatus) -> String {
    let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
    let Some(start) = time(&w.started_at) else {
        return String::new();
    };
    let end = time(&w.completed_at).unwrap_or_else(jiff::Timestamp::now);
    format!("{}s", end.as_second() - start.as_second())
}

/// Formats a status as `ottoctl: <code>: <message>`, followed by each wrong field.
pub(super) fn error(status: &tonic::Status) -> String {
    let mut text = format!("ottoctl: {:?}: {}\n", status.code(), status.message());
    if let Some(bad) = status.get_details_bad_request() {
        for violation in bad.field_violations {
            text.push_str(&format!(
                "  {}: {}\n",
                violation.field, violation.description
            ));
        }
    }
    text
}

/// Prints the progress: one line that is redrawn on a terminal, one line per change in a pipe.
pub(super) fn progress(
    workers: &std::collections::BTreeMap<String, WorkerPodStatus>,
    changed: &WorkerPodStatus,
) {
    let count = |status: &str| workers.values().filter(|w| w.status == status).count();
    let line = format!(
        "{} pending, {} running, {} succeeded, {} failed",
        count("Pending"),
        count("Running"),
        count("Succeeded"),
        count("Failed")
    );
    if std::io::stderr().is_terminal() {
        output::print_to_stderr(format_args!("\r\x1b[2K{line}"));
    } else {
        output::print_to_stderr(format_args!(
            "{} {}; {line}\n",
            changed.pod_name, changed.status
        ));
    }
}
