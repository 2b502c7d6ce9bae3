//! The ways to fail, where the kubelet makes the status. All tasks of a matrix start at
//! once, and each test waits for its own. That it was the kubelet's word is told by the
//! audit log: `system:node:…` wrote the status.
use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use serde_json::Value;

use super::{Installed, NAMESPACE, SOON, wait_for};

/// A pull is given up after 45 s; a full volume is noticed within 15 s.
pub(super) const IN_THE_END: Duration = Duration::from_secs(150);

/// A worker that runs until it is told to end: the test that ends it may come late in the
/// lane.
pub(super) const WAITS: &str = "trap 'exit 143' TERM; sleep 86400 & wait";

type Env = Vec<(&'static str, String)>;

/// Tasks that fail, each in its way, under ids that begin alike.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub i: &'static Installed,
    pub prefix: &'static str,
}

/// How a worker's end must look.
#[derive(Default)]
pub(super) struct End<'a> {
    /// Words of the status, and of what otto-handler is told.
    pub reason: &'a str,
    pub exit_code: Option<i64>,
    pub lines: Lines<'a>,
    /// What the kubelet wrote into the pod's status.
    pub kubelet: &'a str,
}

/// What otto-handler has of the task's output.
#[derive(Default)]
pub(super) enum Lines<'a> {
    #[default]
    None,
    /// Some lines, all of this container.
    Of(&'a str),
    /// Perhaps some lines, all of this container.
    AtMostOf(&'a str),
}

/// A worker whose command is a line for the shell.
pub(super) fn shell(line: &str) -> Env {
    vec![
        ("OTTO_IMAGE", "busybox".to_owned()),
        ("OTTO_COMMAND", line.to_owned()),
    ]
}

pub(super) fn with(mut env: Env, key: &'static str, value: &str) -> Env {
    env.push((key, value.to_owned()));
    env
}

fn tasks() -> Vec<(&'static str, Env)> {
    let full = "echo fills it; dd if=/dev/zero of=/workspace/f bs=1M count=8; sleep 600";
    let start = vec![("OTTO_COMMAND", r#"["/no/such/program"]"#.to_owned())];
    let pull = vec![("OTTO_IMAGE", "localhost:1/none:1".to_owned())];
    let nowhere = "kubernetes.io/arch=none";
    vec![
        ("exit", shell("echo ends; exit 7")),
        ("oom", out_of_memory()),
        ("evict", with(shell(full), "OTTO_WORKSPACE_SIZE", "1Mi")),
        ("pull", pull),
        (
            "deadline",
            with(shell("echo waits; sleep 600"), "OTTO_TIMEOUT", "10s"),
        ),
        ("deleted", shell(WAITS)),
        ("vanished", shell(WAITS)),
        ("init", shell("exit 0")),
        ("start", start),
        (
            "stuck",
            with(shell("exit 0"), "OTTO_NODE_SELECTOR", nowhere),
        ),
    ]
}

fn out_of_memory() -> Env {
    with(
        shell("echo eats; tail /dev/zero"),
        "OTTO_MEMORY_LIMIT",
        "16Mi",
    )
}

impl Matrix {
    /// Asks for all of them.
    pub fn start(self) {
        for (name, env) in &tasks() {
            let answer = self.scale_up(name, env);
            assert_eq!(answer["status"], "SUCCESS", "{name}: {answer}");
        }
    }

    pub fn scale_up(self, name: &str, env: &Env) -> Value {
        self.i.scale_up(&self.task(name), 1, env)
    }

    pub fn task(self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn worker(self, name: &str) -> Value {
        let task = self.task(name);
        let status = self.i.ottoctl(&self.i.service, &["status", &task]);
        status["workers"][0].clone()
    }

    /// Waits for the worker to fail for good.
    pub fn failed(self, name: &str) -> Value {
        let end = wait_for(&format!("{name} fails"), IN_THE_END, || {
            Some(self.worker(name)).filter(|w| w["status"] == "Failed")
        });
        let task = self.task(name);
        println!("{task}: {}, exit {}", end["error"], end["exitCode"]);
        let told = self.notified(name, "FAILED");
        let attempt = end["attempt"].to_string();
        assert_eq!(told["attempt"].as_str().unwrap(), attempt);
        end
    }

    /// The worker fails at its first try, and everybody is told alike.
    pub fn fails_once(self, name: &str, expected: &End<'_>) {
        let end = self.failed(name);
        let error = end["error"].as_str().unwrap();
        assert!(error.contains(expected.reason), "{end}");
        assert_eq!(end["attempt"], 1, "{end}");
        if expected.exit_code.is_some() {
            assert_eq!(end["exitCode"].as_i64(), expected.exit_code, "{end}");
            let told = self.notified(name, "FAILED")["exit-code"].clone();
            assert_eq!(told, end["exitCode"].to_string());
        }
        let told = self.told(name, "FAILED");
        let reason = told["reason"].as_str().unwrap();
        assert!(reason.contains(expected.reason), "{told}");
        self.kubelet_said(name, expected.kubelet);
        self.i.check_audit(&self.task(name), 1, 1);
        self.has_lines(name, &expected.lines);
        let ends: Vec<String> = self.states(name);
        let ends: Vec<&str> = ends
            .iter()
            .map(String::as_str)
            .filter(|s| !["CREATED", "RUNNING"].contains(s))
            .collect();
        assert_eq!(ends, ["FAILED"], "{name}: how it ended is told once");
    }

    fn has_lines(self, name: &str, expected: &Lines<'_>) {
        let task = self.task(name);
        wait_for(&format!("{name}: its pods are gone"), SOON, || {
            (self.i.worker_pods(&task) == 0).then_some(())
        });
        let logs = self.i.record(&task).filter(|r| r["kind"] == "log");
        let containers: BTreeSet<String> = logs
            .map(|l| l["metadata"]["container"].as_str().unwrap().to_owned())
            .collect();
        let all_of = |name: &str| containers.iter().all(|c| c == name);
        let are = match expected {
            Lines::None => containers.is_empty(),
            Lines::Of(container) => all_of(container) && !containers.is_empty(),
            Lines::AtMostOf(container) => all_of(container),
        };
        assert!(are, "{name}: otto-handler has lines of {containers:?}");
    }

    /// The states that otto-handler was told of the task, each event once.
    fn states(self, name: &str) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let notes = self.i.record(&self.task(name));
        let notes = notes.filter(|r| r["kind"] == "notify");
        let notes = notes.filter(|r| seen.insert(r["metadata"]["event-id"].to_string()));
        notes
            .map(|n| n["status"].as_str().unwrap().to_owned())
            .collect()
    }

    pub fn runs(self, name: &str, attempt: u64) {
        let what = format!("{name}: attempt {attempt} runs");
        wait_for(&what, IN_THE_END, || {
            let w = self.worker(name);
            (w["attempt"] == attempt && w["status"] == "Running").then_some(())
        });
    }

    fn cancel(self, name: &str) {
        let task = self.task(name);
        self.i.ottoctl(&self.i.service, &["cancel", &task]);
        wait_for("its pods are gone", IN_THE_END, || {
            (self.i.worker_pods(&task) == 0).then_some(())
        });
    }

    /// The metadata of a notification of a task's worker.
    fn notified(self, name: &str, status: &str) -> Value {
        self.told(name, status)["metadata"].clone()
    }

    /// What otto-handler recorded of it.
    pub fn told(self, name: &str, status: &str) -> Value {
        wait_for(&format!("{name}: {status} told"), SOON, || {
            let mut records = self.i.record(&self.task(name));
            records.find(|r| r["kind"] == "notify" && r["status"] == status)
        })
    }

    /// Whether the kubelet itself wrote this into the status of the task's pod.
    pub fn kubelet_said(self, name: &str, what: &str) {
        wait_for(&format!("the kubelet's {what} of {name}"), SOON, || {
            self.kubelets_word(name, what)
        });
    }

    /// When the kubelet first wrote this into the status of a pod of the task.
    pub fn kubelets_word(self, name: &str, what: &str) -> Option<Timestamp> {
        let task = self.task(name);
        let log = self.i.cluster.audit_since(self.i.began(&task).audit);
        let pods = format!("otto-agent-{task}-");
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
}

/// The rows.
impl Matrix {
    pub fn exit_code(self) {
        self.fails_once(
            "exit",
            &End {
                reason: "Error",
                exit_code: Some(7),
                lines: Lines::Of("worker"),
                kubelet: "\"exitCode\":7",
            },
        );
    }

    /// containerd may tell that a container was killed before it tells why; the kubelet then
    /// says Error, and so do we.
    pub fn out_of_memory(self) {
        let tries = ["oom", "oom2", "oom3"].into_iter().find(|name| {
            if *name != "oom" {
                self.scale_up(name, &out_of_memory());
            }
            let end = self.failed(name);
            let is_why = end["error"].as_str().unwrap().contains("OOMKilled");
            assert!(
                is_why || self.kubelets_word(name, "OOMKilled").is_none(),
                "the kubelet said why: {end}"
            );
            is_why
        });
        self.fails_once(
            tries.expect("OOMKilled, of three"),
            &End {
                reason: "OOMKilled",
                exit_code: Some(137),
                lines: Lines::Of("worker"),
                kubelet: "OOMKilled",
            },
        );
    }

    /// By the kubelet, for a volume over its size: it would be full again.
    pub fn evicted_for_its_own_volume(self) {
        self.fails_once(
            "evict",
            &End {
                reason: "Evicted",
                lines: Lines::Of("worker"),
                kubelet: "Evicted",
                ..End::default()
            },
        );
    }

    pub fn pull(self) {
        let end = self.failed("pull");
        assert!(
            end["error"]
                .as_str()
                .unwrap()
                .contains("localhost:1/none:1"),
            "{end}"
        );
        self.fails_once(
            "pull",
            &End {
                reason: "ImagePull",
                kubelet: "ImagePull",
                ..End::default()
            },
        );
    }

    pub fn deadline(self) {
        self.fails_once(
            "deadline",
            &End {
                reason: "DeadlineExceeded",
                // A busy node may not have started it by then.
                lines: Lines::AtMostOf("worker"),
                kubelet: "DeadlineExceeded",
                ..End::default()
            },
        );
    }

    pub fn start_error(self) {
        self.fails_once(
            "start",
            &End {
                reason: "StartError",
                kubelet: "StartError",
                ..End::default()
            },
        );
    }

    /// The init container of this name is one that a policy put there, and exits 3.
    pub fn init_container(self, container: &str, lines: Lines<'_>) {
        let end = self.failed("init");
        assert!(end["error"].as_str().unwrap().contains(container), "{end}");
        self.fails_once(
            "init",
            &End {
                reason: "Init:Error",
                exit_code: Some(3),
                lines,
                kubelet: "\"exitCode\":3",
            },
        );
    }

    pub fn nobody_schedules(self) {
        let waits = wait_for("the reason", SOON, || {
            Some(self.worker("stuck")).filter(|w| w["error"] != "")
        });
        assert_eq!(waits["status"], "Pending");
        assert!(
            waits["error"].as_str().unwrap().contains("Unschedulable"),
            "{waits}"
        );
        self.cancel("stuck");
        assert_eq!(self.notified("stuck", "TERMINATED")["attempt"], "1");
    }

    pub fn deleted_by_hand(self) {
        self.runs("deleted", 1);
        self.delete_pod("deleted", &["--grace-period=1"]);
        self.runs("deleted", 2);
        self.i.check_audit(&self.task("deleted"), 2, 1);
        self.cancel("deleted");
    }

    pub fn vanished(self) {
        self.runs("vanished", 1);
        self.delete_pod("vanished", &["--force", "--grace-period=0"]);
        self.runs("vanished", 2);
        self.cancel("vanished");
        assert_eq!(self.worker("vanished")["status"], "Failed");
    }

    fn delete_pod(self, name: &str, how: &[&str]) {
        let pod = format!("otto-agent-{}-1", self.task(name));
        let delete = ["-n", NAMESPACE, "delete", "pod", &pod, "--wait=false"];
        self.i.cluster.kubectl(&[&delete, how].concat());
    }
}

pub(super) fn time(text: &Value) -> Timestamp {
    text.as_str().unwrap().parse().unwrap()
}
