//! What requests may say about their workers' pods, before a real API server.
use serde_json::{Value, json};

use super::{Cell, SOON, scale_up, wait_for};

const ALLOWED: &[(&str, &str)] = &[
    ("ALLOWED_IMAGES", "ci.example/*"),
    ("ALLOWED_PULL_SECRETS", "hub"),
    ("ALLOWED_SECRETS", "npm,maven"),
    ("ALLOWED_CA_BUNDLES", "corp"),
    ("ALLOWED_CACHE_CLAIMS", "cargo-*"),
    ("ALLOWED_SERVICE_ACCOUNTS", "deployer"),
    ("ALLOWED_PRIORITY_CLASSES", "otto-test-*"),
    ("ALLOWED_TOLERATIONS", "ci=*:NoSchedule"),
    ("MAX_WORKER_CPU", "2"),
    ("MAX_WORKER_TIMEOUT", "1h"),
];

fn with<'a>(task: &'a str, workers: &'a str, env: &'a [&'a str]) -> Vec<&'a str> {
    let mut args = scale_up(task, workers);
    args.extend(env.iter().flat_map(|e| ["-e", e]));
    args
}

fn enforce(cell: &Cell, level: &str) {
    let label = format!("pod-security.kubernetes.io/enforce={level}");
    let args = ["label", "--overwrite", "namespace", &cell.namespace, &label];
    cell.cluster.kubectl(&args);
}

/// Only "restricted" pods from now on: the API server refuses one that says
/// nothing about security.
fn restrict(cell: &Cell) {
    enforce(cell, "restricted");
    let lax = "run lax --image=busybox --restart=Never --dry-run=server";
    let lax: Vec<&str> = lax.split(' ').collect();
    let args = [&["kubectl", "-n", &cell.namespace], &lax[..]].concat();
    wait_for("the API server knows the level", SOON, || {
        let refused = cell.cluster.try_run(&args);
        String::from_utf8_lossy(&refused.stderr)
            .contains("violates PodSecurity")
            .then_some(())
    });
}

fn spec(cell: &Cell, task: &str) -> Value {
    let pods = cell.pods(task);
    assert_eq!(pods.len(), 1, "{pods:?}");
    pods[0]["spec"].clone()
}

#[test]
fn a_worker_is_restricted_and_shaped_as_asked_for_within_bounds() {
    let cell = Cell::start("shape", ALLOWED);
    restrict(&cell);
    let answer = cell.ask(0, &scale_up("plain", "3"));
    assert_eq!(answer["status"], "SUCCESS", "{answer}");
    assert_eq!(cell.pods("plain").len(), 3);

    let create = |args: &[&str]| {
        let args = [&["-n", &cell.namespace, "create"], args].concat();
        cell.cluster.kubectl(&args);
    };
    create(&["serviceaccount", "deployer"]);
    create(&["priorityclass", "otto-test-shape", "--value=1000"]);
    let asked = [
        "MODE=fast",
        "OTTO_IMAGE=ci.example/team/agent:2",
        "OTTO_IMAGE_PULL_SECRETS=hub",
        r#"OTTO_COMMAND=["make","-j","$(N)"]"#,
        "OTTO_USER_ID=1000",
        "OTTO_CPU_REQUEST=250m",
        "OTTO_CPU_LIMIT=2",
        "OTTO_MEMORY_REQUEST=64Mi",
        "OTTO_MEMORY_LIMIT=1Gi",
        "OTTO_WORKSPACE_SIZE=5Gi",
        "OTTO_CACHE_CLAIM=cargo-a",
        "OTTO_SECRETS=npm,maven",
        "OTTO_CA_BUNDLE=corp/all.pem",
        "OTTO_HTTPS_PROXY=http://proxy:3128",
        "OTTO_SERVICE_ACCOUNT=deployer",
        "OTTO_NODE_SELECTOR=kubernetes.io/os=linux",
        "OTTO_TOLERATIONS=ci=big:NoSchedule",
        "OTTO_PRIORITY_CLASS=otto-test-shape",
        "OTTO_PRIORITY=5",
        "OTTO_TIMEOUT=10m",
        "OTTO_RETRY_LIMIT=1",
    ];
    let answer = cell.ask(1, &with("shaped", "1", &asked));
    assert_eq!(answer["status"], "SUCCESS", "{answer}");
    let spec = spec(&cell, "shaped");
    cell.cluster
        .kubectl(&["delete", "priorityclass", "otto-test-shape"]);
    let container = &spec["containers"][0];
    assert_eq!(container["image"], "ci.example/team/agent:2");
    assert_eq!(container["command"], json!(["make", "-j", "$$(N)"]));
    assert_eq!(
        container["resources"],
        json!({"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}})
    );
    assert_eq!(
        container["envFrom"],
        json!([{"secretRef": {"name": "npm", "optional": false}}, {"secretRef": {"name": "maven", "optional": false}}])
    );
    let env = container["env"].as_array().unwrap();
    let value = |name: &str| {
        let found = env.iter().find(|e| e["name"] == name);
        found.map(|e| e["value"].as_str().unwrap().to_owned())
    };
    let ca = "/etc/ottoscaler/ca/ca.crt".to_owned();
    assert_eq!(value("MODE").as_deref(), Some("fast"));
    assert_eq!(value("https_proxy").as_deref(), Some("http://proxy:3128"));
    assert_eq!(value("SSL_CERT_FILE"), Some(ca));
    assert_eq!(value("OTTO_IMAGE"), None);
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "hub"}]));
    assert_eq!(spec["securityContext"]["runAsUser"], 1000);
    assert_eq!(spec["serviceAccountName"], "deployer");
    assert_eq!(spec["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    let toleration =
        json!({"key": "ci", "operator": "Equal", "value": "big", "effect": "NoSchedule"});
    assert!(
        spec["tolerations"]
            .as_array()
            .unwrap()
            .contains(&toleration)
    );
    assert_eq!(
        (&spec["priorityClassName"], &spec["priority"]),
        (&json!("otto-test-shape"), &json!(1000))
    );
    assert_eq!(spec["activeDeadlineSeconds"], 600);
    let volumes = spec["volumes"].as_array().unwrap();
    let volume = |name: &str| volumes.iter().find(|v| v["name"] == name).unwrap();
    assert_eq!(volume("workspace")["emptyDir"]["sizeLimit"], "5Gi");
    assert_eq!(
        volume("cache")["persistentVolumeClaim"]["claimName"],
        "cargo-a"
    );
    assert_eq!(volume("ca")["configMap"]["name"], "corp");
}

#[test]
fn a_request_out_of_bounds_is_told_each_key_and_writes_nothing() {
    let cell = Cell::start("bounds", ALLOWED);
    let bad = [
        "OTTO_IMAGE=evil.example/agent",
        "OTTO_CPU_LIMIT=2001m",
        "OTTO_TIMEOUT=61m",
        "OTTO_USER_ID=0",
        "OTTO_SECRETS=npm,root-password",
        "OTTO_SERVICE_ACCOUNT=ottoscaler",
        "OTTO_IMGAE=ci.example/agent",
    ];
    for replica in 0..3 {
        let (code, _, err) = cell.ottoctl(replica, &with("bounds", "1", &bad));
        assert_eq!(code, 64 + 3, "{err}");
        for pair in bad {
            let field = format!("build_config[{}]", pair.split_once('=').unwrap().0);
            assert!(err.contains(&field), "{field}: {err}");
        }
    }
    let tasks = ["-n", &cell.namespace, "get", "workertasks"];
    let tasks = cell.cluster.json(&tasks);
    assert_eq!(tasks["items"].as_array().unwrap().len(), 0);
    assert!(cell.pods("bounds").is_empty());
}

#[test]
fn an_image_that_needs_root_takes_one_setting() {
    let cell = Cell::start("root", &[("ALLOW_ROOT_WORKERS", "true")]);
    let root = ["OTTO_USER_ID=0"];
    let answer = cell.ask(0, &with("root", "1", &root));
    assert_eq!(answer["status"], "SUCCESS", "{answer}");
    assert_eq!(spec(&cell, "root")["securityContext"]["runAsUser"], 0);
    // "baseline" takes it, "restricted" does not, and the client is told why.
    enforce(&cell, "baseline");
    assert_eq!(cell.ask(1, &with("base", "1", &root))["status"], "SUCCESS");
    restrict(&cell);
    let answer = cell.ask(2, &with("strict", "1", &root));
    assert_eq!(answer["status"], "PARTIAL_SUCCESS", "{answer}");
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("violates PodSecurity"),
        "{answer}"
    );
    assert!(cell.pods("strict").is_empty());
}
