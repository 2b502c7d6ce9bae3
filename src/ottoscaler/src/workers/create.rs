//! The create of a worker's pod, exactly once.
use http::{HeaderValue, header::ACCEPT};
use k8s_openapi::api::core::v1::Pod as K8sPod;
use kube::{api::PostParams, core::Request};

use super::{outcome::WriteResult, pod, shared::Shared};
use crate::{
    cluster::convert::{self, PodView},
    domain::{
        names,
        queue::Attempt,
        refusal::{By, Refusal, Verdict},
        task::Task,
        template::Template,
        violation,
    },
};

/// What the API server adds is metadata; the rest need not come back. A refusal is no
/// such object.
const METADATA: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// Creates the pod of an attempt. A repeat, or a crash between the write and its
/// answer, finds the pod there: its name follows from task, index and attempt.
#[tracing::instrument(level = "info", name = "create pod", skip_all, fields(pod = %names::pod_name(&task.spec.task_id, which.index, which.attempt)))]
pub(super) async fn create(shared: &Shared, task: &Task, which: Attempt) -> WriteResult {
    let Attempt { index, attempt } = which;
    if let Some(why) = task.misnamed() {
        return WriteResult::Refused(Refusal::new(By::Policy, Verdict::Final, why));
    }
    if task.status.phase.is_finished() {
        // The index has dropped what its pods are made from.
        return WriteResult::Retry("its task has finished".to_owned());
    }
    let template = match Template::parse(&task.spec.build_config, &shared.policy) {
        Ok(template) => template,
        // The policy became stricter since the task was taken.
        Err(found) => {
            let text = violation::in_words(&found);
            return WriteResult::Refused(Refusal::new(By::Policy, Verdict::Final, text));
        }
    };
    let pods = shared.client.api::<PodView>();
    let wanted = pod::build(task, index, attempt, &template);
    let name = names::pod_name(&task.spec.task_id, index, attempt);
    let answer = match post(shared, &wanted).await {
        Ok(pod) => pod,
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
            match pods.get_opt(&name).await {
                Ok(Some(pod)) => pod,
                Ok(None) => return WriteResult::Refused(Refusal::other_pod(&name, true)),
                Err(error) => return WriteResult::of_create(&error),
            }
        }
        Err(error) => return WriteResult::of_create(&error),
    };
    let is_deleting = answer.metadata.deletion_timestamp.is_some();
    match convert::pod(answer) {
        Some(pod) if *pod.task_uid == *task.uid && pod.attempt == attempt && !pod.deleting => {
            shared.index.wrote_pod(pod);
            WriteResult::Done
        }
        // Ours included, while it is being deleted.
        _ => WriteResult::Refused(Refusal::other_pod(&name, is_deleting)),
    }
}

async fn post(shared: &Shared, pod: &K8sPod) -> kube::Result<PodView> {
    let body = serde_json::to_vec(pod).map_err(kube::Error::SerdeError)?;
    let mut request = Request::new(shared.client.pods().resource_url())
        .create(&PostParams::default(), body)
        .map_err(kube::Error::BuildRequest)?;
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static(METADATA));
    // Names the span.
    request.extensions_mut().insert("create");
    shared.client.client().request(request).await
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
