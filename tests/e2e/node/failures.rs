//! The failure matrix, where the kubelet makes the status: all tasks start at once,
//! each test waits for its own. That it was the kubelet's word is told by the audit
//! log: `system:node:…` wrote the status.
use std::{collections::BTreeMap, io::Write as _, process::Stdio, sync::OnceLock, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Installed, NAMESPACE, SOON, installed, wait_for};

/// The kubelet measures volumes once a minute; a pull is given up after 45 s.
const IN_THE_END: Duration = Duration::from_secs(150);

/// A worker whose command is a line for the shell.
fn shell(line: &str) -> Vec<(&'static str, String)> {
    vec![
        ("OTTO_IMAGE", "busybox".to_owned()),
        ("OTTO_COMMAND", line.to_owned()),
    ]
}

fn out_of_memory() -> Vec<(&'static str, String)> {
    let mut env = shell("tail /dev/zero");
    env.push(("OTTO_MEMORY_LIMIT", "16Mi".to_owned()));
    env
}

fn started() -> &'static Installed {
    static STARTED: OnceLock<&'static Installed> = OnceLock::new();
    STARTED.get_or_init(|| {
        let i = installed();
        fail_init_containers(i);
        let with = |mut env: Vec<(&'static str, String)>, key, value: &str| {
            env.push((key, value.to_owned()));
            env
        };
        let image = |name: &str| vec![("OTTO_IMAGE", name.to_owned())];
        let tasks: BTreeMap<&str, Vec<(&'static str, String)>> = BTreeMap::from([
            ("exit", shell("exit 7")),
            ("oom", out_of_memory()),
            (
                "evict",
                with(
                    shell("dd if=/dev/zero of=/workspace/f bs=1M count=8; sleep 600"),
                    "OTTO_WORKSPACE_SIZE",
                    "1Mi",
                ),
            ),
            ("pull", image("localhost:1/none:1")),
            ("deadline", with(shell("sleep 600"), "OTTO_TIMEOUT", "3s")),
            ("deleted", shell("sleep 600")),
            ("vanished", shell("sleep 600")),
            ("init", shell("exit 0")),
            (
                "start",
                vec![("OTTO_COMMAND", r#"["/no/such/program"]"#.to_owned())],
            ),
            (
                "stuck",
                with(
                    shell("exit 0"),
                    "OTTO_NODE_SELECTOR",
                    "kubernetes.io/arch=none",
                ),
            ),
        ]);
        for (task, env) in &tasks {
            let answer = i.scale_up(&format!("fail-{task}"), 1, env);
            assert_eq!(answer["status"], "SUCCESS", "{task}: {answer}");
        }
        i
    })
}

/// Puts an init container that fails before one task's worker.
fn fail_init_containers(i: &Installed) {
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "init.test.ottoscaler.io"},
        "spec": {"failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConstraints": {
                "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "objectSelector": {"matchLabels": {"task-id": "fail-init"}}},
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'add', path: '/spec/initContainers', value: [Object.spec.initContainers{name: 'mesh', \
                 image: 'busybox', imagePullPolicy: 'IfNotPresent', command: ['sh', '-c', 'exit 3']}]}]"}}]}});
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "init.test.ottoscaler.io"}, "spec": {"policyName": "init.test.ottoscaler.io"}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]});
    let mut apply = i
        .cluster
        .command(&["kubectl", "apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    apply
        .stdin
        .take()
        .unwrap()
        .write_all(list.to_string().as_bytes())
        .unwrap();
    assert!(apply.wait().unwrap().success());
    // In force once the API server says so of a dry run.
    wait_for("the API server knows the policy", SOON, || {
        let pod = i.cluster.try_run(&[
            "kubectl",
            "-n",
            NAMESPACE,
            "run",
            "probe",
            "--image=busybox",
            "--dry-run=server",
            "--labels=task-id=fail-init",
            "-o",
            "jsonpath={.spec.initContainers[0].name}",
        ]);
        (pod.stdout == b"mesh").then_some(())
    });
}

fn worker(i: &Installed, task: &str) -> Value {
    let status = i.ottoctl(&i.service, &["status", &format!("fail-{task}")]);
    status["workers"][0].clone()
}

/// Waits for the worker to fail for good.
fn failed(task: &str) -> Value {
    let i = started();
    let end = wait_for(&format!("{task} fails"), IN_THE_END, || {
        Some(worker(i, task)).filter(|w| w["status"] == "Failed")
    });
    println!("{task}: {}, exit {}", end["error"], end["exitCode"]);
    let told = notified(i, task, "FAILED");
    assert_eq!(
        told["attempt"].as_str().unwrap(),
        end["attempt"].to_string()
    );
    end
}

fn runs(task: &str, attempt: u64) {
    let i = started();
    wait_for(
        &format!("{task}: attempt {attempt} runs"),
        IN_THE_END,
        || {
            let w = worker(i, task);
            (w["attempt"] == attempt && w["status"] == "Running").then_some(())
        },
    );
}

fn cancel(task: &str) {
    let i = started();
    i.ottoctl(&i.service, &["cancel", &format!("fail-{task}")]);
    wait_for("its pods are gone", IN_THE_END, || {
        (i.worker_pods(&format!("fail-{task}")) == 0).then_some(())
    });
}

/// The metadata of a notification of a task's worker.
fn notified(i: &Installed, task: &str, status: &str) -> Value {
    told(i, task, status)["metadata"].clone()
}

/// What otto-handler recorded of it.
fn told(i: &Installed, task: &str, status: &str) -> Value {
    wait_for(&format!("{task}: {status} told"), SOON, || {
        let mut records = i.record(&format!("fail-{task}"));
        records.find(|r| r["kind"] == "notify" && r["status"] == status)
    })
}

/// Whether the kubelet itself wrote this into the status of the task's pod.
fn kubelet_said(task: &str, what: &str) {
    wait_for(&format!("the kubelet's {what} of {task}"), SOON, || {
        kubelets_word(task, what)
    });
}

/// When the kubelet first wrote this into the status of a pod of the task.
fn kubelets_word(task: &str, what: &str) -> Option<Timestamp> {
    let i = started();
    let since = i.began(&format!("fail-{task}")).audit;
    let log = i.cluster.audit_since(since);
    let pods = format!("otto-agent-fail-{task}-");
    let words = log
        .lines()
        .filter(|l| l.contains("\"system:node:") && l.contains(&pods) && l.contains(what))
        .filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let mut words = words.filter(|e| {
        let of = &e["objectRef"];
        let ours = of["name"].as_str().is_some_and(|n| n.starts_with(&pods));
        ours && of["resource"] == "pods" && of["subresource"] == "status"
    });
    words.next().map(|e| time(&e["stageTimestamp"]))
}

fn time(text: &Value) -> Timestamp {
    text.as_str().unwrap().parse().unwrap()
}

#[test]
fn an_exit_code_is_kept_and_not_tried_again() {
    let end = failed("exit");
    assert_eq!(
        (end["exitCode"].as_i64(), end["attempt"].as_i64()),
        (Some(7), Some(1))
    );
    assert_eq!(notified(started(), "exit", "FAILED")["exit-code"], "7");
    kubelet_said("exit", "\"exitCode\":7");
    started().check_audit("fail-exit", 1, 1);
}

/// containerd may tell that a container was killed before it tells why; the kubelet then says
/// Error, and so do we.
#[test]
fn a_worker_out_of_memory_is_oom_killed_and_not_tried_again() {
    let tries = ["oom", "oom2", "oom3"].into_iter().find_map(|task| {
        if task != "oom" {
            started().scale_up(&format!("fail-{task}"), 1, &out_of_memory());
        }
        let end = failed(task);
        let is_why = end["error"].as_str().unwrap().contains("OOMKilled");
        assert!(
            is_why || kubelets_word(task, "OOMKilled").is_none(),
            "the kubelet said why: {end}"
        );
        is_why.then_some((task, end))
    });
    let (task, end) = tries.expect("OOMKilled, of three");
    assert_eq!(
        (end["exitCode"].as_i64(), end["attempt"].as_i64()),
        (Some(137), Some(1))
    );
    kubelet_said(task, "OOMKilled");
}

/// By the kubelet, for a volume over its size: its own fault, which each attempt would
/// repeat.
#[test]
fn a_worker_evicted_for_its_own_limit_is_not_tried_again() {
    let end = failed("evict");
    assert!(end["error"].as_str().unwrap().contains("Evicted"), "{end}");
    assert_eq!(end["attempt"], 1);
    kubelet_said("evict", "Evicted");
    started().check_audit("fail-evict", 1, 1);
}

#[test]
fn an_image_that_cannot_be_pulled_fails_within_a_minute_with_the_kubelets_reason() {
    let end = failed("pull");
    let error = end["error"].as_str().unwrap();
    assert!(error.contains("ImagePull"), "{end}");
    assert!(error.contains("localhost:1/none:1"), "{end}");
    kubelet_said("pull", "ImagePull");
}

/// A name that is none to the kubelet only: it reads 64 digits as an id. Begun when
/// the node has little else to do.
#[test]
fn an_invalid_image_name_is_told_within_two_seconds_of_the_pods_start() {
    let i = started();
    let image = "0123456789abcdef".repeat(4);
    i.scale_up("fail-invalid", 1, &[("OTTO_IMAGE", image)]);
    let end = failed("invalid");
    let error = end["error"].as_str().unwrap();
    assert!(error.contains("InvalidImageName"), "{end}");
    assert_eq!(end["attempt"], 1);
    kubelet_said("invalid", "InvalidImageName");
    let taken = kubelets_word("invalid", "").unwrap();
    let told = time(&told(i, "invalid", "FAILED")["at"]).duration_since(taken);
    let said = kubelets_word("invalid", "InvalidImageName").unwrap();
    println!(
        "invalid: told {told:#} after the kubelet took the pod, which said so after {:#}",
        said.duration_since(taken)
    );
    assert!(told <= SignedDuration::from_secs(2), "{told:#}");
}

#[test]
fn a_passed_deadline_ends_a_worker_for_good() {
    let end = failed("deadline");
    assert!(
        end["error"].as_str().unwrap().contains("DeadlineExceeded"),
        "{end}"
    );
    assert_eq!(end["attempt"], 1);
    kubelet_said("deadline", "DeadlineExceeded");
}

#[test]
fn a_program_that_cannot_start_fails_with_the_reason() {
    let end = failed("start");
    assert!(
        end["error"].as_str().unwrap().contains("StartError"),
        "{end}"
    );
    assert_eq!(end["attempt"], 1);
    kubelet_said("start", "StartError");
}

#[test]
fn an_init_container_that_fails_is_named_with_its_exit_code() {
    let end = failed("init");
    let error = end["error"].as_str().unwrap();
    assert!(
        error.contains("Init:Error") && error.contains("mesh"),
        "{end}"
    );
    assert_eq!(end["exitCode"], 3);
    kubelet_said("init", "\"exitCode\":3");
}

#[test]
fn a_worker_that_nobody_schedules_says_so_at_once() {
    let i = started();
    let waits = wait_for("the reason", SOON, || {
        Some(worker(i, "stuck")).filter(|w| w["error"] != "")
    });
    assert_eq!(waits["status"], "Pending");
    assert!(
        waits["error"].as_str().unwrap().contains("Unschedulable"),
        "{waits}"
    );
    cancel("stuck");
    assert_eq!(notified(i, "stuck", "TERMINATED")["attempt"], "1");
}

#[test]
fn a_worker_deleted_by_hand_is_tried_again_once_it_is_gone() {
    let i = started();
    runs("deleted", 1);
    let pod = "otto-agent-fail-deleted-1";
    i.cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        pod,
        "--wait=false",
        "--grace-period=1",
    ]);
    runs("deleted", 2);
    i.check_audit("fail-deleted", 2, 1);
    cancel("deleted");
}

#[test]
fn a_worker_that_vanished_is_tried_again_and_is_no_success() {
    let i = started();
    runs("vanished", 1);
    let pod = "otto-agent-fail-vanished-1";
    i.cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        pod,
        "--force",
        "--grace-period=0",
    ]);
    runs("vanished", 2);
    cancel("vanished");
    assert_eq!(worker(i, "vanished")["status"], "Failed");
}
