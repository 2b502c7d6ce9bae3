//! Two versions side by side: this one, N, and a fake N+1 with one more phase, reason, row
//! key, time and field, take turns at leading over one API server in memory. It has N's
//! definition of a WorkerTask, as after an upgrade of the program alone. What N+1 wrote is
//! there when it comes back, and no worker runs twice.
#![expect(clippy::unwrap_used)]
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{
    cluster::{
        crd::bounds::{prune, schema, violations},
        watch::WatchHandler as _,
    },
    domain::{
        ledger::Ledger,
        names,
        plan::{self, Action, Limits, Observed},
        queue::Attempt,
        task::{TaskSpec, WorkerPhase},
        urgency::WriteUrgency,
        view::ClientState,
    },
    index::{Index, PodFeed, TaskFeed},
};

const LIMITS: Limits = Limits {
    pending_timeout: 900,
    node_lost_timeout: 300,
    log_drain_timeout: 900,
    task_ttl: 86_400,
};

/// One task and its pods, as the API server stores them.
struct Api {
    version: u64,
    now: i64,
    task: Value,
    pods: BTreeMap<String, Value>,
    /// Names of all pods that ever were.
    made: BTreeSet<String>,
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

impl Api {
    fn new(workers: u32) -> Self {
        let spec = TaskSpec {
            task_id: "t".into(),
            workers,
            ..TaskSpec::default()
        };
        let mut api = Self {
            version: 0,
            now: 1_767_225_600,
            task: json!({"metadata": {"name": "t", "uid": "tu", "creationTimestamp": "2026-01-01T00:00:00Z"}}),
            pods: BTreeMap::new(),
            made: BTreeSet::new(),
        };
        api.patch(&json!({ "spec": spec }));
        api
    }

    fn next(&mut self) -> Value {
        self.version += 1;
        json!(self.version.to_string())
    }

    /// A merge patch of the task, judged and pruned by N's definition.
    fn patch(&mut self, patch: &Value) {
        merge(&mut self.task, patch);
        let schema = schema();
        assert_eq!(violations(&schema, &self.task), [""; 0]);
        for part in ["spec", "status"] {
            prune(&schema["properties"][part], &mut self.task[part]);
        }
        if self.task["status"].is_null() {
            self.task.as_object_mut().unwrap().remove("status");
        }
        self.task["metadata"]["resourceVersion"] = self.next();
    }

    fn create(&mut self, which: Attempt) {
        let name = names::pod_name("t", which.index, which.attempt);
        assert!(self.made.insert(name.clone()), "{name} is made twice");
        let other = |p: &&Value| p["metadata"]["worker"] == which.index && !has_ended(p);
        assert!(
            self.pods.values().find(other).is_none(),
            "{name} runs beside another"
        );
        let pod = json!({
            "metadata": {
                "name": name, "uid": format!("uid-{name}"), "worker": which.index,
                "ownerReferences": [{"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask", "name": "t", "uid": "tu"}],
            },
            "spec": {"nodeName": "node", "restartPolicy": "Never"},
            "status": {"phase": "Pending"},
        });
        self.pods.insert(name.clone(), pod);
        self.set(&name, &json!({}));
    }

    fn set(&mut self, name: &str, status: &Value) {
        let version = self.next();
        let pod = self.pods.get_mut(name).unwrap();
        merge(&mut pod["status"], status);
        pod["metadata"]["resourceVersion"] = version;
    }

    fn run(&mut self, name: &str) {
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:01Z"}});
        self.set(
            name,
            &json!({"phase": "Running", "containerStatuses": [{"name": "worker", "state": running}]}),
        );
    }

    fn end(&mut self, name: &str, phase: &str, reason: &str) {
        let code = i32::from(phase == "Failed");
        let ended = json!({"terminated": {"exitCode": code,
            "startedAt": "2026-01-01T00:00:01Z", "finishedAt": "2026-01-01T00:00:09Z"}});
        self.set(
            name,
            &json!({"phase": phase, "reason": reason,
                "containerStatuses": [{"name": "worker", "state": ended}]}),
        );
    }

    fn row(&self, index: usize) -> String {
        let rows = self.task["status"]["workers"].as_array().unwrap();
        let start = format!("{index} ");
        let row = rows
            .iter()
            .find(|r| r.as_str().unwrap().starts_with(&start));
        row.unwrap().as_str().unwrap().to_owned()
    }
}

fn has_ended(pod: &Value) -> bool {
    matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

/// A replica of version N.
#[derive(Default)]
struct Replica {
    index: Index,
    known: BTreeMap<String, Value>,
    ledger: Ledger,
}

impl Replica {
    /// What its watches tell.
    fn watch(&mut self, api: &Api) {
        let task = serde_json::from_value(api.task.clone()).unwrap();
        TaskFeed(self.index.clone()).apply(task);
        let pods = PodFeed(self.index.clone());
        for pod in api.pods.values() {
            pods.apply(serde_json::from_value(pod.clone()).unwrap());
        }
        for (name, pod) in &self.known {
            if !api.pods.contains_key(name) {
                let mut last = pod.clone();
                last["metadata"]["resourceVersion"] = json!(api.version.to_string());
                pods.delete(serde_json::from_value(last).unwrap());
            }
        }
        self.known.clone_from(&api.pods);
    }

    /// Leads until there is nothing more to do.
    fn lead(&mut self, api: &mut Api) {
        for _ in 0..10 {
            api.now += 10;
            self.watch(api);
            let task = self.index.task("t").unwrap();
            let (pods, gone) = self.index.pods_of("t");
            let now = api.now;
            let times = self.ledger.observe(&task, &[&pods, &gone], now);
            let seen = Observed {
                pods: &pods,
                gone: &gone,
                drained: &|_| true,
                since: &|pod, stage| times.since(pod, stage).unwrap_or(now),
                waited: &|index| times.waited(index),
                api_now: Some(now),
                notified: &|_| None,
                refused: &|_| None,
                first_line: &|_| None,
                wait_reason: &Default::default,
            };
            let plan = plan::plan(&task, seen, LIMITS, api.now);
            let is_idle = plan.urgency == WriteUrgency::Nothing
                && plan.actions.is_empty()
                && plan.creates.is_empty();
            for which in plan.creates {
                api.create(which);
            }
            for action in plan.actions {
                match action {
                    Action::Delete(pod) => drop(api.pods.remove(&*pod.name)),
                    other => unreachable!("{other:?}"),
                }
            }
            if plan.urgency != WriteUrgency::Nothing {
                // As `status_writer.rs` writes it.
                api.patch(&json!({ "status": plan.status }));
            }
            if is_idle {
                return;
            }
        }
        unreachable!("it does not come to rest: {:?}", api.task);
    }

    fn states(&self) -> Vec<ClientState> {
        let task = self.index.task("t").unwrap();
        let workers = self.index.workers_of(&task);
        workers.iter().map(|w| w.state()).collect()
    }
}

const POD_2: &str = "otto-agent-t-2";

/// N+1 pauses worker 2 by taking its pod away, and says more of all the rest.
fn newer_leads(api: &mut Api) {
    api.pods.remove(POD_2);
    let mut status = api.task["status"].clone();
    let reasons = status["reasons"].as_array().cloned().unwrap_or_default();
    let why = reasons.len() + 1;
    let mut reasons = reasons;
    reasons.push(json!({"reason": "NobodysOwn"}));
    reasons.push(json!({"reason": "PausedByUser", "code": 9}));
    status["reasons"] = json!(reasons);
    for row in status["workers"].as_array_mut().unwrap() {
        let text = row.as_str().unwrap();
        *row = match text.split(' ').next() {
            Some("2") => {
                let text = text.replace(" Running ", " Paused ");
                json!(format!("{text} told=1/Paused luck=7 why={why}"))
            }
            Some("3") => json!(format!("{text} mood=calm Steady")),
            // It has one more time.
            Some("4") => json!(text.replace(" times=", " zone=b times=")),
            _ => continue,
        };
    }
    status["quota"] = json!({"left": 3});
    status["counts"]["paused"] = json!(1);
    let throttled = json!({"type": "Throttled", "status": "True", "reason": "Quota",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 4});
    let conditions = status["conditions"].as_array_mut().unwrap();
    conditions[0]["observedGeneration"] = json!(5);
    conditions.push(throttled);
    api.patch(&json!({"spec": {"zone": {"name": "a"}}, "status": status}));
}

/// All that N+1 wrote is there.
fn assert_kept(api: &Api, row_2: &str) {
    assert_eq!(api.row(2), row_2);
    let why: usize = row_2.rsplit_once("why=").unwrap().1.parse().unwrap();
    let status = &api.task["status"];
    assert_eq!(
        status["reasons"][why],
        json!({"reason": "PausedByUser", "code": 9})
    );
    assert!(api.row(3).ends_with(" mood=calm Steady"), "{}", api.row(3));
    assert!(api.row(4).contains(" zone=b"), "{}", api.row(4));
    assert_eq!(status["quota"]["left"], 3);
    assert_eq!(status["counts"]["paused"], 1);
    assert_eq!(api.task["spec"]["zone"]["name"], "a");
    let conditions = status["conditions"].as_array().unwrap();
    let of = |kind: &str| conditions.iter().find(|c| c["type"] == kind).unwrap();
    assert_eq!(of("Throttled")["observedGeneration"], 4);
    assert_eq!(of("Throttled")["reason"], "Quota");
    assert_eq!(of("Created")["observedGeneration"], 5);
}

#[test]
fn an_older_replica_leads_between_two_newer_ones_and_loses_nothing_of_theirs() {
    let mut api = Api::new(4);
    let mut older = Replica::default();
    older.lead(&mut api);
    for n in 1..=4 {
        api.run(&format!("otto-agent-t-{n}"));
    }
    older.lead(&mut api);

    newer_leads(&mut api);
    let row_2 = api.row(2);

    // One that saw the pod go, and one that knows nothing of before.
    for mut older in [older, Replica::default()] {
        older.lead(&mut api);
        assert_kept(&api, &row_2);
        assert_eq!(
            older.states()[1],
            ClientState::Running,
            "it goes on without us"
        );
    }
    let mut older = Replica::default();
    older.watch(&api);
    for (name, phase, reason) in [
        ("otto-agent-t-1", "Succeeded", ""),
        ("otto-agent-t-4", "Failed", "Evicted"),
    ] {
        api.end(name, phase, reason);
        older.lead(&mut api);
        assert_kept(&api, &row_2);
    }
    api.run("otto-agent-t-4-r1");
    older.lead(&mut api);
    for name in ["otto-agent-t-3", "otto-agent-t-4-r1"] {
        api.end(name, "Succeeded", "");
        older.lead(&mut api);
        assert_kept(&api, &row_2);
    }
    // Its own are at their end; the task is not.
    assert_eq!(api.task["status"]["phase"], "Running");
    assert!(api.pods.is_empty() && api.made.len() == 5, "{:?}", api.made);

    // N+1 goes on with worker 2, and hands it over in a state that N knows.
    let which = Attempt {
        index: 2,
        attempt: 2,
    };
    api.create(which);
    api.run("otto-agent-t-2-r1");
    let resumed = "2 Running attempt=2 uid=uid-otto-agent-t-2-r1 luck=7";
    let mut status = api.task["status"].clone();
    for row in status["workers"].as_array_mut().unwrap() {
        if row.as_str().unwrap().starts_with("2 ") {
            *row = json!(resumed);
        }
    }
    api.patch(&json!({ "status": status }));
    let mut older = Replica::default();
    older.lead(&mut api);
    api.end("otto-agent-t-2-r1", "Succeeded", "");
    older.lead(&mut api);
    assert_eq!(older.states(), [ClientState::Succeeded; 4]);
    assert_eq!(api.task["status"]["phase"], "Succeeded");
    assert!(api.row(2).contains(" luck=7"), "{}", api.row(2));
    assert!(api.pods.is_empty() && api.made.len() == 6, "{:?}", api.made);
}

#[test]
fn a_task_in_a_phase_of_a_newer_version_is_left_alone() {
    let mut api = Api::new(2);
    let mut older = Replica::default();
    older.lead(&mut api);
    api.run("otto-agent-t-1");
    older.lead(&mut api);
    api.patch(&json!({"status": {"phase": "Draining"}}));
    // It took one of the pods away, and the other one ends.
    api.pods.remove(POD_2);
    api.end("otto-agent-t-1", "Succeeded", "");
    let before = api.task.clone();
    for mut older in [older, Replica::default()] {
        older.lead(&mut api);
        assert_eq!(api.task, before);
        assert_eq!((api.pods.len(), api.made.len()), (1, 2));
    }
}

/// Whatever row a newer version may write, ours is not made of it.
#[test]
fn a_worker_that_is_not_understood_gets_no_pod_and_loses_none() {
    for row in [
        "1 Paused attempt=1 uid=uid-otto-agent-t-1",
        "1 Running attempt=1 uid=uid-otto-agent-t-1 told=1/Paused",
        "1 Succeeded attempt=1 uid=uid-otto-agent-t-1 times=1,2,3,4,5,6,7,8",
    ] {
        let mut api = Api::new(1);
        let mut older = Replica::default();
        older.lead(&mut api);
        api.patch(&json!({"status": {"workers": [row]}}));
        older.lead(&mut api);
        api.run("otto-agent-t-1");
        older.lead(&mut api);
        assert_eq!((api.row(1).as_str(), api.pods.len()), (row, 1));
        api.pods.clear();
        older.lead(&mut api);
        assert_eq!((api.row(1).as_str(), api.made.len()), (row, 1));
        let task = older.index.task("t").unwrap();
        let phase = older.index.workers_of(&task)[0].record.phase;
        assert_eq!(phase, WorkerPhase::Unknown);
    }
}
