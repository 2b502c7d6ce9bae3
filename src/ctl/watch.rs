//! Following workers by WatchWorkers; a stream that breaks is opened again.
use std::{collections::BTreeMap, io::IsTerminal as _};

use super::{
    Failure, Output,
    client::{Client, REOPEN_AFTER, REOPENS},
    render,
};
use crate::proto::{WorkerEvent, WorkerPodStatus, WorkerStatusRequest, worker_event::Type};

/// Shows progress until every worker of the task has ended.
pub(super) async fn until_done(client: &Client, task: &str, output: Output) -> Result<(), Failure> {
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
    let workers = each(client, request, done, |workers, event| {
        if let Some(worker) = &event.worker {
            render::progress(workers, worker);
        }
    })
    .await?;
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    let request = WorkerStatusRequest {
        task_id: task.to_owned(),
        ..WorkerStatusRequest::default()
    };
    render::status(&client.status(request).await?, output);
    match workers.values().filter(|w| w.status == "Failed").count() {
        0 => Ok(()),
        failed => Err(Failure::Workers(failed)),
    }
}

/// Prints each change, for ever.
pub(super) async fn follow(
    client: &Client,
    request: WorkerStatusRequest,
    output: Output,
) -> Result<(), Failure> {
    each(
        client,
        request,
        |_| false,
        |_, event| {
            let Some(worker) = &event.worker else { return };
            match output {
                Output::Json => println!("{}", render::worker(worker)),
                Output::Table => println!(
                    "{} {} {}",
                    worker.pod_name, worker.status, worker.error_message
                ),
            }
        },
    )
    .await?;
    Ok(())
}

async fn each(
    client: &Client,
    request: WorkerStatusRequest,
    done: impl Fn(&BTreeMap<String, WorkerPodStatus>) -> bool,
    mut show: impl FnMut(&BTreeMap<String, WorkerPodStatus>, &WorkerEvent),
) -> Result<BTreeMap<String, WorkerPodStatus>, Failure> {
    let mut broken = None;
    for _ in 0..REOPENS {
        let mut workers = BTreeMap::new();
        let mut synced = false;
        match client.watch(request.clone()).await {
            Err(status) => broken = Some(status),
            Ok(mut events) => {
                while let Ok(Some(event)) = events.message().await {
                    match (event.r#type(), &event.worker) {
                        (Type::Updated, Some(w)) => {
                            drop(workers.insert(w.pod_name.clone(), w.clone()))
                        }
                        (Type::Removed, Some(w)) => drop(workers.remove(&w.pod_name)),
                        _ => synced = true,
                    }
                    show(&workers, &event);
                    if synced && done(&workers) {
                        return Ok(workers);
                    }
                }
            }
        }
        tokio::time::sleep(REOPEN_AFTER).await;
    }
    Err(broken
        .unwrap_or_else(|| tonic::Status::unavailable("the watch broke off again and again"))
        .into())
}
