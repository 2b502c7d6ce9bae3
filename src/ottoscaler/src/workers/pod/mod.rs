//! Task and [`Template`] → the worker's pod. No client required.
//!
//! The pod passes PodSecurity "restricted", or "baseline" where it is root.
mod env;
mod security;
mod volumes;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, LocalObjectReference, Pod, PodSpec, ResourceRequirements, Toleration,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

use crate::{
    cluster::{ATTEMPT, COMMIT_SHA, POD_KEY, REPOSITORY, TASK_ID, TRACEPARENT},
    domain::{
        names, quantity,
        task::Task,
        template::{self, Template},
    },
};

/// The pod of an attempt.
pub(super) fn build(task: &Task, index: u32, attempt: u32, template: &Template) -> Pod {
    let some = |all: &[String]| {
        let all = all
            .iter()
            .map(|name| LocalObjectReference { name: name.clone() });
        Some(all.collect()).filter(|all: &Vec<_>| !all.is_empty())
    };
    let account = &template.service_account;
    Pod {
        metadata: metadata(task, index, attempt),
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            active_deadline_seconds: Some(template.timeout_seconds.into()),
            service_account_name: account.clone(),
            // One that was asked for decides by itself whether its token is there.
            automount_service_account_token: account.is_none().then_some(false),
            enable_service_links: Some(false),
            image_pull_secrets: some(&template.pull_secrets),
            node_selector: Some(template.node_selector.clone()).filter(|s| !s.is_empty()),
            tolerations: Some(template.tolerations.iter().map(toleration).collect())
                .filter(|t: &Vec<_>| !t.is_empty()),
            priority_class_name: template.priority_class.clone(),
            security_context: Some(security::of_pod(template.user_id)),
            containers: vec![container(task, index, attempt, template)],
            volumes: Some(volumes::volumes(template)),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn metadata(task: &Task, index: u32, attempt: u32) -> ObjectMeta {
    let spec = &task.spec;
    let mut labels = task.worker_labels(index);
    labels.insert(ATTEMPT.to_owned(), attempt.to_string());
    let key = names::pod_key(&task.uid, index, attempt);
    labels.insert(POD_KEY.to_owned(), key);
    let mut annotations = BTreeMap::from([
        (TASK_ID.to_owned(), spec.task_id.clone()),
        (REPOSITORY.to_owned(), spec.repository.clone()),
        (COMMIT_SHA.to_owned(), spec.commit_sha.clone()),
    ]);
    annotations.extend(
        spec.traceparent
            .clone()
            .map(|t| (TRACEPARENT.to_owned(), t)),
    );
    ObjectMeta {
        name: Some(names::pod_name(&spec.task_id, index, attempt)),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![OwnerReference {
            api_version: "ottoscaler.io/v1alpha1".to_owned(),
            kind: "WorkerTask".to_owned(),
            name: task.name.clone(),
            uid: task.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

fn container(task: &Task, index: u32, attempt: u32, template: &Template) -> Container {
    let amounts = |cpu, memory| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), amount(cpu)),
            ("memory".to_owned(), amount(memory)),
        ]))
    };
    let Template { cpu, memory, .. } = template;
    Container {
        name: "worker".to_owned(),
        image: Some(template.image.clone()),
        image_pull_policy: Some(template.pull_policy.clone()),
        command: template
            .command
            .as_ref()
            .map(|words| words.iter().map(|w| env::escape(w)).collect()),
        env: Some(env::environment(task, index, attempt, template)),
        env_from: env::from_secrets(template),
        resources: Some(ResourceRequirements {
            requests: amounts(&cpu.request, &memory.request),
            limits: amounts(&cpu.limit, &memory.limit),
            ..ResourceRequirements::default()
        }),
        security_context: Some(security::of_container(template.user_id)),
        volume_mounts: Some(volumes::mounts(template)),
        ..Container::default()
    }
}

fn amount(quantity: &quantity::Quantity) -> Quantity {
    Quantity(quantity.as_str().to_owned())
}

fn toleration(toleration: &template::Toleration) -> Toleration {
    let operator = match toleration.value {
        Some(_) => "Equal",
        None => "Exists",
    };
    Toleration {
        key: Some(toleration.key.clone()),
        operator: Some(operator.to_owned()),
        value: toleration.value.clone(),
        effect: Some(toleration.effect.clone()),
        ..Toleration::default()
    }
}
