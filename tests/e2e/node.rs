//! On the real node: three replica pods behind a Service, real containers, real
//! logs, Jaeger. The oracles are the printers' truth, the handler's record and the
//! API server's audit log.
mod failures;
mod foreign;
mod growth;
mod logs;
mod matrix;
mod mutated;
mod policies;
mod rollout;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::BufReader,
    path::PathBuf,
    process::Command,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use ottoscaler_partners::tail::{Tail, open_at};
use serde_json::Value;

use super::support::{Cluster, program, root, wait_for, wait_for_ok};

const NAMESPACE: &str = "ottoscaler";
const USER: &str = "system:serviceaccount:ottoscaler:ottoscaler";
const SOON: Duration = Duration::from_secs(30);
const DONE: Duration = Duration::from_secs(90);

/// The cluster with handler, truth policy and chart installed, once.
pub struct Installed {
    pub cluster: Cluster,
    service: String,
    /// Of each task, when it was first asked for.
    began: Mutex<BTreeMap<String, Began>>,
}

/// Bytes of what is of the time before: the tests leave hundreds of megabytes.
#[derive(Debug, Clone, Copy)]
struct Began {
    record: u64,
    audit: u64,
}

/// What otto-handler got for a task, and gets: it ends where nothing more has come, and
/// goes on when something has.
pub struct Record {
    tail: Tail<BufReader<File>>,
    task: String,
}

impl Iterator for Record {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        while let Some(line) = self.tail.line().unwrap() {
            let text = std::str::from_utf8(line).unwrap();
            if text.contains(&self.task) {
                return Some(serde_json::from_str(text).unwrap());
            }
        }
        None
    }
}

pub fn installed() -> &'static Installed {
    static INSTALLED: OnceLock<Installed> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let cluster = Cluster::from_env("OTTO_TEST_NODE");
        let out = Command::new(root().join("tests/e2e/install.sh"))
            .arg(&cluster.name)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "install: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let ip =
            cluster.json(&["-n", NAMESPACE, "get", "service", "ottoscaler"])["spec"]["clusterIP"]
                .clone();
        let service = format!("{}:9090", ip.as_str().unwrap());
        let began = Mutex::default();
        let installed = Installed {
            cluster,
            service,
            began,
        };
        wait_for("a leader", SOON, || installed.leader());
        installed
    })
}

impl Installed {
    pub fn ottoctl(&self, server: &str, args: &[&str]) -> Value {
        let ctl = program("ottoctl");
        let out = self
            .cluster
            .run(&[&[ctl.as_str(), "--server", server, "-o", "json"], args].concat());
        serde_json::from_str(&out).unwrap()
    }

    fn scale_up(&self, task: &str, workers: usize, env: &[(&str, String)]) -> Value {
        self.begins(task);
        let env: Vec<String> = env.iter().map(|(k, v)| format!("--env={k}={v}")).collect();
        let workers = workers.to_string();
        let mut args = vec![
            "--timeout",
            "60",
            "scale-up",
            task,
            "-n",
            &workers,
            "--repository",
            "org/repo",
            "--commit",
            "abc",
        ];
        args.extend(env.iter().map(String::as_str));
        self.ottoctl(&self.service, &args)
    }

    /// Notes that a task is asked for, if it is for the first time.
    fn begins(&self, task: &str) {
        let now = || Began {
            record: std::fs::metadata(self.record_file()).unwrap().len(),
            audit: self.cluster.audit_size(),
        };
        let mut began = self.began.lock().unwrap();
        began.entry(task.to_owned()).or_insert_with(now);
    }

    fn began(&self, task: &str) -> Began {
        *self.began.lock().unwrap().get(task).expect(task)
    }

    fn record_file(&self) -> PathBuf {
        self.truth().join("handler.jsonl")
    }

    fn record(&self, task: &str) -> Record {
        let file = open_at(&self.record_file(), self.began(task).record);
        Record {
            tail: Tail::new(file.unwrap()),
            task: task.to_owned(),
        }
    }

    /// Who holds the Lease.
    fn holder(&self) -> Option<String> {
        let lease = self.cluster.lease(NAMESPACE)?;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }

    /// The pod that does.
    pub fn leader(&self) -> Option<String> {
        let holder = self.holder()?;
        let pod = holder.split('_').next();
        pod.filter(|p| !p.is_empty()).map(str::to_owned)
    }

    fn three_replicas(&self, within: Duration) -> Vec<(String, String)> {
        wait_for("three ready replicas", within, || {
            Some(self.replicas()).filter(|r| r.len() == 3)
        })
    }

    fn wait_term_after(&self, before: &str) {
        wait_for("another term", SOON, || {
            self.holder().filter(|now| now != before).map(drop)
        });
    }

    /// Name and address of each ready replica.
    fn replicas(&self) -> Vec<(String, String)> {
        let label = "app.kubernetes.io/name";
        let pods = self.cluster.pods(NAMESPACE, label, "ottoscaler");
        let pods = pods.iter().filter_map(|p| {
            let ready = p["status"]["containerStatuses"][0]["ready"] == true;
            let name = p["metadata"]["name"].as_str()?.to_owned();
            Some((name, format!("{}:9090", p["status"]["podIP"].as_str()?))).filter(|_| ready)
        });
        pods.collect()
    }

    fn statuses(&self, task: &str) -> Vec<Value> {
        self.three_replicas(SOON)
            .iter()
            .map(|(_, address)| self.ottoctl(address, &["status", task]))
            .collect()
    }

    fn worker_pods(&self, task: &str) -> usize {
        self.cluster.pods(NAMESPACE, "task-id", task).len()
    }

    fn truth(&self) -> PathBuf {
        self.cluster.var("TRUTH").into()
    }

    /// Lines that the workers of a task printed so far.
    fn printed(&self, task: &str) -> usize {
        let files = std::fs::read_dir(self.truth())
            .unwrap()
            .filter_map(Result::ok);
        let ours = files.filter(|f| {
            f.file_name()
                .to_string_lossy()
                .starts_with(&format!("otto-agent-{task}-"))
        });
        ours.map(|f| std::fs::read_to_string(f.path()).map_or(0, |t| t.lines().count()))
            .sum()
    }

    fn wait_done(&self, task: &str, workers: u64) {
        // A node ends and removes them one after the other.
        self.wait_done_within(task, workers, DONE + Duration::from_secs(workers));
    }

    fn wait_done_within(&self, task: &str, workers: u64, within: Duration) {
        wait_for_ok("every worker succeeded", within, || {
            let status = self.ottoctl(&self.service, &["status", task]);
            let states = ["pending", "running", "succeeded", "failed"];
            let states = states.map(|state| format!("{state} {}", status[state]));
            (status["succeeded"] == workers)
                .then_some(())
                .ok_or_else(|| states.join(", "))
        });
        wait_for("worker pods deleted", within, || {
            (self.worker_pods(task) == 0).then_some(())
        });
    }

    /// Every line once and in order, every transition told.
    pub fn check_logs(&self, task: &str, workers: usize, lines: usize) {
        let verdict = self.judge_logs(task, workers, lines, &[]);
        assert_eq!(verdict["recorded"], verdict["printed"]);
    }

    /// The checker's verdict, of no fault.
    fn judge_logs(&self, task: &str, workers: usize, lines: usize, more: &[&str]) -> Value {
        let truth = self.truth();
        let out = Command::new(program("log-checker"))
            .args(["--truth", &truth.to_string_lossy()])
            .args(["--record", &self.record_file().to_string_lossy()])
            .args(["--from", &self.began(task).record.to_string()])
            .args(["--audit", &self.cluster.audit_log().to_string_lossy()])
            .args(["--audit-from", &self.began(task).audit.to_string()])
            .args(["--prefix", &format!("otto-agent-{task}-"), "--json"])
            .args([
                "--expect-workers",
                &workers.to_string(),
                "--min-lines",
                &lines.to_string(),
            ])
            .args(more)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        println!("{task}: {}", text.trim());
        serde_json::from_str(&text).unwrap()
    }

    /// How otto-handler treats its callers from now on.
    fn handler_is(&self, behaviour: &Value) {
        // It reads it at any moment.
        let new = self.truth().join("control.new");
        std::fs::write(&new, behaviour.to_string()).unwrap();
        std::fs::rename(new, self.truth().join("control.json")).unwrap();
    }

    /// One accepted create per worker, no write of an older term.
    pub fn check_audit(&self, task: &str, workers: usize, terms: usize) {
        let out = Command::new(program("audit-checker"))
            .args([
                "--log",
                &self.cluster.audit_log().to_string_lossy(),
                "--from",
                &self.began(task).audit.to_string(),
                "--user",
                USER,
                "--task",
                task,
            ])
            .args([
                "--expect-creates",
                &workers.to_string(),
                "--min-terms",
                &terms.to_string(),
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}");
        println!("{task}: {}", text.trim());
    }

    fn trace(&self, id: &str) -> Vec<Span> {
        let url = format!("{}/api/traces/{id}", self.cluster.var("JAEGER"));
        let Some(answer) = self.cluster.get(&url) else {
            return vec![];
        };
        let trace = &answer["data"][0];
        let spans = trace["spans"].as_array().cloned().unwrap_or_default();
        spans
            .iter()
            .map(|span| Span::read(span, &trace["processes"]))
            .collect()
    }

    /// SIGKILL to the leader's container, by the container runtime. A busy kubelet
    /// tells late which container a pod has.
    pub fn kill_leader(&self) -> String {
        wait_for("the leader's container is killed", SOON, || {
            let leader = self.leader()?;
            let pod = self.cluster.json(&["-n", NAMESPACE, "get", "pod", &leader]);
            let id = pod["status"]["containerStatuses"][0]["containerID"].as_str()?;
            let id = id.trim_start_matches("containerd://");
            let kill = ["ctr", "-n", "k8s.io", "tasks", "kill", "-s", "KILL", id];
            let status = self.on_node(&kill).status().unwrap();
            status.success().then_some(leader)
        })
    }

    /// A command among the node's processes.
    fn on_node(&self, args: &[&str]) -> Command {
        let mut words = self.cluster.var("NODE").split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(args);
        command
    }
}

#[derive(Debug)]
struct Span {
    id: String,
    parent: Option<String>,
    name: String,
    replica: String,
    kind: String,
}

impl Span {
    fn read(span: &Value, processes: &Value) -> Self {
        let tag = |tags: &Value, key: &str| {
            let tags = tags.as_array().cloned().unwrap_or_default();
            tags.iter()
                .find(|t| t["key"] == key)
                .map(|t| t["value"].as_str().unwrap_or_default().to_owned())
        };
        let process = &processes[span["processID"].as_str().unwrap_or_default()];
        Self {
            id: span["spanID"].as_str().unwrap_or_default().to_owned(),
            parent: span["references"][0]["spanID"].as_str().map(str::to_owned),
            name: span["operationName"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            replica: tag(&process["tags"], "k8s.pod.name").unwrap_or_default(),
            kind: tag(&span["tags"], "span.kind").unwrap_or_default(),
        }
    }
}

#[test]
fn a_scale_up_through_a_follower_runs_three_workers_to_their_end() {
    let i = installed();
    let env = [("LINES", "120".to_owned()), ("RATE", "20".to_owned())];
    // The Service picks a replica for each connection; one of these is no leader.
    let (task, trace) = (0..20)
        .find_map(|n| {
            let task = format!("follower-{n}");
            let answer = i.scale_up(&task, 3, &env);
            assert_eq!(answer["status"], "SUCCESS", "{answer}");
            assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), 3);
            let trace = answer["trace"].as_str().unwrap().to_owned();
            let server = |s: &&Span| s.kind == "server" && s.name.ends_with("/ScaleUp");
            let replicas = wait_for("the call's server spans", SOON, || {
                let spans = i.trace(&trace);
                // A forwarding replica exports its own span last.
                let forwarded = spans.iter().any(|s| s.name == "forward to leader");
                let seen: BTreeSet<String> = spans
                    .iter()
                    .filter(server)
                    .map(|s| s.replica.clone())
                    .collect();
                (!seen.is_empty()
                    && (seen.len() > 1 || !forwarded)
                    && spans.iter().any(|s| s.name == "create pod"))
                .then_some(seen)
            });
            (replicas.len() == 2).then_some((task, trace))
        })
        .expect("no call met a follower");

    // The same from all replicas, before and after deletion.
    let running = wait_for("equal answers with three running workers", SOON, || {
        let all = i.statuses(&task);
        (all.iter().all(|s| *s == all[0]) && all[0]["running"] == 3).then(|| all[0].clone())
    });
    assert_eq!(running["workers"].as_array().unwrap().len(), 3);
    i.wait_done(&task, 3);
    let after = wait_for("equal answers after deletion", SOON, || {
        let all = i.statuses(&task);
        all.iter().all(|s| *s == all[0]).then(|| all[0].clone())
    });
    assert_eq!(
        (after["succeeded"].as_u64(), after["total"].as_u64()),
        (Some(3), Some(3)),
        "{after}"
    );

    i.check_logs(&task, 3, 360);
    i.check_audit(&task, 3, 1);
    // How it came to start, by phase.
    let times: Vec<&str> = [
        "queuedAt",
        "createdAt",
        "scheduledAt",
        "preparedAt",
        "startedAt",
        "firstLineAt",
        "completedAt",
    ]
    .iter()
    .map(|key| after["workers"][0][key].as_str().unwrap())
    .collect();
    assert!(times.iter().all(|at| at.len() == 20), "{times:?}");
    assert!(times.is_sorted(), "{times:?}");

    // One connected trace: follower, leader, Kubernetes calls, forwarder.
    let spans = wait_for("the whole trace", SOON, || {
        let spans = i.trace(&trace);
        let forwards = spans
            .iter()
            .filter(|s| s.name == "forward worker logs")
            .count();
        (forwards == 3).then_some(spans)
    });
    let ids: BTreeSet<&str> = spans.iter().map(|s| s.id.as_str()).collect();
    // The client's own span is not exported; nothing else may be missing.
    let outside: BTreeSet<&str> = spans
        .iter()
        .filter_map(|s| s.parent.as_deref())
        .filter(|p| !ids.contains(p))
        .collect();
    assert!(
        outside.len() <= 1,
        "the trace has holes: {outside:?} in {spans:#?}"
    );
    for name in [
        "forward to leader",
        "create task",
        "create pod",
        "notify worker status",
        "forward worker logs",
    ] {
        assert!(spans.iter().any(|s| s.name == name), "no span {name:?}");
    }
}

#[test]
fn a_killed_leader_loses_no_line_and_makes_no_worker_twice() {
    let i = installed();
    for seed in seeds() {
        let task = format!("kill-{seed}");
        let (workers, lines) = (20, 200);
        // Between 10 and 90 % of all lines, by the seed.
        let at = workers * lines * (10 + usize::try_from(seed % 80).unwrap()) / 100;
        println!(
            "{task}: the leader is killed at {at} of {} lines",
            workers * lines
        );
        i.scale_up(
            &task,
            workers,
            &[("LINES", lines.to_string()), ("RATE", "25".to_owned())],
        );
        wait_for("lines printed", DONE, || {
            (i.printed(&task) >= at).then_some(())
        });
        let before = i.holder().unwrap();
        let killed_at = Instant::now();
        let killed = i.kill_leader();
        i.wait_term_after(&before);
        println!(
            "{task}: {killed} killed, a new term after {} ms",
            killed_at.elapsed().as_millis()
        );
        i.wait_done(&task, 20);
        i.check_logs(&task, workers, workers * lines);
        i.check_audit(&task, workers, 2);
        i.three_replicas(DONE);
    }
}

/// OTTO_TEST_SEEDS, or three of the clock's; printed with each run.
fn seeds() -> Vec<u64> {
    match std::env::var("OTTO_TEST_SEEDS") {
        Ok(text) => text.split(',').map(|s| s.parse().unwrap()).collect(),
        Err(_) => {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap();
            let first = u64::from(now.subsec_micros());
            vec![first, first + 27, first + 54]
        }
    }
}

#[test]
fn the_fence_refuses_whoever_does_not_hold_the_lease() {
    let i = installed();
    let policies = i
        .cluster
        .kubectl(&["get", "validatingadmissionpolicybindings", "-o", "name"]);
    assert!(
        policies.contains("ottoscaler.ottoscaler-fence"),
        "{policies}"
    );
    let out = i.cluster.try_run(&[
        "kubectl",
        "--as",
        USER,
        "-n",
        NAMESPACE,
        "run",
        "forged",
        "--image=busybox",
        "--restart=Never",
        "--labels=ottoscaler.io/attempt=1",
        "--annotations=ottoscaler.io/term=some/0/body",
    ]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && text.contains("ottoscaler fence"),
        "{text}"
    );
}
