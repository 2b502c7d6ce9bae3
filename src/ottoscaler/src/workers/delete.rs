//! Deletes of pods: each exactly, or those that have ended together.
use std::{collections::HashSet, sync::Arc};

use http::{HeaderValue, header::ACCEPT};
use kube::{
    api::{DeleteParams, ListParams, Preconditions},
    core::Request,
};
use serde::Deserialize;

use super::{outcome::WriteResult, shared::Shared, tuning::MAX_CONFLICTS};
use crate::{
    cluster::{
        POD_KEY,
        convert::{self, PodView},
        crd::WorkerTask,
    },
    domain::{names, pod::Pod},
};

/// The answer names what was deleted, without its specs. A refusal is no such list.
const METADATA: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
/// Whoever copies a pod with its labels does not lose the copy while it lives.
const ENDED: &str = "status.phase!=Pending,status.phase!=Running";

/// Deletes exactly this pod; gone already is as good. The watch tells the index.
pub(super) async fn one(shared: &Shared, pod: &Pod) -> WriteResult {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(pod.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match shared.client.pods().delete(&pod.name, &params).await {
        Ok(_) => WriteResult::Done,
        // Gone, or another pod of this name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => WriteResult::Done,
        Err(error) => WriteResult::of_write(&error),
    }
}

/// Deletes a pod whose worker runs, as it was seen to: where that has ended meanwhile the
/// pod stays, for somebody may have to read its log. The plan judges it anew.
pub(super) async fn running(shared: &Shared, pod: &Pod) -> WriteResult {
    if pod.worker_has_ended() {
        return one(shared, pod).await;
    }
    let pods = shared.client.api::<PodView>();
    let known = shared.index.pod(&pod.name);
    let mut known = known.filter(|p| p.uid == pod.uid).as_deref().cloned();
    for _ in 0..MAX_CONFLICTS {
        let Some(pod) = known.filter(|p| !p.worker_has_ended() && !p.deleting) else {
            return WriteResult::Done;
        };
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                resource_version: Some(pod.resource_version.to_string()),
            }),
            ..DeleteParams::default()
        };
        match shared.client.pods().delete(&pod.name, &params).await {
            Ok(_) => return WriteResult::Done,
            Err(kube::Error::Api(status)) if status.code == 404 => return WriteResult::Done,
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return WriteResult::of_write(&error),
        }
        known = match pods.get_opt(&pod.name).await {
            Ok(newer) => newer.and_then(convert::pod).filter(|p| p.uid == pod.uid),
            Err(error) => return WriteResult::of_write(&error),
        };
    }
    WriteResult::Retry("the pod changes faster than it can be deleted".to_owned())
}

/// Deletes pods that have ended, by one call where the API server takes it: a label
/// selects each of them, and no other for ever. Those that it did not find so, and those
/// behind one that it refused, go one by one.
#[tracing::instrument(level = "info", name = "delete pods", skip_all, fields(pods = pods.len()))]
pub(super) async fn ended(shared: &Shared, pods: &[Arc<Pod>]) -> WriteResult {
    // A label that somebody gave another pod would select that one, too.
    let foreign = shared.index.foreign_keys();
    let has_own_key = |pod: &&Arc<Pod>| {
        foreign.is_empty() || !foreign.contains(key(pod).as_str()) && pod.foreign_key.is_none()
    };
    let by_key: Vec<&Arc<Pod>> = pods.iter().filter(has_own_key).collect();
    let went = match &by_key[..] {
        [] | [_] => HashSet::new(),
        pods => match together(shared, pods).await {
            Ok(went) => went,
            Err(error) => match WriteResult::of_write(&error) {
                busy @ WriteResult::Busy { .. } => return busy,
                _ => HashSet::new(),
            },
        },
    };
    let mut result = WriteResult::Done;
    for pod in pods.iter().filter(|p| !went.contains(&p.uid)) {
        match one(shared, pod).await {
            WriteResult::Done => {}
            busy @ WriteResult::Busy { .. } => return busy,
            other => result = other,
        }
    }
    result
}

fn key(pod: &Pod) -> String {
    names::pod_key(&pod.task_uid, pod.index, pod.attempt)
}

/// The uids of those that went.
async fn together(shared: &Shared, pods: &[&Arc<Pod>]) -> kube::Result<HashSet<String>> {
    #[derive(Deserialize)]
    struct Answer {
        /// Null where there was none.
        items: Option<Vec<Deleted>>,
    }
    #[derive(Deserialize)]
    struct Deleted {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        uid: String,
    }
    let keys = pods.iter().map(|pod| key(pod));
    let keys = keys.collect::<Vec<_>>().join(",");
    let which = ListParams::default()
        .labels(&format!("{POD_KEY} in ({keys})"))
        .fields(ENDED);
    let mut request = Request::new(shared.client.pods().resource_url())
        .delete_collection(&DeleteParams::default(), &which)
        .map_err(kube::Error::BuildRequest)?;
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static(METADATA));
    // Names the span.
    request.extensions_mut().insert("delete_collection");
    let answer: Answer = shared.client.client().request(request).await?;
    let deleted = answer.items.unwrap_or_default().into_iter();
    Ok(deleted.map(|one| one.metadata.uid).collect())
}

/// Deletes a pod whose task is not known here, if the API server does not know it
/// either.
pub(super) async fn orphan(shared: &Shared, pod: &Pod) -> WriteResult {
    let tasks = shared.client.api::<WorkerTask>();
    // Its metadata only: what is there may be what cannot be decoded.
    match tasks.get_metadata_opt(&pod.task).await {
        Ok(Some(task)) if task.metadata.uid.as_deref() == Some(&*pod.task_uid) => WriteResult::Done,
        Ok(_) => {
            tracing::warn!(pod = &*pod.name, task = %pod.task, "a pod without its task is deleted");
            one(shared, pod).await
        }
        Err(error) => WriteResult::of_write(&error),
    }
}
