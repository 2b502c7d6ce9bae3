//! An API server in memory for the whole manager: WorkerTasks and pods of one
//! namespace, as far as the manager asks. Its watch is immediate: whatever it
//! stores is in the index before the call is answered.
#![expect(clippy::unwrap_used)]
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tower::Layer as _;

use super::{Manager, Metrics, Parts};
use crate::{
    args::Options,
    cluster::{POD_KEY, watch::WatchHandler as _},
    domain::request::{ScaleRequest, ScaleUp},
    election::{Clock, Clocks, Pause, Time},
    handler::{Drained, NotificationSink},
    index::{Index, PodFeed, TaskFeed},
};

#[derive(Default)]
struct State {
    version: u64,
    uids: u64,
    tasks: BTreeMap<String, Value>,
    pods: BTreeMap<String, Value>,
    /// Pods that a quota lets be; None: any number.
    quota: Option<usize>,
    /// Names of the pods that were created, in order.
    created: Vec<String>,
    /// The texts of the Events, in order.
    notes: Vec<String>,
}

/// Answers calls and keeps an index up to date.
pub(super) struct Api {
    /// Of the replica that leads next.
    index: Mutex<Index>,
    state: Mutex<State>,
    /// The right time, which moves on with the test's.
    began: (jiff::Timestamp, Instant),
    /// How far its clock, and its nodes', are off (seconds).
    pub(super) off: AtomicI64,
    pub(super) nodes_off: AtomicI64,
}

type Answer = (u16, Value);

impl Api {
    pub(super) fn new() -> Arc<Self> {
        let api = Arc::new(Self {
            index: Mutex::default(),
            state: Mutex::default(),
            began: (jiff::Timestamp::now(), Instant::now()),
            off: AtomicI64::new(0),
            nodes_off: AtomicI64::new(0),
        });
        api.restart();
        api
    }

    /// By a clock that is so far off.
    fn time(&self, off: &AtomicI64) -> jiff::Timestamp {
        let off = jiff::SignedDuration::from_secs(off.load(Ordering::Relaxed));
        self.began.0 + self.began.1.elapsed() + off
    }

    /// A leader's clocks, the one that people set so far off.
    pub(super) fn clocks(&self, off: i64) -> Clocks {
        let wall = Wall {
            began: self.began,
            off: jiff::SignedDuration::from_secs(off),
        };
        Clocks::new(Clock::new(Arc::new(wall)))
    }

    pub(super) fn index(&self) -> Index {
        self.index.lock().unwrap().clone()
    }

    /// From now on a replica watches that knows only what there is now.
    pub(super) fn restart(&self) {
        let index = Index::default();
        let state = self.state.lock().unwrap();
        let tasks = state.tasks.values().cloned();
        let tasks = tasks.filter_map(|t| TaskFeed::project(serde_json::from_value(t).unwrap()));
        let pods = state.pods.values().cloned();
        let pods = pods.filter_map(|p| PodFeed::project(serde_json::from_value(p).unwrap()));
        TaskFeed(index.clone()).reset(tasks.collect(), state.version);
        PodFeed(index.clone()).reset(pods.collect(), state.version);
        *self.index.lock().unwrap() = index;
    }

    fn client(self: &Arc<Self>, clocks: &Clocks) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                // Time passes, also where it is paused.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
                let (code, answer) = api.answer(parts.method.as_str(), path, query, &body);
                let date = api.time(&api.off).strftime("%a, %d %b %Y %H:%M:%S GMT");
                Ok::<_, tower::BoxError>(
                    Response::builder()
                        .status(code)
                        .header("date", date.to_string())
                        .body(axum::body::Body::from(answer.to_string()))?,
                )
            }
        });
        kube::Client::new(clocks.layer(service), "n")
    }

    fn answer(&self, method: &str, path: &str, query: &str, body: &Value) -> Answer {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let at = parts
            .iter()
            .position(|p| matches!(*p, "workertasks" | "pods"));
        let Some(at) = at else {
            let note = body["note"].as_str().unwrap_or_default().to_owned();
            self.state.lock().unwrap().notes.push(note);
            return (201, body.clone());
        };
        let is_task = parts[at] == "workertasks";
        let (name, is_status) = (parts.get(at + 1), parts.get(at + 2).is_some());
        match (method, name) {
            ("POST", _) if is_task => self.create_task(body),
            ("POST", _) => self.create_pod(body),
            ("GET", Some(name)) => {
                let state = self.state.lock().unwrap();
                let all = if is_task { &state.tasks } else { &state.pods };
                let found = all.get(*name).cloned();
                found.map_or_else(|| status(404, "NotFound"), |object| (200, object))
            }
            ("PATCH", Some(name)) => self.patch(is_task, is_status, name, body),
            ("DELETE", Some(name)) if is_task => {
                self.delete_task(name);
                (200, json!({"kind": "Status", "status": "Success"}))
            }
            ("DELETE", Some(name)) => {
                let found = self.state.lock().unwrap().pods.get(*name).cloned();
                if found.is_some_and(|pod| !meets(&pod, &body["preconditions"])) {
                    return status(409, "Conflict");
                }
                self.delete_pod(name);
                (200, json!({"kind": "Status", "status": "Success"}))
            }
            ("DELETE", None) => self.delete_ended(query),
            _ => status(405, "MethodNotAllowed"),
        }
    }

    fn create_task(&self, body: &Value) -> Answer {
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        if self.state.lock().unwrap().tasks.contains_key(&name) {
            return status(409, "AlreadyExists");
        }
        let mut task = body.clone();
        let now = self.time(&self.off);
        self.state.lock().unwrap().birth(&mut task, now);
        (201, self.put_task(task))
    }

    fn create_pod(&self, body: &Value) -> Answer {
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        let mut pod = body.clone();
        {
            let mut state = self.state.lock().unwrap();
            if state.pods.contains_key(&name) {
                return status(409, "AlreadyExists");
            }
            if state.quota.is_some_and(|quota| state.pods.len() >= quota) {
                return status(403, "exceeded quota: pods");
            }
            state.birth(&mut pod, self.time(&self.off));
            state.created.push(name);
        }
        pod["status"] = json!({"phase": "Pending"});
        (201, self.put_pod(pod))
    }

    fn patch(&self, is_task: bool, is_status: bool, name: &str, body: &Value) -> Answer {
        let found = {
            let state = self.state.lock().unwrap();
            let all = if is_task { &state.tasks } else { &state.pods };
            all.get(name).cloned()
        };
        let Some(mut object) = found else {
            return status(404, "NotFound");
        };
        if !meets(&object, &body["metadata"]) {
            return status(409, "Conflict");
        }
        if is_status {
            merge(&mut object["status"], &body["status"]);
        } else {
            merge(&mut object, body);
        }
        let stored = if is_task {
            self.put_task(object)
        } else {
            self.put_pod(object)
        };
        (200, stored)
    }

    fn delete_ended(&self, query: &str) -> Answer {
        let names: Vec<String> = {
            let state = self.state.lock().unwrap();
            let is_asked = |pod: &&Value| {
                let key = pod["metadata"]["labels"][POD_KEY].as_str();
                key.is_some_and(|key| query.contains(key)) && is_terminal(pod)
            };
            let pods = state.pods.values().filter(is_asked);
            pods.map(|p| p["metadata"]["name"].as_str().unwrap().to_owned())
                .collect()
        };
        let items: Vec<Value> = names
            .iter()
            .filter_map(|name| self.remove_pod(name))
            .collect();
        (
            200,
            json!({"kind": "PartialObjectMetadataList", "items": items}),
        )
    }

    fn put_task(&self, mut task: Value) -> Value {
        {
            let mut state = self.state.lock().unwrap();
            task["metadata"]["resourceVersion"] = json!(state.next());
            let name = task["metadata"]["name"].as_str().unwrap().to_owned();
            state.tasks.insert(name, task.clone());
        }
        TaskFeed(self.index()).apply(serde_json::from_value(task.clone()).unwrap());
        self.tell_versions();
        task
    }

    /// As bookmarks do.
    fn tell_versions(&self) {
        let version = self.state.lock().unwrap().version;
        TaskFeed(self.index()).synced_to(version);
        PodFeed(self.index()).synced_to(version);
    }

    fn put_pod(&self, mut pod: Value) -> Value {
        {
            let mut state = self.state.lock().unwrap();
            pod["metadata"]["resourceVersion"] = json!(state.next());
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            state.pods.insert(name, pod.clone());
        }
        PodFeed(self.index()).apply(serde_json::from_value(pod.clone()).unwrap());
        self.tell_versions();
        pod
    }

    /// The task goes at once, as by a deletion in the background. Its pods stay
    /// until [`Self::delete_pod`] is called for them, as the garbage collector does.
    pub(super) fn delete_task(&self, name: &str) {
        let task = {
            let mut state = self.state.lock().unwrap();
            let Some(mut task) = state.tasks.remove(name) else {
                return;
            };
            task["metadata"]["resourceVersion"] = json!(state.next());
            task
        };
        TaskFeed(self.index()).delete(serde_json::from_value(task).unwrap());
        self.tell_versions();
    }

    /// The task waits for its pods to go, as by a deletion in the foreground.
    pub(super) fn delete_task_in_foreground(&self, name: &str) {
        let mut task = self.task(name).unwrap();
        task["metadata"]["deletionTimestamp"] = json!(self.time(&self.off).to_string());
        self.put_task(task);
    }

    /// A pod that runs is asked to end; any other goes at once.
    pub(super) fn delete_pod(&self, name: &str) {
        let Some(mut pod) = self.state.lock().unwrap().pods.get(name).cloned() else {
            return;
        };
        if is_terminal(&pod) || pod["status"]["phase"] == "Pending" {
            self.remove_pod(name);
        } else if pod["metadata"]["deletionTimestamp"].is_null() {
            let ends = self.time(&self.off) + Duration::from_secs(30);
            pod["metadata"]["deletionTimestamp"] = json!(ends.to_string());
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
            self.put_pod(pod);
        }
    }

    /// The pod is gone, whatever it did, as by a deletion with force.
    pub(super) fn remove_pod(&self, name: &str) -> Option<Value> {
        let mut pod = self.state.lock().unwrap().pods.remove(name)?;
        pod["metadata"]["resourceVersion"] = json!(self.state.lock().unwrap().next());
        PodFeed(self.index()).delete(serde_json::from_value(pod.clone()).unwrap());
        self.tell_versions();
        Some(pod)
    }

    pub(super) fn run_pod(&self, name: &str) {
        let now = self.time(&self.nodes_off).to_string();
        self.set_status(
            name,
            json!({"phase": "Running", "containerStatuses": [
                {"name": "worker", "state": {"running": {"startedAt": now}}}]}),
        );
    }

    /// The worker's container ends, for a reason of the pod if one is given.
    pub(super) fn end_pod(&self, name: &str, exit_code: i32, reason: &str) {
        let now = self.time(&self.nodes_off).to_string();
        let phase = if exit_code == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
        let said = if exit_code == 0 { "Completed" } else { "Error" };
        self.set_status(
            name,
            json!({"phase": phase, "reason": reason, "containerStatuses": [
                {"name": "worker", "state": {"terminated": {"exitCode": exit_code,
                    "reason": said, "startedAt": now, "finishedAt": now}}}]}),
        );
    }

    fn set_status(&self, name: &str, status: Value) {
        let mut pod = self.state.lock().unwrap().pods[name].clone();
        pod["spec"]["nodeName"] = json!("node");
        pod["status"] = status;
        self.put_pod(pod);
    }

    /// The worker succeeds, and the watch has yet to tell; it does when that is called.
    pub(super) fn end_pod_unseen(&self, name: &str) -> impl FnOnce() + use<> {
        let mut state = self.state.lock().unwrap();
        let version = state.next();
        let pod = state.pods.get_mut(name).unwrap();
        pod["metadata"]["resourceVersion"] = json!(version);
        pod["status"]["phase"] = json!("Succeeded");
        let running = &mut pod["status"]["containerStatuses"][0]["state"];
        *running = json!({"terminated": {"exitCode": 0, "reason": "Completed",
            "startedAt": running["running"]["startedAt"]}});
        let (pod, index) = (pod.clone(), self.index());
        move || PodFeed(index).apply(serde_json::from_value(pod).unwrap())
    }

    pub(super) fn set_quota(&self, pods: Option<usize>) {
        self.state.lock().unwrap().quota = pods;
    }

    pub(super) fn task(&self, name: &str) -> Option<Value> {
        self.state.lock().unwrap().tasks.get(name).cloned()
    }

    /// Names of the pods that are there.
    pub(super) fn pods(&self) -> Vec<String> {
        self.state.lock().unwrap().pods.keys().cloned().collect()
    }

    /// Names of the pods that were created, in order.
    pub(super) fn created(&self) -> Vec<String> {
        self.state.lock().unwrap().created.clone()
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.state.lock().unwrap().notes.clone()
    }

    pub(super) fn is_deleting(&self, pod: &str) -> bool {
        let state = self.state.lock().unwrap();
        let pod = state.pods.get(pod);
        pod.is_some_and(|pod| !pod["metadata"]["deletionTimestamp"].is_null())
    }
}

impl State {
    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    fn birth(&mut self, object: &mut Value, now: jiff::Timestamp) {
        self.uids += 1;
        object["metadata"]["uid"] = json!(format!("uid-{}", self.uids));
        object["metadata"]["creationTimestamp"] = json!(now.to_string());
    }
}

/// The object is the one, and of the version, that is named.
fn meets(object: &Value, named: &Value) -> bool {
    ["uid", "resourceVersion"]
        .iter()
        .all(|key| named[key].is_null() || named[key] == object["metadata"][key])
}

/// The clock that people set; nobody sets the test's own.
struct Wall {
    began: (jiff::Timestamp, Instant),
    off: jiff::SignedDuration,
}

impl Time for Wall {
    fn boot(&self) -> Duration {
        self.began.1.elapsed()
    }

    fn started(&self) -> jiff::Timestamp {
        self.began.0
    }

    fn wall(&self) -> jiff::Timestamp {
        self.began.0 + self.began.1.elapsed() + self.off
    }
}

fn is_terminal(pod: &Value) -> bool {
    matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

fn status(code: u16, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code,
        "reason": reason, "message": reason, "status": "Failure"});
    (code, status)
}

fn merge(target: &mut Value, patch: &Value) {
    if !target.is_object() {
        *target = json!({});
    }
    if let (Some(t), Some(p)) = (target.as_object_mut(), patch.as_object()) {
        for (k, v) in p {
            if v.is_null() {
                t.remove(k);
            } else if v.is_object() {
                merge(t.entry(k).or_insert(json!({})), v);
            } else {
                t.insert(k.clone(), v.clone());
            }
        }
    }
}

/// A manager that leads by this API server. It is lost, as by a kill, when dropped.
pub(super) struct Leader {
    pub(super) manager: Manager,
    pub(super) pause: tokio::sync::watch::Sender<Option<Arc<str>>>,
    pub(super) metrics: Metrics,
    _running: JoinSet<()>,
}

impl Leader {
    /// Leads term `n`.
    pub(super) fn start(api: &Arc<Api>, n: u32, tell: Arc<dyn NotificationSink>) -> Self {
        Self::start_with(api, n, tell, api.clocks(0), &[])
    }

    /// The same with such clocks and settings.
    pub(super) fn start_with(
        api: &Arc<Api>,
        n: u32,
        tell: Arc<dyn NotificationSink>,
        clocks: Clocks,
        settings: &[(&str, &str)],
    ) -> Self {
        let lookup = |name: &str| settings.iter().find(|(n, _)| *n == name);
        let lookup = |name: &str| lookup(name).map(|(_, value)| (*value).to_owned());
        let config = Options::from_lookup(&lookup).unwrap();
        let term = format!("lease/{n}/h").parse().unwrap();
        let (pause, paused) = Pause::channel(false);
        let caught_up = CancellationToken::new();
        caught_up.cancel();
        let metrics = Metrics::default();
        let manager = Manager::new(&Parts {
            client: crate::election::test_client(api.client(&clocks), "n", term),
            index: api.index(),
            drained: Drained::default(),
            policy: Arc::new(config.worker),
            limits: config.limits,
            metrics: metrics.clone(),
            pause: paused,
            clocks,
            caught_up,
            drain: CancellationToken::new(),
            lost: CancellationToken::new(),
        });
        let mut running = JoinSet::new();
        let run = manager.clone();
        running.spawn(async move { run.run(tell).await });
        Self {
            manager,
            pause,
            metrics,
            _running: running,
        }
    }
}

/// Waits until it is so, for at most a minute of the test's time.
pub(super) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let so = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let so = tokio::time::timeout(Duration::from_secs(60), so).await;
    assert!(so.is_ok(), "never so: {what}");
}

/// A request that the default policy takes.
pub(super) fn parsed(request: ScaleRequest) -> ScaleUp {
    let policy = Options::from_lookup(&|_| None).unwrap().worker;
    ScaleUp::parse(request, &policy).unwrap()
}
