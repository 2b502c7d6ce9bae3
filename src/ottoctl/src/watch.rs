//! Commands that follow workers by WatchWorkers. A broken stream is opened again.
use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
};

use super::{
    CommandError, Output,
    client::{Client, StreamRetry},
    render,
};
use api::{WorkerEvent, WorkerPodStatus, WorkerStatusRequest, worker_event::Type};
use output as out;

/// Shows the progress until every worker of the task has ended, then their status.
pub(super) async fn wait_until_done(
    client: &Client,
    task: &str,
    output: Output,
) -> Result<(), CommandError> {
    let request = WorkerStatusRequest {
        task_id: task.to_owned(),
        ..WorkerStatusRequest::default()
    };
    let done = |workers: &BTreeMap<String, WorkerPodStatus>| {
        !workers.is_empty()
            && workers
                .values()
                .all(|w| matches!(w.status.as_str(), "Succeeded" | "Failed"))
    };
    let workers = watch_workers(client, request.clone(), done, |workers, event| {
        if let Some(worker) = &event.worker {
            render::progress(workers, worker);
        }
        Ok(())
    })
    .await?;
    if io::stderr().is_terminal() {
        out::print_to_stderr(format_args!("\n"));
    }
    render::status(&client.status(request).await?, output)?;
    match workers.values().filter(|w| w.status == "Failed").count() {
        0 => Ok(()),
        failed => Err(CommandError::Workers(failed)),
    }
}

/// Prints each change until it is interrupted.
pub(super) async fn follow(
    client: &Client,
    request: WorkerStatusRequest,
    output: Output,
) -> Result<(), CommandError> {
    watch_workers(
        client,
        request,
        |_| false,
        |_, event| {
            let Some(worker) = &event.worker else {
                return Ok(());
            };
            match output {
                Output::Json => out::print_line(format_args!("{}", render::worker(worker))),
                Output::Table => out::print_line(format_args!(
                    "{} {} {}",
                    worker.pod_name, worker.status, worker.error_message
                )),
            }
        },
    )
    .await?;
    Ok(())
}

/// Calls `show` for each event until `done` is true for a complete set of workers.
async fn watch_workers(
    client: &Client,
    request: WorkerStatusRequest,
    done: impl Fn(&BTreeMap<String, WorkerPodStatus>) -> bool,
    mut show: impl FnMut(&BTreeMap<String, WorkerPodStatus>, &WorkerEvent) -> io::Result<()>,
) -> Result<BTreeMap<String, WorkerPodStatus>, CommandError> {
    let mut retry = StreamRetry::new(client);
    loop {
        let mut workers = BTreeMap::new();
        let mut synced = false;
        let mut events = client.watch(request.clone()).await?;
        let broken = loop {
            let event = match events.message().await {
                Ok(Some(event)) => event,
                Ok(None) => break tonic::Status::unavailable("the watch ended"),
                Err(status) => break status,
            };
            retry.record_progress();
            match (event.r#type(), &event.worker) {
                (Type::Updated, Some(w)) => drop(workers.insert(w.pod_name.clone(), w.clone())),
                (Type::Removed, Some(w)) => drop(workers.remove(&w.pod_name)),
                _ => synced = true,
            }
            show(&workers, &event)?;
            if synced && done(&workers) {
                return Ok(workers);
            }
        };
        retry.wait_after(broken).await?;
    }
}
