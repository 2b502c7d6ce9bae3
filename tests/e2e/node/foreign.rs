//! What others do to our objects: tasks that are no tasks, labels that go, tasks that are
//! deleted.
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    DONE, Installed, NAMESPACE, SOON, installed,
    matrix::{WAITS, shell},
    wait_for,
};
use crate::support::root;

const CRD: &str = "workertasks.ottoscaler.io";

/// Puts the CRD right and takes the foreign task away; where the test failed, with new
/// replicas.
struct Foreign<'a> {
    i: &'a Installed,
    task: &'static str,
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        let i = self.i;
        let delete = [
            "kubectl",
            "-n",
            NAMESPACE,
            "delete",
            "workertask",
            self.task,
        ];
        i.cluster
            .try_run(&[&delete[..], &["--ignore-not-found"]].concat());
        let file = root().join("charts/ottoscaler/crds/workertasks.yaml");
        i.cluster
            .try_run(&["kubectl", "replace", "-f", &file.to_string_lossy()]);
        if std::thread::panicking() {
            let rollout = ["kubectl", "-n", NAMESPACE, "rollout"];
            for step in [
                &["restart", "deployment/ottoscaler"][..],
                &["status", "deployment/ottoscaler", "--timeout=120s"][..],
            ] {
                i.cluster.try_run(&[&rollout[..], step].concat());
            }
        }
    }
}

/// A task that asks for more workers than a number of ours holds.
fn huge(task: &str) -> Value {
    json!({"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask",
        "metadata": {"name": task, "namespace": NAMESPACE},
        "spec": {"taskId": task, "repository": "org/repo", "commitSha": "abc",
            "workers": 5_000_000_000_u64, "digest": "none"}})
}

#[test]
fn a_task_that_nobody_can_read_is_refused_and_where_it_is_stored_holds_nobody_up() {
    let i = installed();
    let foreign = Foreign { i, task: "huge" };
    let object = huge(foreign.task);
    let refusal = i.try_apply(&object).expect("the API server refuses it");
    assert!(refusal.contains("spec.workers"), "{refusal}");

    // As an older CRD let it in.
    let open = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema",
        "value": {"type": "object", "properties": {
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            // By its phase a task is selected.
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"phase": {"type": "string"}}}}}}]);
    let patch = ["patch", "crd", CRD, "--type=json", "-p", &open.to_string()];
    i.cluster.kubectl(&patch);
    wait_for("the API server takes it", SOON, || {
        i.try_apply(&object).is_none().then_some(())
    });

    // Each replica sees what comes after it, and one that starts beside it gets ready.
    let env = [("LINES", "5".to_owned())];
    i.scale_up("after-huge", 1, &env);
    let leader = i.leader().unwrap();
    let replicas = i.three_replicas(SOON);
    let (follower, _) = replicas.iter().find(|(name, _)| *name != leader).unwrap();
    i.cluster
        .kubectl(&["-n", NAMESPACE, "delete", "pod", follower]);
    i.wait_done("after-huge", 1);
    for (replica, address) in i.three_replicas(DONE) {
        assert_ne!(replica, *follower);
        let sees = format!("{replica} sees the task, and is not stale");
        wait_for(&sees, SOON, || {
            let status = i.ottoctl(&address, &["status", "after-huge"]);
            (status["succeeded"] == 1 && status["stale"] == false).then_some(())
        });
    }
    i.check_logs("after-huge", 1, 5);
    i.check_audit("after-huge", 1, 1);
}

/// As a person does who looks for what selects a pod, or a tool that tidies up.
#[test]
fn labels_that_others_change_lose_and_double_nothing() {
    let i = installed();
    let (task, workers, lines) = ("relabelled", 3, 100);
    let env = [("LINES", lines.to_string()), ("RATE", "10".into())];
    i.scale_up(task, workers, &env);
    wait_for("each prints", DONE, || {
        (i.printed(task) >= workers * 10).then_some(())
    });
    let pod = |index: usize| format!("otto-agent-{task}-{index}");
    let edit = |index: usize, what: &str, args: &[&str]| {
        let pod = pod(index);
        let head = ["-n", NAMESPACE, what, "pod", &pod];
        i.cluster.kubectl(&[&head[..], args].concat());
    };
    edit(1, "label", &["app-"]);
    let others = ["task-id=other", "worker-index=9", "ottoscaler.io/attempt=7"];
    edit(2, "label", &[&["--overwrite"], &others[..]].concat());
    let none = r#"[{"op": "remove", "path": "/metadata/labels"},
        {"op": "remove", "path": "/metadata/annotations"}]"#;
    edit(3, "patch", &["--type=json", "-p", none]);
    let at_edit = i.printed(task);
    assert!(at_edit < workers * lines, "they had ended before");

    wait_for("every worker succeeded", DONE, || {
        let status = i.ottoctl(&i.service, &["status", task]);
        (status["succeeded"] == workers).then_some(())
    });
    wait_for("their pods are deleted", DONE, || {
        let gone = |index| {
            let pod = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}", pod(index));
            i.cluster.look(&pod).is_none()
        };
        (1..=workers).all(gone).then_some(())
    });
    i.check_logs(task, workers, workers * lines);
    i.check_audit(task, workers, 1);
    let status = i.ottoctl(&i.service, &["status", task]);
    for worker in status["workers"].as_array().unwrap() {
        assert_eq!(worker["attempt"], 1, "{worker}");
    }
}

#[test]
fn a_task_deleted_by_kubectl_ends_each_of_its_workers_for_otto_handler() {
    let i = installed();
    let task = "deleted-task";
    i.scale_up(task, 2, &shell(&format!("echo begins; {WAITS}")));
    // Of each worker the last state that otto-handler was told.
    let states = || -> BTreeMap<String, String> {
        let notes = i.record(task).filter(|r| r["kind"] == "notify");
        notes
            .map(|n| {
                let word = |key: &str| n[key].as_str().unwrap().to_owned();
                (word("worker"), word("status"))
            })
            .collect()
    };
    let all_are = |state: &str| {
        let states = states();
        states.len() == 2 && states.values().all(|s| s == state)
    };
    wait_for("both run", SOON, || all_are("RUNNING").then_some(()));
    i.cluster
        .kubectl(&["-n", NAMESPACE, "delete", "workertask", task]);
    wait_for("TERMINATED is told of both", DONE, || {
        all_are("TERMINATED").then_some(())
    });
    wait_for("their pods are gone", DONE, || {
        (i.worker_pods(task) == 0).then_some(())
    });
}
