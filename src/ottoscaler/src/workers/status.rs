//! Writes of WorkerTasks: status, seal, end. Each carries the resourceVersion
//! that it was decided on, so a late one of a former leader fails.
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::{effect::End, shared::Shared};
use crate::{
    cluster::{Loggable, TERM, convert, crd::WorkerTask, events::Note},
    domain::{
        events::{self, TaskEvent},
        task::{Task, TaskPhase, TaskStatus},
    },
};

/// Stores a status that was planned on `task`.
pub(super) async fn write(shared: &Shared, task: &Task, planned: TaskStatus) -> End {
    let patch = json!({
        "metadata": { "uid": task.uid, "resourceVersion": task.resource_version.to_string() },
        "status": planned,
    });
    let tasks = shared.client.api::<WorkerTask>();
    let answer = tasks
        .patch_status(&task.name, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    let took = answer.is_ok();
    let end = taken(shared, answer);
    if took {
        for event in events::events(&task.status, &planned) {
            shared.tell(task, note(event));
        }
    }
    end
}

fn note(event: TaskEvent) -> Note {
    let (warning, reason, action, text) = match event {
        TaskEvent::Retried(text) => (true, "WorkerRetried", "Retry", text),
        TaskEvent::Failed(text) => (true, "WorkerFailed", "Run", text),
        TaskEvent::Finished(TaskPhase::Succeeded, text) => (false, "TaskSucceeded", "Run", text),
        TaskEvent::Finished(TaskPhase::Cancelled, text) => {
            (false, "TaskCancelled", "ScaleDown", text)
        }
        TaskEvent::Finished(_, text) => (true, "TaskFailed", "Run", text),
    };
    Note {
        warning,
        reason,
        action,
        text,
    }
}

/// Marks a task as this leader's: a predecessor's write that is still on its way
/// was decided on an older resourceVersion, and fails from now on.
///
/// A conflict is tried again with the newer object.
pub(super) async fn seal(shared: &Shared, task: &Task) -> End {
    match try_seal(shared, task).await {
        Ok(true) => End::Done,
        Ok(false) => End::Later("gone, or another task of this name".to_owned()),
        Err(error) => End::Later(Loggable(&error).to_string()),
    }
}

/// False: there is nothing to seal.
async fn try_seal(shared: &Shared, task: &Task) -> kube::Result<bool> {
    let tasks = shared.client.api::<WorkerTask>();
    let mut version = task.resource_version.to_string();
    for _ in 0..5 {
        let patch = json!({ "metadata": {
            "uid": task.uid,
            "resourceVersion": version,
            "annotations": { TERM: shared.term },
        }});
        match tasks
            .patch(&task.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(sealed) => {
                if let Some(task) = convert::task(sealed) {
                    shared.index.wrote_task(task);
                }
                return Ok(true);
            }
            // Went meanwhile, or another task of this name: nothing to seal.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                match tasks.get_opt(&task.name).await? {
                    Some(newer) if newer.metadata.uid.as_ref() == Some(&task.uid) => {
                        version = newer.metadata.resource_version.unwrap_or_default();
                    }
                    _ => return Ok(false),
                }
            }
            Err(error) => return Err(error),
        }
    }
    tracing::warn!(
        task = task.name,
        "not sealed: it changes faster than it can be sealed"
    );
    Ok(true)
}

/// Deletes a finished task whose time is over.
pub(super) async fn forget(shared: &Shared, task: &Task) -> End {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(task.uid.clone()),
            resource_version: Some(task.resource_version.to_string()),
        }),
        ..DeleteParams::background()
    };
    match shared
        .client
        .api::<WorkerTask>()
        .delete(&task.name, &params)
        .await
    {
        Ok(_) => End::Done,
        Err(kube::Error::Api(status)) if status.code == 404 => End::Done,
        Err(error) => End::of_error(&error),
    }
}

fn taken(shared: &Shared, answer: kube::Result<WorkerTask>) -> End {
    match answer {
        Ok(object) => {
            if let Some(task) = convert::task(object) {
                shared.index.wrote_task(task);
            }
            End::Done
        }
        Err(kube::Error::Api(status)) if status.code == 404 => End::Done,
        Err(error) => End::of_error(&error),
    }
}
