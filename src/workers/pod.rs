//! Task and index → the worker's pod. No client required.
//!
//! The pod passes PodSecurity "restricted" as long as WORKER_USER_ID is not 0.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, ObjectFieldSelector,
        Pod, PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, SecurityContext,
        Volume, VolumeMount,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

use crate::{
    cluster::{ATTEMPT, COMMIT_SHA, REPOSITORY, TASK_ID, TRACEPARENT},
    config,
    domain::{names, task::Task},
};

/// Where workers may write besides /tmp of their image.
const WORKSPACE: &str = "/workspace";

/// The pod of an attempt.
pub(super) fn build(task: &Task, index: u32, attempt: u32, template: &config::Worker) -> Pod {
    Pod {
        metadata: metadata(task, index, attempt),
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_user: Some(template.user_id),
                run_as_group: Some(template.user_id),
                fs_group: Some(template.user_id),
                run_as_non_root: Some(template.user_id != 0),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![container(task, index, attempt, template)],
            volumes: Some(vec![Volume {
                name: "workspace".to_owned(),
                empty_dir: Some(EmptyDirVolumeSource::default()),
                ..Volume::default()
            }]),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn metadata(task: &Task, index: u32, attempt: u32) -> ObjectMeta {
    let spec = &task.spec;
    let mut labels = task.worker_labels(index);
    labels.insert(ATTEMPT.to_owned(), attempt.to_string());
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

fn container(task: &Task, index: u32, attempt: u32, template: &config::Worker) -> Container {
    let limits = BTreeMap::from([
        ("cpu".to_owned(), Quantity(template.cpu_limit.clone())),
        ("memory".to_owned(), Quantity(template.memory_limit.clone())),
    ]);
    Container {
        name: "worker".to_owned(),
        image: Some(template.image.clone()),
        image_pull_policy: Some(template.pull_policy.clone()),
        env: Some(environment(task, index, attempt)),
        resources: Some(ResourceRequirements {
            // Little is asked for, so that many idle workers
            // fit a node; limits hold what they may use.
            requests: Some(BTreeMap::from([
                ("cpu".to_owned(), Quantity("10m".to_owned())),
                ("memory".to_owned(), Quantity("16Mi".to_owned())),
            ])),
            limits: Some(limits),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![VolumeMount {
            name: "workspace".to_owned(),
            mount_path: WORKSPACE.to_owned(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

/// Ours after the request's, so that a build config cannot disguise a worker.
fn environment(task: &Task, index: u32, attempt: u32) -> Vec<EnvVar> {
    let spec = &task.spec;
    let mut values = spec.build_config.clone();
    let ours = [
        ("OTTO_TASK_ID", spec.task_id.clone()),
        ("OTTO_REPOSITORY", spec.repository.clone()),
        ("OTTO_COMMIT_SHA", spec.commit_sha.clone()),
        ("OTTO_WORKER_INDEX", index.to_string()),
        ("OTTO_WORKER_COUNT", spec.workers.to_string()),
        ("OTTO_ATTEMPT", attempt.to_string()),
    ];
    values.extend(ours.map(|(k, v)| (k.to_owned(), v)));
    values.extend(
        spec.traceparent
            .clone()
            .map(|t| ("TRACEPARENT".to_owned(), t)),
    );
    values.remove("POD_NAME");
    let mut env: Vec<EnvVar> = values
        .into_iter()
        .map(|(name, value)| EnvVar {
            name,
            value: Some(escape(&value)),
            value_from: None,
        })
        .collect();
    env.push(EnvVar {
        name: "POD_NAME".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.name".to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
    });
    env
}

/// Kubernetes expands `$(NAME)` in values; `$$` stands for `$`.
fn escape(value: &str) -> String {
    value.replace('$', "$$")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;
    use crate::domain::task::TaskSpec;

    fn env(config: &[(&str, &str)]) -> BTreeMap<String, String> {
        let spec = TaskSpec {
            task_id: "T_1".into(),
            workers: 2,
            build_config: config
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
            ..Default::default()
        };
        let task = Task {
            spec,
            ..Default::default()
        };
        environment(&task, 2, 1)
            .into_iter()
            .filter_map(|e| Some((e.name, e.value?)))
            .collect()
    }

    #[test]
    fn the_build_config_becomes_environment_but_cannot_disguise_a_worker() {
        let env = env(&[("MODE", "fast"), ("OTTO_WORKER_INDEX", "9")]);
        assert_eq!(env["MODE"], "fast");
        assert_eq!(env["OTTO_WORKER_INDEX"], "2");
        assert_eq!(env["OTTO_TASK_ID"], "T_1");
    }

    #[test]
    fn a_value_is_not_expanded() {
        assert_eq!(env(&[("X", "$(HOME)")])["X"], "$$(HOME)");
    }

    #[test]
    fn the_pod_is_the_wire_contracts() {
        let mut task = Task::default();
        task.spec.task_id = "build-42".into();
        let config = config::Config::from_lookup(&|_| None).unwrap();
        let pod = build(&task, 1, 1, &config.worker);
        assert_eq!(pod.metadata.name.as_deref(), Some("otto-agent-build-42-1"));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        assert_eq!(spec.containers[0].name, "worker");
        let labels = pod.metadata.labels.unwrap();
        assert_eq!(
            (labels["app"].as_str(), labels["managed-by"].as_str()),
            ("otto-agent", "ottoscaler")
        );
    }
}
