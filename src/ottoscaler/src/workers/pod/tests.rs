#![expect(clippy::unwrap_used)]
use std::cell::Cell;

use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use serde_json::Value;

use super::*;
use crate::{
    args::Options,
    domain::{
        task::TaskSpec,
        template::{KEYS, OURS, Policy},
    },
};

fn policy(settings: &[(&str, &str)]) -> Policy {
    let value = |name: &str| settings.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
    let config = Options::from_lookup(&|name| value(name).map(str::to_owned));
    config.unwrap().worker
}

/// Allows every name and root.
fn open() -> Policy {
    let names = [
        "ALLOWED_PULL_SECRETS",
        "ALLOWED_SECRETS",
        "ALLOWED_CA_BUNDLES",
        "ALLOWED_CACHE_CLAIMS",
        "ALLOWED_SERVICE_ACCOUNTS",
        "ALLOWED_PRIORITY_CLASSES",
        "ALLOWED_NODE_LABELS",
        "ALLOWED_TOLERATIONS",
    ];
    let mut settings = names.map(|name| (name, "*")).to_vec();
    settings.push(("ALLOW_ROOT_WORKERS", "true"));
    policy(&settings)
}

fn task(build_config: BTreeMap<String, String>) -> Task {
    let spec = TaskSpec {
        task_id: "T_1".into(),
        workers: 2,
        build_config,
        ..Default::default()
    };
    Task {
        spec,
        ..Default::default()
    }
}

fn config(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    pairs.iter().map(own).collect()
}

fn pod_under(policy: &Policy, pairs: &[(&str, &str)]) -> Pod {
    let task = task(config(pairs));
    let template = Template::parse(&task.spec.build_config, policy).unwrap();
    build(&task, 2, 1, &template)
}

fn pod(pairs: &[(&str, &str)]) -> Value {
    serde_json::to_value(pod_under(&open(), pairs)).unwrap()["spec"].take()
}

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pod = pod_under(&open(), pairs).spec.unwrap();
    let env = pod.containers[0].env.clone().unwrap().into_iter();
    env.filter_map(|e| Some((e.name, e.value?))).collect()
}

/// What PodSecurity "restricted" or "baseline" holds against a pod's spec: the
/// rules of the standard, written down once more.
fn held_against(spec: &Value, restricted: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut rule = |what: &str, holds: bool| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    let unset = |v: &Value| v.is_null() || *v == Value::Bool(false);
    for name in ["hostNetwork", "hostPID", "hostIPC"] {
        rule("host namespaces", unset(&spec[name]));
    }
    let types = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let kind = volume.as_object().unwrap().keys().find(|k| *k != "name");
        let kind = kind.unwrap().as_str();
        rule("no hostPath", kind != "hostPath");
        rule("volume types", !restricted || types.contains(&kind));
    }
    let of_pod = &spec["securityContext"];
    rule("sysctls", of_pod["sysctls"].is_null());
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    let containers = containers
        .iter()
        .flat_map(|c| spec[*c].as_array().into_iter().flatten());
    let mut seen = 0;
    for container in containers {
        seen += 1;
        let own = &container["securityContext"];
        let either = |name: &str| {
            let value = if own[name].is_null() {
                &of_pod[name]
            } else {
                &own[name]
            };
            value.clone()
        };
        rule("privileged", unset(&own["privileged"]));
        rule("procMount", own["procMount"].is_null());
        for name in ["seLinuxOptions", "appArmorProfile", "windowsOptions"] {
            rule(name, either(name).is_null());
        }
        for port in container["ports"].as_array().into_iter().flatten() {
            rule("host ports", port["hostPort"].is_null());
        }
        let listed = |name: &str| -> Vec<String> {
            serde_json::from_value(own["capabilities"][name].clone()).unwrap_or_default()
        };
        let baseline = [
            "AUDIT_WRITE",
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "MKNOD",
            "NET_BIND_SERVICE",
            "SETFCAP",
            "SETGID",
            "SETPCAP",
            "SETUID",
            "SYS_CHROOT",
        ];
        for capability in listed("add") {
            let allowed = if restricted {
                &baseline[7..8]
            } else {
                &baseline[..]
            };
            rule("capabilities added", allowed.contains(&capability.as_str()));
        }
        let seccomp = either("seccompProfile")["type"].clone();
        rule("seccomp unconfined", seccomp != "Unconfined");
        if restricted {
            rule("ALL dropped", listed("drop").contains(&"ALL".to_owned()));
            rule("escalation", own["allowPrivilegeEscalation"] == false);
            rule("runAsNonRoot", either("runAsNonRoot") == true);
            rule("runAsUser", either("runAsUser") != 0);
            rule(
                "seccomp",
                ["RuntimeDefault", "Localhost"]
                    .iter()
                    .any(|t| seccomp == *t),
            );
        }
    }
    rule("there is a container", seen > 0);
    found
}

#[test]
fn a_default_worker_is_restricted() {
    let spec = serde_json::to_value(pod_under(&policy(&[]), &[])).unwrap()["spec"].take();
    assert_eq!(held_against(&spec, true), [""; 0]);
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["securityContext"]["runAsUser"], 65_532);
}

#[test]
fn a_root_worker_is_baseline_and_can_install_packages() {
    let spec = pod(&[("OTTO_USER_ID", "0")]);
    assert_eq!(held_against(&spec, false), [""; 0]);
    assert!(!held_against(&spec, true).is_empty());
    let added = &spec["containers"][0]["securityContext"]["capabilities"]["add"];
    for capability in ["CHOWN", "SETUID"] {
        assert!(
            added.as_array().unwrap().contains(&capability.into()),
            "{added}"
        );
    }
}

#[test]
fn the_build_config_becomes_environment_but_cannot_disguise_a_worker() {
    let env = env(&[("MODE", "fast"), ("OTTO_WORKER_INDEX", "9")]);
    assert_eq!(env["MODE"], "fast");
    assert_eq!(env["OTTO_WORKER_INDEX"], "2");
    assert_eq!(env["OTTO_TASK_ID"], "T_1");
    for ours in OURS {
        assert!(env.contains_key(ours.name), "{}", ours.name);
    }
}

#[test]
fn template_keys_are_no_environment() {
    let env = env(&[("OTTO_IMAGE", "agent:2"), ("OTTO_SECRETS", "npm")]);
    for key in KEYS {
        assert!(!env.contains_key(key.name), "{}", key.name);
    }
}

#[test]
fn a_value_is_not_expanded() {
    assert_eq!(env(&[("X", "$(HOME)")])["X"], "$$(HOME)");
    let spec = pod(&[("OTTO_COMMAND", "echo $(date) $$")]);
    assert_eq!(spec["containers"][0]["command"][2], "echo $$(date) $$$$");
}

#[test]
fn programs_find_proxies_and_certificates() {
    let pairs = [
        ("OTTO_HTTPS_PROXY", "http://proxy:3128"),
        ("OTTO_NO_PROXY", ".svc"),
        ("OTTO_CA_BUNDLE", "corp/all.pem"),
    ];
    let env = env(&pairs);
    assert_eq!(env["HTTPS_PROXY"], "http://proxy:3128");
    assert_eq!(env["https_proxy"], "http://proxy:3128");
    assert_eq!(
        (env["NO_PROXY"].as_str(), env["no_proxy"].as_str()),
        (".svc", ".svc")
    );
    assert!(!env.contains_key("HTTP_PROXY"));
    let spec = pod(&pairs);
    let mounts = spec["containers"][0]["volumeMounts"]
        .as_array()
        .unwrap()
        .clone();
    let mount = mounts.into_iter().find(|m| m["name"] == "ca").unwrap();
    assert_eq!(mount["readOnly"], true);
    let file = format!("{}/ca.crt", mount["mountPath"].as_str().unwrap());
    for variable in ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"] {
        assert_eq!(env[variable], file);
    }
    let volumes = spec["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|v| v["name"] == "ca").unwrap();
    assert_eq!(volume["configMap"]["name"], "corp");
    assert_eq!(volume["configMap"]["items"][0]["key"], "all.pem");
    assert_eq!(volume["configMap"]["items"][0]["path"], "ca.crt");
}

#[test]
fn secrets_come_by_name_and_the_environment_wins_over_them() {
    let spec = pod(&[
        ("OTTO_SECRETS", "npm,maven"),
        ("OTTO_IMAGE_PULL_SECRETS", "hub"),
    ]);
    let from = spec["containers"][0]["envFrom"].as_array().unwrap();
    let names: Vec<&Value> = from.iter().map(|f| &f["secretRef"]["name"]).collect();
    assert_eq!(names, ["npm", "maven"]);
    assert_eq!(spec["imagePullSecrets"][0]["name"], "hub");
}

#[test]
fn a_service_account_that_was_asked_for_decides_about_its_token() {
    let spec = pod(&[("OTTO_SERVICE_ACCOUNT", "deployer")]);
    assert_eq!(spec["serviceAccountName"], "deployer");
    assert!(spec["automountServiceAccountToken"].is_null());
}

#[test]
fn placement_and_storage_are_the_pods() {
    let spec = pod(&[
        ("OTTO_NODE_SELECTOR", "disk=ssd"),
        ("OTTO_TOLERATIONS", "ci=a:NoSchedule,spot:NoExecute"),
        ("OTTO_PRIORITY_CLASS", "high"),
        ("OTTO_TIMEOUT", "10m"),
        ("OTTO_CACHE_CLAIM", "cargo"),
        ("OTTO_WORKSPACE_SIZE", "1Gi"),
    ]);
    assert_eq!(spec["nodeSelector"]["disk"], "ssd");
    assert_eq!(spec["tolerations"][0]["operator"], "Equal");
    assert_eq!(spec["tolerations"][0]["value"], "a");
    assert_eq!(spec["tolerations"][1]["operator"], "Exists");
    assert!(spec["tolerations"][1]["value"].is_null());
    assert_eq!(spec["priorityClassName"], "high");
    assert_eq!(spec["activeDeadlineSeconds"], 600);
    assert_eq!(spec["volumes"][0]["emptyDir"]["sizeLimit"], "1Gi");
    assert_eq!(
        spec["volumes"][1]["persistentVolumeClaim"]["claimName"],
        "cargo"
    );
    let mounts = &spec["containers"][0]["volumeMounts"];
    assert_eq!(
        (
            mounts[0]["mountPath"].as_str(),
            mounts[1]["mountPath"].as_str()
        ),
        (Some("/workspace"), Some("/cache"))
    );
}

#[test]
fn the_pod_is_the_wire_contracts() {
    let mut task = Task::default();
    task.spec.task_id = "build-42".into();
    let template = Template::parse(&BTreeMap::new(), &policy(&[])).unwrap();
    let pod = build(&task, 1, 1, &template);
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

/// About half of the values are within bounds.
fn requests() -> impl Strategy<Value = BTreeMap<String, String>> {
    let pair = |key: &'static str, values: &'static [&'static str]| {
        select(values).prop_map(move |value| (key.to_owned(), value.to_owned()))
    };
    let one = prop_oneof![
        pair("OTTO_IMAGE", &["ci/a:1", "ci/b", "evil/a:1"]),
        pair("OTTO_USER_ID", &["0", "1", "1000", "65532"]),
        pair("OTTO_CPU_REQUEST", &["1m", "250m", "1", "3"]),
        pair("OTTO_CPU_LIMIT", &["2m", "500m", "1.5", "2", "2001m"]),
        pair("OTTO_MEMORY_REQUEST", &["1Mi", "64Mi", "1Gi"]),
        pair("OTTO_MEMORY_LIMIT", &["8Mi", "128M", "1Gi", "1025Mi"]),
        pair("OTTO_WORKSPACE_SIZE", &["1", "1Gi", "10Gi", "11Gi"]),
        pair("OTTO_TIMEOUT", &["1", "59m", "3600", "61m"]),
        pair("OTTO_SECRETS", &["a", "a,b", "c"]),
        pair("OTTO_SERVICE_ACCOUNT", &["a", "c"]),
        pair("OTTO_TOLERATIONS", &["a=b:NoSchedule", "a:NoSchedule"]),
        pair("OTTO_COMMAND", &["make", "[\"make\"]", "[make"]),
        pair("MODE", &["fast", "$(slow)"]),
        ("[A-Z]{1,4}", "\\PC{0,8}"),
    ];
    proptest::collection::vec(one, 0..4).prop_map(|pairs| pairs.into_iter().collect())
}

#[test]
fn whatever_passes_is_a_pod_inside_all_maxima() {
    let policy = policy(&[
        ("OTTO_AGENT_IMAGE", "agent:1"),
        ("ALLOWED_IMAGES", "ci/*"),
        ("ALLOWED_SECRETS", "a,b"),
        ("ALLOWED_SERVICE_ACCOUNTS", "a"),
        ("ALLOWED_TOLERATIONS", "a=*:*"),
        ("MAX_WORKER_CPU", "2"),
        ("MAX_WORKER_MEMORY", "1Gi"),
        ("MAX_WORKSPACE", "10Gi"),
        ("MAX_WORKER_TIMEOUT", "1h"),
    ]);
    let (passed, failed) = (Cell::new(0), Cell::new(0));
    let amount = |value: &Value| quantity::Quantity::parse(value.as_str().unwrap()).unwrap();
    let most = |text| quantity::Quantity::parse(text).unwrap();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(2_000));
    let result = runner.run(&requests(), |build_config| {
        let task = task(build_config);
        let Ok(template) = Template::parse(&task.spec.build_config, &policy) else {
            failed.set(failed.get() + 1);
            return Ok(());
        };
        passed.set(passed.get() + 1);
        let spec = serde_json::to_value(build(&task, 1, 1, &template)).unwrap()["spec"].take();
        prop_assert_eq!(held_against(&spec, true), [""; 0]);
        let container = &spec["containers"][0];
        let image = container["image"].as_str().unwrap();
        prop_assert!(image == "agent:1" || image.starts_with("ci/"));
        for (what, max) in [("cpu", "2"), ("memory", "1Gi")] {
            let limit = amount(&container["resources"]["limits"][what]);
            prop_assert!(limit <= most(max));
            prop_assert!(amount(&container["resources"]["requests"][what]) <= limit);
        }
        prop_assert!(amount(&spec["volumes"][0]["emptyDir"]["sizeLimit"]) <= most("10Gi"));
        let deadline = spec["activeDeadlineSeconds"].as_u64().unwrap();
        prop_assert!((1..=3_600).contains(&deadline));
        for from in container["envFrom"].as_array().into_iter().flatten() {
            let name = &from["secretRef"]["name"];
            prop_assert!(name == "a" || name == "b");
        }
        let account = &spec["serviceAccountName"];
        prop_assert!(account.is_null() || account == "a");
        for toleration in spec["tolerations"].as_array().into_iter().flatten() {
            prop_assert_eq!(&toleration["operator"], "Equal");
        }
        Ok(())
    });
    result.unwrap();
    assert!(
        passed.get() > 200 && failed.get() > 200,
        "{passed:?} {failed:?}"
    );
}
