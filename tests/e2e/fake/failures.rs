//! The rest of the failure matrix: what the API server, the scheduler and the node
//! controller say. Nobody runs these pods; their states are put in by the test.
use serde_json::{Value, json};

use super::{Cell, QUICK, SOON, apply, scale_up, wait_for};

fn worker(cell: &Cell, task: &str) -> Value {
    cell.ask(0, &["status", task])["workers"][0].clone()
}

#[test]
fn beyond_a_quota_workers_wait_and_start_when_there_is_room() {
    let cell = Cell::start("quota", QUICK);
    apply(
        &cell,
        &json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}),
    );
    wait_for("the quota is counted", SOON, || {
        let quota = cell
            .cluster
            .json(&["-n", "quota", "get", "resourcequota", "few"]);
        (quota["status"]["hard"]["pods"] == "2").then_some(())
    });
    let answer = cell.ask(1, &scale_up("quota", "4"));
    assert_eq!(answer["status"], "PARTIAL_SUCCESS", "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("2 of 4") && message.contains("quota"),
        "{message}"
    );
    assert_eq!(cell.ask(2, &["status", "quota"])["failed"], 0);
    // Which two had room is chance.
    for pod in cell.pods("quota") {
        cell.succeed(pod["metadata"]["name"].as_str().unwrap());
    }
    wait_for("the others have started", SOON, || {
        let status = cell.ask(0, &["status", "quota"]);
        (status["succeeded"] == 2 && status["running"] == 2).then_some(())
    });
    cell.audit("quota", 4, 1);
}

#[test]
fn what_admission_refuses_fails_with_its_reason() {
    let cell = Cell::start("refused", QUICK);
    apply(
        &cell,
        &json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"},
            "spec": {"limits": [{"type": "Container", "max": {"cpu": "100m"}}]}}),
    );
    let answer = cell.ask(1, &scale_up("refused", "1"));
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("maximum cpu usage"), "{answer}");
    let end = wait_for("it failed", SOON, || {
        Some(worker(&cell, "refused")).filter(|w| w["status"] == "Failed")
    });
    assert!(
        end["error"].as_str().unwrap().contains("maximum cpu"),
        "{end}"
    );
    wait_for("FAILED is told", SOON, || {
        (cell.notified("otto-agent-refused-1").last()? == "FAILED").then_some(())
    });
    assert!(cell.pods("refused").is_empty());
}

/// The real scheduler makes room for a pod that matters more.
#[test]
fn a_preempted_worker_is_tried_again() {
    let settings = [("MAX_WORKER_CPU", "1000000"), QUICK[0]];
    let cell = Cell::start("preempt", &settings);
    let nodes = cell.cluster.json(&["get", "nodes"]);
    let cpus = nodes["items"][0]["status"]["allocatable"]["cpu"]
        .as_str()
        .unwrap()
        .to_owned();
    let most = cpus.trim_end_matches('k').parse::<u64>().unwrap()
        * if cpus.ends_with('k') { 1_000 } else { 1 }
        * 6
        / 10;
    let (limit, request) = (
        format!("OTTO_CPU_LIMIT={most}"),
        format!("OTTO_CPU_REQUEST={most}"),
    );
    apply(
        &cell,
        &json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "otto-test-urgent"}, "value": 1000}),
    );
    // On every node one, so that there is no room left.
    let count = nodes["items"].as_array().unwrap().len();
    let all = count.to_string();
    let args = [
        &scale_up("preempt", &all)[..],
        &["-e", &limit, "-e", &request],
    ]
    .concat();
    cell.ask(0, &args);
    wait_for("they run", SOON, || {
        (cell.ask(0, &["status", "preempt"])["running"] == count).then_some(())
    });
    apply(
        &cell,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "urgent"}, "spec": {
            "priorityClassName": "otto-test-urgent",
            "containers": [{"name": "c", "image": "none", "resources": {"requests": {"cpu": most.to_string()}}}]}}),
    );
    let again = wait_for("a worker's second attempt", SOON, || {
        let status = cell.ask(1, &["status", "preempt"]);
        let workers = status["workers"].as_array().unwrap().clone();
        workers.into_iter().find(|w| w["attempt"] == 2)
    });
    assert_eq!(again["status"], "Pending", "{again}");
    cell.cluster
        .kubectl(&["-n", "preempt", "delete", "pod", "urgent", "--wait=false"]);
    cell.cluster
        .kubectl(&["delete", "priorityclass", "otto-test-urgent"]);
    wait_for("it runs again", SOON, || {
        (cell.ask(0, &["status", "preempt"])["running"] == count).then_some(())
    });
    let audit = cell.audit_log();
    assert!(
        audit
            .lines()
            .any(|l| l.contains("PreemptionByScheduler") && l.contains("otto-agent-preempt-")),
        "the scheduler preempted nothing"
    );
    cell.audit("preempt", count + 1, 1);
}

/// Nodes are silent, and the node controller gives them up after 40 s, as on the
/// real node, not after minutes. Undone when it goes, also when the test fails.
struct Silence<'a> {
    cell: &'a Cell,
    /// How the controller manager was started.
    command: (std::path::PathBuf, Vec<u8>),
}

impl<'a> Silence<'a> {
    fn fall(cell: &'a Cell) -> Self {
        let path = std::path::Path::new(cell.cluster.var("COMPONENTS")).join("kcm");
        let usual = std::fs::read(&path).unwrap();
        let hasty = b"--node-monitor-period=2s\0--node-monitor-grace-period=40s\0";
        let silence = Self {
            cell,
            command: (path, usual.clone()),
        };
        silence.restart([&usual[..], hasty].concat());
        cell.cluster.component("pause", "kwok");
        silence
    }

    fn restart(&self, command: Vec<u8>) {
        self.cell.cluster.component("kill", "kcm");
        std::fs::write(&self.command.0, command).unwrap();
        self.cell.cluster.component("start", "kcm");
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        self.restart(self.command.1.clone());
        self.cell.cluster.component("resume", "kwok");
    }
}

/// The node controller says that a node is lost; nobody can say that its worker
/// has ended.
#[test]
fn a_lost_node_is_told_and_its_worker_fails_after_the_timeout() {
    let cell = Cell::start("lost", &[("NODE_LOST_TIMEOUT", "5s"), QUICK[0]]);
    cell.ask(0, &scale_up("lost", "1"));
    wait_for("it runs", SOON, || {
        (worker(&cell, "lost")["status"] == "Running").then_some(())
    });
    let silent = Silence::fall(&cell);
    let told = wait_for("the loss is told", 4 * SOON, || {
        let w = worker(&cell, "lost");
        w["error"]
            .as_str()
            .unwrap()
            .contains("NodeLost")
            .then_some(w)
    });
    println!("told: {}", told["error"]);
    let end = wait_for("it failed", SOON, || {
        Some(worker(&cell, "lost")).filter(|w| w["status"] == "Failed")
    });
    assert_eq!(
        end["attempt"], 1,
        "tried again while it may still run: {end}"
    );
    drop(silent);
    wait_for("the nodes are back", 4 * SOON, || {
        let nodes = cell.cluster.kubectl(&[
            "get",
            "nodes",
            "-o",
            "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}",
        ]);
        nodes.split(' ').all(|ready| ready == "True").then_some(())
    });
    cell.audit("lost", 1, 1);
}
