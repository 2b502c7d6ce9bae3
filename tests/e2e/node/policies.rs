//! MutatingAdmissionPolicies that change the workers' pods on their way in, as service
//! meshes and injectors of secrets and log shippers do.
use std::{fmt::Write as _, io::Write as _, process::Stdio};

use serde_json::{Value, json};

use super::{Installed, NAMESPACE, SOON, wait_for};

/// Fields of a pod whose keys are data and not names of fields.
const MAPS: [&str; 2] = ["limits", "requests"];

/// What is done to the pods of some tasks.
pub(super) struct Policy {
    pub name: &'static str,
    /// The tasks whose id begins so.
    pub tasks: &'static str,
    /// JSON patches as a CEL list.
    pub patches: String,
    /// A container that the policy adds. An API server that adds it to a dry run has the
    /// policy in force.
    pub adds: &'static str,
}

impl Policy {
    fn object_name(&self) -> String {
        format!("{}.test.ottoscaler.io", self.name)
    }

    fn objects(&self) -> [Value; 2] {
        let api = "admissionregistration.k8s.io/v1";
        let name = self.object_name();
        let begins = format!(
            "object.metadata.labels['task-id'].startsWith('{}')",
            self.tasks
        );
        let policy = json!({"apiVersion": api, "kind": "MutatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {"failurePolicy": "Fail", "reinvocationPolicy": "Never",
                "matchConstraints": {
                    "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                        "operations": ["CREATE"], "resources": ["pods"]}],
                    "objectSelector": {"matchExpressions": [
                        {"key": "task-id", "operator": "Exists"}]}},
                "matchConditions": [{"name": "tasks", "expression": begins}],
                "mutations": [{"patchType": "JSONPatch",
                    "jsonPatch": {"expression": self.patches}}]}});
        let binding = json!({"apiVersion": api, "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": name}, "spec": {"policyName": name}});
        [policy, binding]
    }

    fn is_in_force(&self, i: &Installed) -> bool {
        let labels = format!("--labels=task-id={}-probe", self.tasks);
        let pod = i.cluster.try_run(&[
            "kubectl",
            "-n",
            NAMESPACE,
            "run",
            // Its container has the same name.
            "worker",
            "--image=busybox",
            "--dry-run=server",
            &labels,
            "-o",
            "jsonpath={.spec.initContainers[*].name} {.spec.containers[*].name}",
        ]);
        let names = String::from_utf8(pod.stdout).unwrap();
        names.split_whitespace().any(|name| name == self.adds)
    }
}

/// Puts policies in force, and waits until the API server knows them.
pub(super) fn put_in_force(i: &Installed, policies: &[Policy]) {
    let items: Vec<Value> = policies.iter().flat_map(Policy::objects).collect();
    i.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}));
    for policy in policies {
        let what = format!("the API server knows the policy {}", policy.name);
        wait_for(&what, SOON, || policy.is_in_force(i).then_some(()));
    }
}

impl Installed {
    /// `kubectl apply` of an object that the API server takes.
    pub(super) fn apply(&self, object: &Value) {
        let refusal = self.try_apply(object);
        assert_eq!(refusal, None);
    }

    /// The same of one that it may refuse: with these words.
    pub(super) fn try_apply(&self, object: &Value) -> Option<String> {
        let mut apply = self
            .cluster
            .command(&["kubectl", "apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = apply.stdin.take().unwrap();
        input.write_all(object.to_string().as_bytes()).unwrap();
        drop(input);
        let out = apply.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        (!out.status.success()).then_some(said)
    }
}

/// A patch that adds `value`, a `kind` of a pod's fields ("spec.containers"), at `path`.
pub(super) fn add(path: &str, kind: &str, value: &Value) -> String {
    let value = cel(&format!("Object.{kind}"), value);
    format!("JSONPatch{{op: 'add', path: '{path}', value: {value}}}")
}

/// JSON as a CEL expression: objects are of the type of their field.
fn cel(kind: &str, value: &Value) -> String {
    let all = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Array(items) => {
            let items = items.iter().map(|item| cel(kind, item)).collect();
            format!("[{}]", all(items))
        }
        Value::Object(fields) => {
            let is_map = MAPS.iter().any(|map| kind.ends_with(map));
            let mut text = if is_map {
                String::new()
            } else {
                kind.to_owned()
            };
            let fields = fields.iter().map(|(name, value)| {
                let value = cel(&format!("{kind}.{name}"), value);
                match is_map {
                    true => format!("'{name}': {value}"),
                    false => format!("{name}: {value}"),
                }
            });
            write!(text, "{{{}}}", all(fields.collect())).unwrap();
            text
        }
        // Strings and numbers are written alike.
        plain => plain.to_string(),
    }
}
