//! Renewals while our own traffic saturates its place in the API server.
use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinSet};

use super::{
    contenders::{client, runtime},
    faults::scale_up,
    processes::{Cell, SOON},
    support::{Cluster, count_of, pass, program, wait_for},
};

const LEASE_DURATION: Duration = Duration::from_secs(6);
/// Calls that our ServiceAccount keeps under way, beside the leader's.
const CALLS: usize = 150;
const LEVEL: &str = "otto-test-saturated";

/// A small priority level for all that the cell's ServiceAccount does, behind the
/// chart's own schema; goes with the test.
struct Bottleneck<'a>(&'a Cluster);

impl<'a> Bottleneck<'a> {
    fn before(cell: &'a Cell) -> Self {
        let level = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": LEVEL},
            "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "lendablePercent": 0,
                "borrowingLimitPercent": 0, "limitResponse": {"type": "Queue",
                    "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 1000}}}}});
        let schema = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
            "metadata": {"name": LEVEL},
            "spec": {"priorityLevelConfiguration": {"name": LEVEL}, "matchingPrecedence": 200,
                "rules": [{
                    "subjects": [{"kind": "ServiceAccount",
                        "serviceAccount": {"namespace": cell.namespace, "name": "ottoscaler"}}],
                    "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                        "namespaces": ["*"], "clusterScope": true}]}]}});
        let file = cell.dir().join("bottleneck.json");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [level, schema]});
        std::fs::write(&file, list.to_string()).unwrap();
        let bottleneck = Self(&cell.cluster);
        cell.cluster
            .kubectl(&["apply", "-f", &file.to_string_lossy()]);
        bottleneck
    }
}

impl Drop for Bottleneck<'_> {
    fn drop(&mut self) {
        for kind in ["flowschema", "prioritylevelconfiguration"] {
            let _ = self.0.try_run(&["kubectl", "delete", kind, LEVEL]);
        }
    }
}

/// The sum of a metric's series that have all these labels.
fn sum(cluster: &Cluster, name: &str, labels: &[(&str, &str)]) -> f64 {
    let text = cluster.kubectl(&["get", "--raw", "/metrics"]);
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
    let series = text
        .lines()
        .filter(|l| l.strip_prefix(name).is_some_and(|l| l.starts_with('{')));
    series
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Keeps calls under way until dropped.
fn saturate(runtime: &Runtime, kubeconfig: &str, namespace: &str) -> JoinSet<()> {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let client: Client = runtime.block_on(client(kubeconfig));
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let mut all = JoinSet::new();
    for _ in 0..CALLS {
        let pods = pods.clone();
        let call = async move {
            loop {
                let made = MADE.fetch_add(1, Ordering::Relaxed);
                let pod = json!({"metadata": {"name": format!("load-{made}")},
                    "spec": {"containers": [{"name": "worker", "image": "busybox"}]}});
                let params = PostParams {
                    dry_run: true,
                    ..PostParams::default()
                };
                let pod = serde_json::from_value(pod).unwrap();
                let _ = pods.create(&params, &pod).await;
                // So that it can be dropped, even where calls fail at once.
                tokio::task::yield_now().await;
            }
        };
        all.spawn_on(call, runtime.handle());
    }
    all
}

/// What the audit log says of one renewal.
struct Renewal {
    received: Timestamp,
    took: Duration,
    accepted: bool,
}

fn renewals(cell: &Cell, since: Timestamp) -> Vec<Renewal> {
    let user = format!("system:serviceaccount:{}:ottoscaler", cell.namespace);
    let time =
        |event: &Value, key: &str| -> Timestamp { event[key].as_str().unwrap().parse().unwrap() };
    let ours = cell.audited(&user).into_iter().filter(|e| {
        e["user"]["username"] == *user
            && e["objectRef"]["resource"] == "leases"
            && e["verb"] == "patch"
    });
    let mut all: Vec<Renewal> = ours
        .map(|e| {
            let (received, end) = (
                time(&e, "requestReceivedTimestamp"),
                time(&e, "stageTimestamp"),
            );
            Renewal {
                received,
                took: end.duration_since(received).try_into().unwrap_or_default(),
                accepted: e["responseStatus"]["code"] == 200,
            }
        })
        .filter(|r| r.received >= since)
        .collect();
    all.sort_by_key(|r| r.received);
    all
}

/// What was seen of renewals in a time of saturation.
#[derive(Debug)]
struct Seen {
    accepted: usize,
    refused: usize,
    worst: Duration,
    /// The longest time without an accepted one.
    gap: Duration,
    transitions: i64,
    least_queued: f64,
    most_queued: f64,
    rejected: f64,
}

impl Seen {
    fn tell(&self, when: &str) {
        println!(
            "{when}: {} renewals accepted, {} refused, the slowest {:.3} s, at most {:.3} s between two; \
             {} changes of term; {} to {} calls queued, {} rejected",
            self.accepted,
            self.refused,
            self.worst.as_secs_f64(),
            self.gap.as_secs_f64(),
            self.transitions,
            self.least_queued,
            self.most_queued,
            self.rejected
        );
    }
}

/// Looks on for `time`.
fn watch(cell: &Cell, time: Duration) -> Seen {
    let (since, until) = (Timestamp::now(), Instant::now() + time);
    let level = [("priority_level", LEVEL)];
    let transitions = || cell.lease().unwrap()["spec"]["leaseTransitions"].as_i64();
    let rejected = || {
        sum(
            &cell.cluster,
            "apiserver_flowcontrol_rejected_requests_total",
            &level,
        )
    };
    let (before, rejected_before) = (transitions().unwrap(), rejected());
    let mut queued = vec![];
    wait_for("the time of saturation is over", time * 4, || {
        let inqueue = "apiserver_flowcontrol_current_inqueue_requests";
        queued.push(sum(&cell.cluster, inqueue, &level));
        (Instant::now() >= until).then_some(())
    });
    let end = Timestamp::now();
    let all = renewals(cell, since);
    let accepted: Vec<&Renewal> = all.iter().filter(|r| r.accepted).collect();
    let moments: Vec<Timestamp> = std::iter::once(since)
        .chain(accepted.iter().map(|r| r.received))
        .chain([end])
        .collect();
    let gaps = moments.windows(2).map(|w| w[1].duration_since(w[0]));
    Seen {
        accepted: accepted.len(),
        refused: all.len() - accepted.len(),
        worst: all.iter().map(|r| r.took).max().unwrap_or_default(),
        gap: gaps.max().unwrap().try_into().unwrap(),
        transitions: transitions().unwrap() - before,
        least_queued: queued.iter().copied().fold(f64::MAX, f64::min),
        most_queued: queued.iter().copied().fold(0.0, f64::max),
        rejected: rejected() - rejected_before,
    }
}

#[test]
fn renewals_are_on_time_while_our_own_calls_saturate_the_server() {
    let cell = Cell::start(
        "saturate",
        &[("LOG_DRAIN_TIMEOUT", "1s"), ("MAX_WORKERS", "1000")],
    );
    let schema = format!("{}.ottoscaler-lease", cell.namespace);
    let (leader, holder) = (cell.leader().unwrap(), cell.holder().unwrap());
    // Something to list.
    scale_up(&cell, leader, "before", 300);
    let bottleneck = Bottleneck::before(&cell);
    let runtime = runtime();
    let ours = [
        ("flow_schema", schema.as_str()),
        ("priority_level", "leader-election"),
    ];
    let dispatched = || {
        let name = "apiserver_flowcontrol_dispatched_requests_total";
        sum(&cell.cluster, name, &ours)
    };
    // A renewal has 2 s: half of the renew deadline.
    let renewed = || {
        let bucket = |le| format!("ottoscaler_lease_renew_seconds_bucket{{le=\"{le}\"}}");
        let [in_time, all] = ["1.024", "+Inf"].map(bucket);
        cell.replicas[leader].metrics([&in_time, &all])
    };
    let durations = u32::try_from(count_of("OTTO_TEST_SATURATED", 3)).unwrap();
    let queue = [("priority_level", LEVEL), ("flow_schema", LEVEL)];
    let made = || cell.pods("during").len();
    let ask = Command::new(program("ottoctl"))
        .args(["--server", &cell.replicas[leader].address, "-o", "json"])
        .args(["--timeout", "60", "scale-up", "during", "-n", "400"])
        .args(["--repository", "org/repo", "--commit", "abc"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("its creates are under way", SOON, || {
        (made() > 0).then_some(())
    });
    let load = saturate(&runtime, &cell.kubeconfig, &cell.namespace);
    wait_for("calls are queued", SOON, || {
        let inqueue = "apiserver_flowcontrol_current_inqueue_requests";
        (sum(&cell.cluster, inqueue, &queue) > 10.0).then_some(())
    });
    let (made_before, dispatched_before, before) = (made(), dispatched(), renewed());
    let with = watch(&cell, LEASE_DURATION * durations + Duration::from_secs(1));
    let (after, dispatched_after, made_after) = (renewed(), dispatched(), made());
    let (in_time, renewed) = (after[0] - before[0], after[1] - before[1]);
    let said = ask.wait_with_output().unwrap().stdout;
    let said: Value = serde_json::from_slice(&said).unwrap_or_default();
    with.tell("with the flow schema");
    println!(
        "{renewed} renewals by the leader's word, {in_time} of them within 1.024 s; \
         ScaleUp(400) meanwhile: {}, from {made_before} to {made_after} pods",
        said["status"]
    );
    assert!(with.least_queued > 0.0, "the queue was empty: {with:?}");
    assert_eq!((with.transitions, with.refused), (0, 0), "{with:?}");
    assert_eq!(cell.holder(), Some(holder));
    let least = (LEASE_DURATION * durations).as_secs() as usize / 2;
    assert!(
        renewed >= least as f64 && with.accepted >= least,
        "{with:?}"
    );
    assert_eq!(in_time, renewed, "a renewal took longer than 1.024 s");
    let by_schema = dispatched_after - dispatched_before;
    assert!(by_schema >= renewed, "not by the flow schema");

    // The contrast: renewals wait behind the rest.
    cell.cluster.kubectl(&["delete", "flowschema", &schema]);
    wait_for("the schema is no longer used", SOON, || {
        let before = dispatched();
        pass(Duration::from_secs(3));
        (dispatched() == before).then_some(())
    });
    let without = watch(&cell, LEASE_DURATION * 2);
    without.tell("without it");
    assert!(
        without.gap > with.gap,
        "it made no difference: {with:?} {without:?}"
    );
    drop(load);
    drop(bottleneck);
}
