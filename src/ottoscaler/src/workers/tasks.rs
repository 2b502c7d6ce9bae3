//! Writes of WorkerTasks other than their status: seals and the end. Each carries the
//! resourceVersion that it was decided on, so a late one of a former leader fails.
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::{outcome::WriteResult, shared::Shared, tuning::MAX_CONFLICTS};
use crate::{
    cluster::{Loggable, TERM, convert, crd::WorkerTask},
    domain::task::Task,
};

/// Marks a task as this leader's: a predecessor's write that is still on its way
/// was decided on an older resourceVersion, and fails from now on.
///
/// A conflict is tried again with the newer object.
pub(super) async fn seal(shared: &Shared, task: &Task) -> WriteResult {
    match try_seal(shared, task).await {
        Ok(true) => WriteResult::Done,
        Ok(false) => WriteResult::Retry("gone, or another task of this name".to_owned()),
        Err(error) => WriteResult::Retry(Loggable(&error).to_string()),
    }
}

/// Returns false if there is nothing to seal.
async fn try_seal(shared: &Shared, task: &Task) -> kube::Result<bool> {
    let tasks = shared.client.api::<WorkerTask>();
    let mut version = task.resource_version.to_string();
    for _ in 0..MAX_CONFLICTS {
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
                wrote(shared, sealed);
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
pub(super) async fn forget(shared: &Shared, task: &Task) -> WriteResult {
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
        Ok(_) => WriteResult::Done,
        Err(kube::Error::Api(status)) if status.code == 404 => WriteResult::Done,
        Err(error) => WriteResult::of_write(&error),
    }
}

/// Puts what the API server stored into the index.
pub(super) fn wrote(shared: &Shared, object: WorkerTask) {
    if let Some(task) = convert::task(object) {
        shared.index.wrote_task(task);
    }
}
