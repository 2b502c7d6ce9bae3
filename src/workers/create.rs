//! One pod into being, exactly once.
use k8s_openapi::api::core::v1::Pod as K8sPod;
use kube::{
    api::{DeleteParams, PostParams, Preconditions},
    core::Request,
};

use super::{effect::End, pod, shared::Shared};
use crate::{
    cluster::{
        convert::{self, PodView},
        crd::WorkerTask,
    },
    domain::{names, pod::Pod, queue::Attempt, request, task::Task, template::Template},
};

/// Creates the pod of an attempt. A repeat, or a crash between the write and its
/// answer, finds the pod there: its name follows from task, index and attempt.
#[tracing::instrument(level = "info", name = "create pod", skip_all, fields(pod = %names::pod_name(&task.spec.task_id, which.index, which.attempt)))]
pub(super) async fn create(shared: &Shared, task: &Task, which: Attempt) -> End {
    let Attempt { index, attempt } = which;
    let template = match Template::parse(&task.spec.build_config, &shared.policy) {
        Ok(template) => template,
        // The policy became stricter since the task was taken.
        Err(found) => return End::Refused(request::in_words(&found)),
    };
    let pods = shared.client.api::<PodView>();
    let wanted = pod::build(task, index, attempt, &template);
    let answer = match post(shared, &wanted).await {
        Ok(pod) => pod,
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
            let name = names::pod_name(&task.spec.task_id, index, attempt);
            match pods.get(&name).await {
                Ok(pod) => pod,
                Err(error) => return End::Later(error.to_string()),
            }
        }
        Err(error) => return End::of_error(&error),
    };
    match convert::pod(answer) {
        Some(pod) if *pod.task_uid == *task.uid && pod.attempt == attempt && !pod.deleting => {
            shared.index.wrote_pod(pod);
            End::Done
        }
        _ => End::Later(
            "a pod of this name belongs to something else; waiting for it to go".to_owned(),
        ),
    }
}

/// Of the answer only what we keep is decoded.
async fn post(shared: &Shared, pod: &K8sPod) -> kube::Result<PodView> {
    let body = serde_json::to_vec(pod).map_err(kube::Error::SerdeError)?;
    let mut request = Request::new(shared.client.pods().resource_url())
        .create(&PostParams::default(), body)
        .map_err(kube::Error::BuildRequest)?;
    // Names the span.
    request.extensions_mut().insert("create");
    shared.client.client().request(request).await
}

/// Deletes exactly this pod; gone already is as good. The watch tells the index.
pub(super) async fn delete(shared: &Shared, name: &str, uid: &str) -> End {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match shared.client.pods().delete(name, &params).await {
        Ok(_) => End::Done,
        // Gone, or another pod of this name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => End::Done,
        Err(error) => End::of_error(&error),
    }
}

/// Deletes a pod whose task is not known here, if the API server does not know it
/// either.
pub(super) async fn delete_orphan(shared: &Shared, pod: &Pod) -> End {
    match shared.client.api::<WorkerTask>().get_opt(&pod.task).await {
        Ok(Some(task)) if task.metadata.uid.as_deref() == Some(&*pod.task_uid) => End::Done,
        Ok(_) => {
            tracing::warn!(pod = &*pod.name, task = %pod.task, "a pod without its task is deleted");
            delete(shared, &pod.name, &pod.uid).await
        }
        Err(error) => End::of_error(&error),
    }
}
