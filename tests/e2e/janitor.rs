//! What is left over: pods without their task, tasks without their pods, and what
//! an uninstall leaves. The oracle is the audit log or a fresh list.
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    fake::{QUICK, scale_up},
    processes::{Cell, SOON, apply},
    support::{Cluster, pass, wait_for},
};

/// For what is left over.
const CLEANED: Duration = Duration::from_secs(60);
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// The garbage collector is away, so that the janitor is the one that cleans up;
/// it is back when this goes, also when the test fails.
struct NoCollector<'a>(&'a Cell);

impl<'a> NoCollector<'a> {
    fn begin(cell: &'a Cell) -> Self {
        cell.cluster.component("kill", "kcm");
        Self(cell)
    }
}

impl Drop for NoCollector<'_> {
    fn drop(&mut self) {
        self.0.cluster.component("start", "kcm");
    }
}

/// A pod as the Go original makes them.
fn go_pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"managed-by": "ottoscaler", "app": "otto-agent",
            "task-id": "left", "repository": "org-repo", "commit-sha": "abc", "worker-index": "1"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "worker", "image": "busybox"}]}})
}

/// A pod as a leader made it.
fn our_pod(name: &str) -> Value {
    let mut pod = go_pod(name);
    pod["metadata"]["labels"]["ottoscaler.io/attempt"] = json!("1");
    pod["metadata"]["annotations"] =
        json!({"ottoscaler.io/task-id": "left", "ottoscaler.io/term": "some/0/body"});
    pod
}

/// The same, of a task that is gone.
fn owned_pod(name: &str) -> Value {
    let mut pod = our_pod(name);
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "ottoscaler.io/v1alpha1",
        "kind": "WorkerTask", "name": "left", "uid": NOBODY, "controller": true}]);
    pod
}

fn pod(cell: &Cell, name: &str) -> Option<Value> {
    let get = ["get", "pod", name, "--ignore-not-found", "-o", "json"];
    let args = [&["-n", cell.namespace.as_str()][..], &get[..]].concat();
    serde_json::from_str(&cell.cluster.kubectl(&args)).ok()
}

/// Events of ours about a pod: verbs, by the audit log.
fn our_writes(cell: &Cell, name: &str) -> Vec<String> {
    let user = format!("system:serviceaccount:{}:ottoscaler", cell.namespace);
    let log = cell.audit_log();
    let events = log
        .lines()
        .filter(|l| l.contains(name) && l.contains(&user));
    events
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .filter(|e| {
            let of = &e["objectRef"];
            e["user"]["username"] == *user
                && e["stage"] == "ResponseComplete"
                && of["resource"] == "pods"
                && of["name"] == name
                && of["namespace"] == *cell.namespace
        })
        .map(|e| e["verb"].as_str().unwrap().to_owned())
        .collect()
}

/// By us, not by the garbage collector.
fn goes(cell: &Cell, name: &str) {
    let began = Instant::now();
    wait_for(&format!("{name} goes"), CLEANED, || {
        pod(cell, name).is_none().then_some(())
    });
    println!("{name}: gone after {:.1?}", began.elapsed());
    assert_eq!(our_writes(cell, name), ["delete"]);
}

#[test]
fn pods_of_ours_without_their_task_go_and_the_go_originals_stay() {
    let cell = Cell::start("left", QUICK);
    let collector = NoCollector::begin(&cell);
    apply(&cell, &go_pod("otto-agent-left-1"));
    let theirs = pod(&cell, "otto-agent-left-1").unwrap();
    // By deletion, and by `kubectl delete --cascade=orphan`.
    apply(&cell, &owned_pod("otto-agent-left-2"));
    apply(&cell, &our_pod("otto-agent-left-3"));
    goes(&cell, "otto-agent-left-2");
    goes(&cell, "otto-agent-left-3");
    // Another look for what is left over.
    apply(&cell, &owned_pod("otto-agent-left-4"));
    goes(&cell, "otto-agent-left-4");
    let now = pod(&cell, "otto-agent-left-1").unwrap();
    assert_eq!(now["metadata"]["uid"], theirs["metadata"]["uid"]);
    assert!(now["metadata"]["deletionTimestamp"].is_null(), "{now}");
    assert!(our_writes(&cell, "otto-agent-left-1").is_empty());
    drop(collector);
}

/// A task of the same name is not taken to have the pods that an older one left.
#[test]
fn a_task_made_again_waits_for_the_pods_that_the_first_one_left() {
    let cell = Cell::start("again", QUICK);
    cell.ask(0, &scale_up("again", "3"));
    let uids = |cell: &Cell| -> Vec<Value> {
        let pods = cell.pods("again").into_iter();
        pods.map(|p| p["metadata"]["uid"].clone()).collect()
    };
    let first = uids(&cell);
    cell.cluster.kubectl(&[
        "-n",
        "again",
        "delete",
        "workertask",
        "again",
        "--cascade=orphan",
    ]);
    cell.ask(1, &scale_up("again", "3"));
    wait_for("three new pods", CLEANED, || {
        let now = uids(&cell);
        (now.len() == 3 && now.iter().all(|uid| !first.contains(uid))).then_some(())
    });
    wait_for("all replicas tell of the new ones", SOON, || {
        let all = (0..3).map(|n| cell.ask(n, &["status", "again"]));
        all.into_iter()
            .all(|s| s["running"] == 3 && s["total"] == 3)
            .then_some(())
    });
}

#[test]
fn a_task_whose_pods_went_while_nobody_looked_comes_to_an_end() {
    let mut cell = Cell::start("unseen", QUICK);
    let once = [&scale_up("once", "2")[..], &["-e", "OTTO_RETRY_LIMIT=0"]].concat();
    cell.ask(0, &once);
    cell.ask(0, &scale_up("more", "2"));
    wait_for("their workers' starts are stored", SOON, || {
        let tasks = cell.cluster.json(&["-n", "unseen", "get", "workertasks"]);
        let tasks = tasks["items"].as_array().unwrap().clone();
        let stored = |t: &Value| t["status"]["counts"]["running"] == 2;
        tasks.iter().all(stored).then_some(())
    });
    for replica in &mut cell.replicas {
        replica.signal("KILL");
        replica.wait_exit();
    }
    let force = ["--force", "--grace-period=0", "--all"];
    cell.cluster
        .kubectl(&[&["-n", "unseen", "delete", "pods"], &force[..]].concat());
    cell.replicas.clear();
    cell.start_replicas();
    let began = Instant::now();
    let status = |task: &str| cell.ask(0, &["status", task]);
    let every = |task: &str, is: &dyn Fn(&Value) -> bool| {
        let workers = status(task)["workers"].as_array().unwrap().clone();
        (workers.len() == 2 && workers.iter().all(is)).then_some(())
    };
    wait_for("the one without retries fails as lost", CLEANED, || {
        every("once", &|w| {
            w["status"] == "Failed" && w["error"].as_str().unwrap().contains("Lost")
        })
    });
    wait_for("the other's workers run again", CLEANED, || {
        every("more", &|w| w["attempt"] == 2 && w["status"] == "Running")
    });
    println!("known and tried again after {:.1?}", began.elapsed());
    assert!(began.elapsed() < CLEANED);
    wait_for("FAILED is told", SOON, || {
        (cell.notified("otto-agent-once-1").last()? == "FAILED").then_some(())
    });
    cell.audit("once", 2, 1);
    cell.audit("more", 4, 2);
}

/// What holds `what` up, by kind and name, in a namespace that should be empty.
fn left_in(cell: &Cell, kinds: &str) -> Vec<Value> {
    let list = cell.cluster.json(&["-n", &cell.namespace, "get", kinds]);
    list["items"].as_array().unwrap().clone()
}

/// Names of the chart's objects outside the namespace.
fn outside(cell: &Cell) -> String {
    let kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings,flowschemas";
    let names = cell.cluster.kubectl(&["get", kinds, "-o", "name"]);
    let ours = names
        .lines()
        .filter(|n| n.contains(&format!("/{}.", cell.namespace)));
    ours.collect::<Vec<_>>().join(" ")
}

#[test]
fn an_uninstall_with_tasks_running_leaves_nothing_stuck() {
    let mut cell = Cell::start("uninst", QUICK);
    cell.ask(0, &scale_up("stays", "5"));
    wait_for("they run", SOON, || {
        (cell.ask(0, &["status", "stays"])["running"] == 5).then_some(())
    });
    assert!(!outside(&cell).is_empty());
    cell.cluster
        .run(&["helm", "uninstall", "ottoscaler", "-n", "uninst", "--wait"]);
    // What keeps the API server following Leases.
    let kept = outside(&cell);
    let follows = kept.split(' ').filter(|n| n.ends_with("-follows-leases"));
    assert_eq!((follows.count(), kept.split(' ').count()), (2, 2), "{kept}");
    // As the Deployment's end would do it; by now without any right.
    for replica in &mut cell.replicas {
        replica.signal("TERM");
    }
    for replica in &mut cell.replicas {
        replica.wait_exit();
    }
    let (tasks, pods) = (left_in(&cell, "workertasks"), left_in(&cell, "pods"));
    assert_eq!((tasks.len(), pods.len()), (1, 5));
    for object in tasks.iter().chain(&pods) {
        assert!(object["metadata"]["finalizers"].is_null(), "{object}");
    }
    cell.cluster.kubectl(&[
        "-n",
        "uninst",
        "delete",
        "workertasks",
        "--all",
        "--timeout=60s",
    ]);
    wait_for("nothing is left", CLEANED, || {
        left_in(&cell, "workertasks,pods").is_empty().then_some(())
    });
    cell.cluster
        .kubectl(&["delete", "namespace", "uninst", "--timeout=60s"]);
}

/// The API server must still follow Leases, though for a while no fence was there.
#[test]
fn what_is_installed_again_is_not_judged_by_the_lease_of_before() {
    let scales_up = |task| {
        let cell = Cell::start("again", QUICK);
        // What other tests left would do as well.
        let bindings = "validatingadmissionpolicybindings";
        let all = cell.cluster.kubectl(&["get", bindings, "-o", "name"]);
        for other in all.lines().filter(|name| !name.contains("/again.")) {
            cell.cluster.kubectl(&["delete", other]);
        }
        let answer = cell.ask(0, &scale_up(task, "2"));
        assert_eq!(answer["status"], "SUCCESS", "{answer}");
    };
    scales_up("first");
    // The end of the cell uninstalled it.
    Cluster::from_env("OTTO_TEST_FAKE").kubectl(&[
        "delete",
        "namespace",
        "again",
        "--ignore-not-found",
        "--timeout=60s",
    ]);
    // The API server looks for bindings each second.
    pass(Duration::from_secs(3));
    scales_up("again");
}

#[test]
fn a_namespace_deleted_with_tasks_running_ends_and_no_replica_does() {
    let mut cell = Cell::start("nsgone", QUICK);
    cell.ask(0, &scale_up("runs", "5"));
    wait_for("they run", SOON, || {
        (cell.ask(0, &["status", "runs"])["running"] == 5).then_some(())
    });
    let began = Instant::now();
    cell.cluster
        .kubectl(&["delete", "namespace", "nsgone", "--timeout=60s"]);
    println!("the namespace ended after {:.1?}", began.elapsed());
    for replica in &mut cell.replicas {
        assert!(replica.is_running(), "it ended");
    }
}
