//! The custom resource WorkerTask; its content is plain data of [`crate::domain`].
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::task::{TaskPhase, TaskSpec, TaskStatus};

/// The spec of a WorkerTask says what its clients asked for.
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
    selectable = ".status.phase",
    printcolumn = r#"{"name":"Task","type":"string","jsonPath":".spec.taskId"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Wanted","type":"integer","jsonPath":".spec.workers"}"#,
    printcolumn = r#"{"name":"Workers","type":"string","jsonPath":".status.conditions[?(@.type==\"Finished\")].message"}"#,
    printcolumn = r#"{"name":"Waits","type":"string","jsonPath":".status.conditions[?(@.type==\"Created\")].message","priority":1}"#,
    printcolumn = r#"{"name":"Repository","type":"string","jsonPath":".spec.repository","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(transparent)]
pub struct WorkerTaskSpec(pub TaskSpec);

/// The field selector of tasks that are not finished; `selectable` above permits it.
pub const UNFINISHED: &str = "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Cancelled";

/// Returns the CustomResourceDefinition as JSON, which is also valid YAML. `ottoscaler crd`
/// prints it.
///
/// # Errors
/// Returns an error if the definition cannot be serialized, which does not happen in practice.
pub fn definition() -> serde_json::Result<String> {
    let mut definition = serde_json::to_value(WorkerTask::crd())?;
    strip_formats(&mut definition);
    // `kubectl get` shows this phase until the leader writes a status.
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"] =
        json!({ "phase": TaskPhase::default() });
    serde_json::to_string_pretty(&definition)
}

/// Removes unsigned integer formats, which the API server does not know and warns about;
/// `minimum: 0` has the same effect.
fn strip_formats(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|f| f.starts_with("uint"))
            {
                map.remove("format");
            }
            map.values_mut().for_each(strip_formats);
        }
        Value::Array(all) => all.iter_mut().for_each(strip_formats),
        _ => {}
    }
}

#[cfg(test)]
#[path = "crd_tests.rs"]
pub(crate) mod bounds;

#[cfg(test)]
mod tests {
    use super::TaskPhase;

    #[test]
    fn the_selector_leaves_out_the_phases_of_an_end() {
        for phase in TaskPhase::ALL {
            let left_out = super::UNFINISHED
                .split(',')
                .any(|part| part == format!("status.phase!={phase:?}"));
            assert_eq!(left_out, phase.is_finished(), "{phase:?}");
        }
    }

    /// Run `ottoscaler crd > charts/ottoscaler/crds/workertasks.yaml` to mend a failure.
    #[test]
    fn the_chart_carries_this_definition() {
        let chart = include_str!("../../../../charts/ottoscaler/crds/workertasks.yaml");
        let built = super::definition().unwrap_or_default();
        assert_eq!(chart.trim(), built.trim());
    }
}
