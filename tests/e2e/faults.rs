//! Leadership under attack, on the fake cluster: replicas as processes, each
//! behind a proxy that holds, loses, delays, refuses or cuts what it is told to.
//! The oracle is the API server's audit log.
mod boundaries;
mod creates;
mod picture;
mod proofs;

use std::time::Duration;

use ottoscaler::proto::{ScaleRequest, ottoscaler_service_client::OttoscalerServiceClient};
use ottoscaler_partners::audit::{self, Audit};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::{
    processes::{Cell, SOON},
    proxy::{Fault, Rule},
    support::{is_full, pass, wait_for},
};

pub const QUICK: &[(&str, &str)] = &[("LOG_DRAIN_TIMEOUT", "1s")];
/// A lease, and what a loaded machine adds to it.
const TAKEOVER: Duration = Duration::from_secs(30);

/// More than the leader creates at once when it begins.
const WORKERS: usize = 150;
/// The least that is in flight (`workers/tuning.rs`); other classes have slots as well.
const AT_ONCE: usize = 4;
const BY_CLOCK: &str = "ottoscaler_refused_writes_total{wall=\"Clock\"} ";

/// Clients of one replica; what they ask while it stands still waits in its
/// sockets, and is what it does first when it wakes.
struct Callers {
    runtime: tokio::runtime::Runtime,
    clients: Vec<OttoscalerServiceClient<Channel>>,
}

/// Each on a connection of its own; some must come before the demotion does.
const CALLS: usize = 40;

impl Callers {
    fn connect(address: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let clients = (0..CALLS).map(|_| {
            let connect = OttoscalerServiceClient::connect(format!("http://{address}"));
            runtime.block_on(connect).unwrap()
        });
        Self {
            clients: clients.collect(),
            runtime,
        }
    }

    /// ScaleUps of one worker each.
    fn call(&self) -> JoinSet<bool> {
        let mut calls = JoinSet::new();
        for n in 0..CALLS {
            let mut client = self.clients[n].clone();
            let request = ScaleRequest {
                task_id: format!("stop-wait-{n}"),
                worker_count: 1,
                ..Default::default()
            };
            let call = async move {
                let answer = client.scale_up(request).await;
                answer.is_ok_and(|a| a.into_inner().worker_pod_names.len() == 1)
            };
            calls.spawn_on(call, self.runtime.handle());
        }
        calls
    }

    /// How many were answered well.
    fn answers(&self, calls: JoinSet<bool>) -> usize {
        let answers = self.runtime.block_on(calls.join_all());
        answers.into_iter().filter(|is_good| *is_good).count()
    }
}

/// As otto-handler does it: what was answered in part is asked for again.
pub fn scale_up(cell: &Cell, replica: usize, task: &str, workers: usize) -> Value {
    let workers = workers.to_string();
    let args = [
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
    wait_for("each worker is answered for", 2 * TAKEOVER, || {
        let answer = cell.ask(replica, &args);
        (answer["status"] != "PARTIAL_SUCCESS").then_some(answer)
    })
}

pub fn new_holder(cell: &Cell, old: &str) -> String {
    wait_for("another holder", TAKEOVER, || {
        cell.holder().filter(|h| h != old)
    })
}

/// The log's word on this cell's writes; `task` narrows the pods.
pub fn judge(cell: &Cell, task: Option<&str>) -> Audit {
    judge_from(cell, cell.audit_from, task)
}

/// The same of what the log has from this byte on.
fn judge_from(cell: &Cell, from: u64, task: Option<&str>) -> Audit {
    let log = cell.cluster.audit_since(from);
    let user = format!("system:serviceaccount:{}:ottoscaler", cell.namespace);
    let audit = audit::read(&log, &user, task);
    assert!(audit.faults.is_empty(), "{:#?}", audit.faults);
    audit
}

/// Each worker created, once. The log may be a moment behind the answer.
fn judge_created(cell: &Cell, task: &str, workers: usize) -> Audit {
    wait_for("each create is in the audit log", SOON, || {
        let audit = judge(cell, Some(task));
        (audit.creates.len() >= workers).then_some(())
    });
    let audit = judge(cell, Some(task));
    assert_eq!(audit.creates.len(), workers, "{:?}", audit.creates);
    audit
}

/// And by writes of at least two terms.
fn judge_task(cell: &Cell, task: &str, workers: usize) -> Audit {
    let audit = judge_created(cell, task, workers);
    assert!(audit.terms.len() >= 2, "one term only: {:?}", audit.terms);
    audit
}

pub fn no_longer_leads(cell: &mut Cell, replica: usize) {
    wait_for("the old leader knows", TAKEOVER, || {
        (cell.replicas[replica].metric("ottoscaler_leader ") == 0.0).then_some(())
    });
    assert!(cell.replicas[replica].is_running(), "it ended");
}

/// Its writes are on their way, and more wait to be sent: policy and version have to
/// stop some. Whether its work still runs when its clock is over is chance here (it
/// is told at the same moment); `after_a_saturated_runtime_the_clock_stops_the_write`
/// makes sure that it does.
#[test]
fn a_leader_stopped_in_a_scale_up_changes_nothing_when_it_wakes() {
    let mut cell = Cell::proxied("stop-up", QUICK);
    let (old, holder) = (cell.leader().unwrap(), cell.holder().unwrap());
    let other = (old + 1) % 3;
    scale_up(&cell, other, "stop-first", 3);
    let (creates, changes) = (0, 1);
    cell.proxies[old].set(vec![
        Rule::on("POST", "/pods", Fault::Hold),
        Rule::on("PATCH", "/workertasks/", Fault::Hold),
    ]);
    for n in 1..=3 {
        cell.succeed(&format!("otto-agent-stop-first-{n}"));
    }
    let callers = Callers::connect(&cell.replicas[old].address);
    let waiting = std::thread::scope(|s| {
        let ask = s.spawn(|| scale_up(&cell, other, "stop-up", WORKERS));
        // Each has its deadline: what was held is not held for ever.
        wait_for("a status write and creates are held", SOON, || {
            let proxy = &cell.proxies[old];
            (proxy.held_by(changes) > 0 && proxy.held_by(creates) >= AT_ONCE).then_some(())
        });
        cell.replicas[old].signal("STOP");
        let waiting = callers.call();
        new_holder(&cell, &holder);
        let answer = ask.join().unwrap();
        assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), WORKERS);
        waiting
    });
    wait_for("all workers are created", SOON, || {
        (cell.pods("stop-up").len() == WORKERS).then_some(())
    });
    wait_for("the new leader finished the first task", SOON, || {
        (cell.ask(other, &["status", "stop-first"])["succeeded"] == 3).then_some(())
    });
    let held = cell.proxies[old].held_by(creates);
    // Now the old leader's writes arrive.
    cell.proxies[old].heal();
    let late = wait_for("the API server refuses them", SOON, || {
        let refused = judge(&cell, None).refused;
        let (_, late) = refused.iter().find(|(term, _)| term.ends_with(&holder))?;
        (late.by_policy >= held && late.by_version >= 1).then_some(*late)
    });
    cell.replicas[old].signal("CONT");
    no_longer_leads(&mut cell, old);
    // What it would have written then is made by the new leader.
    assert_eq!(callers.answers(waiting), CALLS);
    wait_for("each of them is in the audit log, once", SOON, || {
        let creates = judge(&cell, None).creates;
        let theirs = creates
            .keys()
            .filter(|pod| pod.starts_with("otto-agent-stop-wait-"));
        (theirs.count() == CALLS).then_some(())
    });
    let by_clock = cell.replicas[old].metric(BY_CLOCK);
    let audit = judge_task(&cell, "stop-up", WORKERS);
    println!(
        "of the old leader refused: {} by policy, {} by version, {by_clock} by its clock; {} terms",
        late.by_policy,
        late.by_version,
        audit.terms.len()
    );
    let all: Vec<Value> = (0..3)
        .map(|n| cell.ask(n, &["status", "stop-up"]))
        .collect();
    assert!(all.iter().all(|s| s["total"] == WORKERS), "{all:?}");
}

#[test]
fn a_leader_stopped_in_a_status_write_changes_nothing_when_it_wakes() {
    let mut cell = Cell::proxied("stop-status", QUICK);
    let (old, holder) = (cell.leader().unwrap(), cell.holder().unwrap());
    let other = (old + 1) % 3;
    scale_up(&cell, other, "stop-status", 3);
    cell.proxies[old].set(vec![Rule::on("PATCH", "/workertasks/", Fault::Hold)]);
    for n in 1..=3 {
        cell.succeed(&format!("otto-agent-stop-status-{n}"));
    }
    wait_for("a status write is held", SOON, || {
        (cell.proxies[old].held_by(0) > 0).then_some(())
    });
    cell.replicas[old].signal("STOP");
    new_holder(&cell, &holder);
    let done = || cell.ask(other, &["status", "stop-status"])["succeeded"] == 3;
    wait_for("the new leader finished the task", SOON, || {
        done().then_some(())
    });
    wait_for("finished pods are deleted", SOON, || {
        cell.pods("stop-status").is_empty().then_some(())
    });
    let before = judge(&cell, None);
    cell.proxies[old].heal();
    let late = wait_for("the late write is refused", SOON, || {
        let now = judge(&cell, None);
        let more = now.refusals + now.conflicts - before.refusals - before.conflicts;
        (more > 0).then_some(now)
    });
    println!(
        "{} refused by policy, {} by version",
        late.refusals, late.conflicts
    );
    cell.replicas[old].signal("CONT");
    no_longer_leads(&mut cell, old);
    assert_eq!(cell.ask(other, &["status", "stop-status"])["succeeded"], 3);
    judge_task(&cell, "stop-status", 3);
}

#[test]
fn a_leader_cut_off_from_the_api_server_is_replaced_and_lives_on() {
    let mut cell = Cell::proxied("cut", QUICK);
    let lease = |fault| vec![Rule::on("PATCH", "/leases/", fault)];
    let late = Duration::from_secs(9);
    let cases = [
        ("black-hole", vec![Rule::all(Fault::RequestLost)]),
        ("reset", vec![Rule::all(Fault::Reset)]),
        ("answers-lost", vec![Rule::all(Fault::AnswerLost)]),
        ("errors-500", vec![Rule::all(Fault::Status(500))]),
        ("errors-429", vec![Rule::all(Fault::Status(429))]),
        ("errors-409", vec![Rule::all(Fault::Status(409))]),
        ("renewals-late", lease(Fault::AnswerLate(late))),
        ("renewals-lost", lease(Fault::RequestLost)),
        ("renewals-reset-after", lease(Fault::ResetAfter)),
    ];
    for (name, rules) in cases {
        let holder = wait_for("a leader", SOON, || cell.holder());
        let old = cell.leader().unwrap();
        cell.proxies[old].set(rules);
        // Asked of a replica that is not cut off, while nobody knows yet.
        let answer = scale_up(&cell, (old + 1) % 3, name, 3);
        assert_eq!(
            answer["workerPodNames"].as_array().unwrap().len(),
            3,
            "{name}: {answer}"
        );
        if !name.starts_with("renewals-reset") {
            new_holder(&cell, &holder);
            no_longer_leads(&mut cell, old);
        }
        wait_for("something was cut", SOON, || {
            (cell.proxies[old].hits() > 0).then_some(())
        });
        cell.proxies[old].heal();
        wait_for("every replica tells the same again", TAKEOVER, || {
            let all: Vec<Value> = (0..3).map(|n| cell.ask(n, &["status", name])).collect();
            (all[0]["total"] == 3 && all.iter().all(|s| *s == all[0])).then_some(())
        });
        let audit = judge_created(&cell, name, 3);
        println!("{name}: ok, {} terms so far", audit.terms.len());
    }
    assert!(judge(&cell, None).terms.len() >= 5);
}

#[test]
fn a_lease_that_somebody_else_touched_ends_the_term_and_is_waited_out() {
    let mut cell = Cell::start("touched", QUICK);
    let lease = [
        "-n",
        "touched",
        "patch",
        "lease",
        "ottoscaler-leader",
        "--type=merge",
        "-p",
    ];
    let patch = |cell: &Cell, body: Value| {
        cell.cluster
            .kubectl(&[&lease[..], &[&body.to_string()]].concat());
    };
    for case in ["deleted", "emptied", "edited", "replaced"] {
        let (old, holder) = (cell.leader().unwrap(), cell.holder().unwrap());
        let began = std::time::Instant::now();
        match case {
            "emptied" => patch(&cell, json!({"spec": {"holderIdentity": ""}})),
            "edited" => patch(&cell, json!({"spec": {"holderIdentity": "stranger"}})),
            "deleted" => {
                cell.cluster
                    .kubectl(&["-n", "touched", "delete", "lease", "ottoscaler-leader"]);
            }
            _ => {
                // The same record under another uid.
                let spec = cell.lease().unwrap()["spec"].clone();
                cell.cluster
                    .kubectl(&["-n", "touched", "delete", "lease", "ottoscaler-leader"]);
                let copy = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": "ottoscaler-leader"}, "spec": spec});
                let file =
                    std::env::temp_dir().join(format!("otto-lease-{}.json", std::process::id()));
                std::fs::write(&file, copy.to_string()).unwrap();
                cell.cluster
                    .kubectl(&["-n", "touched", "create", "-f", &file.to_string_lossy()]);
                std::fs::remove_file(file).unwrap();
            }
        }
        if case != "replaced" {
            no_longer_leads(&mut cell, old);
        }
        let new = wait_for("another term", TAKEOVER, || {
            cell.holder().filter(|h| *h != holder && h != "stranger")
        });
        let waited = began.elapsed();
        println!("{case}: {new} after {waited:?}");
        // Nobody could know that no leader was left: a whole lease is waited
        // for. The copy names its old holder, which may take it by a new term.
        assert!(
            waited > Duration::from_secs(5) || case == "replaced",
            "{case}: taken after {waited:?}"
        );
        let answer = scale_up(&cell, old, case, 2);
        assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), 2);
        judge_created(&cell, case, 2);
    }
    assert!(judge(&cell, None).terms.len() >= 4);
}

#[test]
fn an_outage_of_the_api_server_ends_no_process_and_reads_are_answered() {
    let mut cell = Cell::start("outage", QUICK);
    scale_up(&cell, 0, "before", 3);
    for (n, seconds) in outages().into_iter().enumerate() {
        cell.cluster.component("kill", "apiserver");
        pass(Duration::from_secs(seconds));
        for replica in 0..3 {
            assert!(cell.replicas[replica].is_running(), "{seconds} s: it ended");
            assert!(
                cell.probe(replica, "liveness"),
                "{seconds} s: it looks dead"
            );
            assert_eq!(cell.ask(replica, &["status", "before"])["total"], 3);
        }
        let answer = std::thread::scope(|s| {
            // Asked during the outage, answered after it.
            let ask = s.spawn(|| scale_up(&cell, n % 3, &format!("during-{n}"), 2));
            cell.cluster.component("start", "apiserver");
            ask.join().unwrap()
        });
        // These end when they lose their own leases.
        for component in ["kcm", "scheduler", "kwok"] {
            cell.cluster.component("start", component);
        }
        assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), 2);
        let audit = judge_created(&cell, &format!("during-{n}"), 2);
        println!("outage of {seconds} s: {} terms so far", audit.terms.len());
    }
}

/// Seconds; the longer ones than what liveness bears of a dead election. A minute
/// only in the full run.
fn outages() -> Vec<u64> {
    if is_full() {
        vec![5, 25, 60]
    } else {
        vec![5, 25]
    }
}

#[test]
fn a_release_into_a_black_hole_is_given_up_and_the_lease_expires() {
    let mut cell = Cell::proxied("release", QUICK);
    let (old, holder) = (cell.leader().unwrap(), cell.holder().unwrap());
    cell.proxies[old].set(vec![Rule::on("PATCH", "/leases/", Fault::RequestLost)]);
    cell.replicas[old].signal("TERM");
    new_holder(&cell, &holder);
    assert_eq!(cell.replicas[old].wait_exit(), 0);
    let answer = scale_up(&cell, (old + 1) % 3, "release", 2);
    assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), 2);
    judge_created(&cell, "release", 2);
}

#[test]
fn a_new_leader_whose_watches_are_late_adopts_what_there_is() {
    let mut cell = Cell::proxied("late", QUICK);
    let (old, holder) = (cell.leader().unwrap(), cell.holder().unwrap());
    // Neither successor hears of the task: their watches of it stand still.
    for n in (0..3).filter(|n| *n != old) {
        let still = |path| Rule::on("GET", path, Fault::RequestLost);
        cell.proxies[n].set(vec![
            still("/pods?&watch=true"),
            still("/workertasks?&watch=true"),
        ]);
        cell.proxies[n].cut_streams();
    }
    scale_up(&cell, old, "late", 20);
    cell.replicas[old].signal("KILL");
    cell.replicas[old].wait_exit();
    new_holder(&cell, &holder);
    let new = cell.leader().unwrap();
    // Its word, not its watch's, is what this replica answers by.
    let again = scale_up(&cell, new, "late", 20);
    assert_eq!(again["status"], "ALREADY_PROCESSED", "{again}");
    assert_eq!(again["workerPodNames"].as_array().unwrap().len(), 20);
    assert!(cell.proxies[new].hits() > 0, "its watches were not late");
    judge_task(&cell, "late", 20);
}

#[test]
fn a_forged_hop_is_answered_not_leader() {
    let cell = Cell::start("forged", QUICK);
    let follower = (cell.leader().unwrap() + 1) % 3;
    let request = r#"{"task_id":"forged","worker_count":1}"#;
    let address = &cell.replicas[follower].address;
    let out = cell.cluster.try_run(&[
        "grpcurl",
        "-plaintext",
        "-H",
        "ottoscaler-forwarded: somebody",
        "-d",
        request,
        address,
        "ottoscaler.v1.OttoscalerService/ScaleUp",
    ]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && text.contains("Unavailable"),
        "{text}"
    );
    assert!(judge(&cell, None).creates.is_empty());
}

#[test]
fn without_a_lease_the_fence_refuses_us_and_nobody_else() {
    let cell = Cell::without_replicas("nolease", QUICK);
    assert!(cell.lease().is_none());
    let run = |user: &str, name: &str, label: &str| {
        let label = format!("--labels={label}");
        let args = [
            "kubectl",
            "--as",
            user,
            "-n",
            "nolease",
            "run",
            name,
            "--image=busybox",
            "--restart=Never",
            "--annotations=ottoscaler.io/term=some/0/body",
            &label,
        ];
        let out = cell.cluster.try_run(&args);
        (
            out.status.success(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let ours = "system:serviceaccount:nolease:ottoscaler";
    let refused = wait_for("the API server knows the fence", SOON, || {
        let (created, text) = run(ours, "forged", "ottoscaler.io/attempt=1");
        if created {
            cell.cluster
                .kubectl(&["-n", "nolease", "delete", "pod", "forged"]);
        }
        (!created).then_some(text)
    });
    assert!(refused.contains("fence"), "{refused}");
    // The Deployment's own pods, and those of the Go original.
    let replicas = "system:serviceaccount:kube-system:replicaset-controller";
    let (created, text) = run(replicas, "replica", "managed-by=ottoscaler");
    assert!(created, "{text}");
}
