//! The fields of a pod that this program decodes.
//!
//! The views leave out most of `k8s_openapi`'s `Pod`, so that a watch of ten thousand pods
//! is decoded quickly and takes little memory. Names and meanings are those of the
//! Kubernetes API.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::Pod as K8sPod,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::Resource;
use serde::{Deserialize, Serialize};

/// A `PodView` is a pod with the fields of its metadata, spec and status that are used here.
#[derive(Debug, Clone, Deserialize, Serialize, Resource)]
#[resource(inherit = K8sPod)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    #[serde(deserialize_with = "used_metadata")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PodSpecView,
    #[serde(default)]
    pub status: PodStatusView,
}

/// Decodes metadata without `managedFields`, which are most of an object and used nowhere.
fn used_metadata<'de, D: serde::Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct UsedMetadata {
        name: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        deletion_grace_period_seconds: Option<i64>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
    }
    let used = UsedMetadata::deserialize(from)?;
    Ok(ObjectMeta {
        name: used.name,
        uid: used.uid,
        resource_version: used.resource_version,
        creation_timestamp: used.creation_timestamp,
        deletion_timestamp: used.deletion_timestamp,
        deletion_grace_period_seconds: used.deletion_grace_period_seconds,
        labels: used.labels,
        annotations: used.annotations,
        owner_references: used.owner_references,
        ..ObjectMeta::default()
    })
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpecView {
    #[serde(default)]
    pub node_name: String,
    #[serde(default)]
    pub restart_policy: String,
    #[serde(default)]
    pub active_deadline_seconds: Option<i64>,
    #[serde(default)]
    pub containers: Vec<ContainerView>,
    #[serde(default)]
    pub init_containers: Vec<ContainerView>,
}

/// A `ContainerView` says when the kubelet restarts a container. It is read of the worker
/// container, and of init containers because their status does not show which of them are
/// native sidecars.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerView {
    pub name: String,
    pub restart_policy: Option<String>,
    pub restart_policy_rules: Vec<RestartRuleView>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RestartRuleView {
    pub exit_codes: ExitCodesView,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ExitCodesView {
    pub operator: String,
    pub values: Vec<i32>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatusView {
    pub phase: String,
    pub reason: String,
    pub message: String,
    pub start_time: Option<Time>,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    pub container_statuses: Vec<ContainerStatusView>,
    pub init_container_statuses: Vec<ContainerStatusView>,
    pub conditions: Vec<ConditionView>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatusView {
    pub name: String,
    pub restart_count: i32,
    #[serde(rename = "imageID")]
    pub image_id: String,
    pub state: ContainerStateView,
    pub last_state: ContainerStateView,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ContainerStateView {
    pub waiting: Option<WaitingView>,
    pub running: Option<RunningView>,
    pub terminated: Option<TerminatedView>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct WaitingView {
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunningView {
    pub started_at: Option<Time>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TerminatedView {
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConditionView {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: Option<Time>,
}

impl ConditionView {
    /// Reports whether this is a condition of type `kind` with the status `True`.
    pub(super) fn is(&self, kind: &str) -> bool {
        self.kind == kind && self.status == "True"
    }
}
