//! The WorkerTask resource. Its content is plain data of [`crate::domain`].
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::task::{TaskSpec, TaskStatus};

/// What [`TaskSpec`] is to the API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "ottoscaler.io",
    version = "v1alpha1",
    kind = "WorkerTask",
    plural = "workertasks",
    singular = "workertask",
    shortname = "wt",
    namespaced,
    status = "TaskStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Task","type":"string","jsonPath":".spec.taskId"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Wanted","type":"integer","jsonPath":".spec.workers"}"#,
    printcolumn = r#"{"name":"Pending","type":"integer","jsonPath":".status.counts.pending"}"#,
    printcolumn = r#"{"name":"Running","type":"integer","jsonPath":".status.counts.running"}"#,
    printcolumn = r#"{"name":"Succeeded","type":"integer","jsonPath":".status.counts.succeeded"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.counts.failed"}"#,
    printcolumn = r#"{"name":"Repository","type":"string","jsonPath":".spec.repository","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(transparent)]
pub struct WorkerTaskSpec(pub TaskSpec);

/// The CustomResourceDefinition as JSON, which is YAML too; `ottoscaler crd`
/// prints it.
///
/// # Errors
/// None in practice: the definition is plain data.
pub fn definition() -> serde_json::Result<String> {
    serde_json::to_string_pretty(&WorkerTask::crd())
}
