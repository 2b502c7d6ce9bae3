//! An API server in memory, with one Lease, the pods and the events of one
//! namespace: as far as the election asks, and as slow or broken as a test says.
#![expect(clippy::unwrap_used)]
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use http::{Request, Response, request::Parts};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    clock::{Clock, Time},
    keys::Keys,
};

/// The names under which Ottoscaler has always written.
pub(crate) const PREFIX: &str = "ottoscaler.io";
pub(crate) const FIELD_MANAGER: &str = "ottoscaler";
pub(crate) const RELEASED_BY: &str = "ottoscaler.io/released-by";
pub(crate) const HOLDER_POD_UID: &str = "ottoscaler.io/holder-pod-uid";
pub(crate) const HOLDER_CONTAINER_ID: &str = "ottoscaler.io/holder-container-id";
pub(crate) const TERM: &str = "ottoscaler.io/term";
/// The fence policy, and how the API server begins to tell of it.
pub(crate) const POLICY: &str = "n.o-fence";
const DENIED: &str = "pods \"p\" is forbidden: ValidatingAdmissionPolicy 'n.o-fence' with binding 'n.o-fence-pods' denied request";

pub(crate) fn test_keys() -> Keys {
    Keys::new(PREFIX, FIELD_MANAGER)
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered,
    /// Refused with this status code.
    Refused(u16),
    /// Refused by the fence policy.
    Fenced,
    /// Refused with this status code and message.
    Said(u16, &'static str),
    /// Takes effect, answered after this time.
    Late(Duration),
    /// Takes no effect, never answered.
    Lost,
}

/// One request, as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Since the server began.
    pub(crate) at: Duration,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    /// Null: none.
    pub(crate) body: Value,
    pub(crate) length: Option<String>,
}

impl Asked {
    pub(crate) fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }

    /// Of the Lease, save watches and lists.
    pub(crate) fn is_lease_call(&self) -> bool {
        self.path.contains("/leases") && !self.query.contains("fieldSelector=")
    }

    pub(crate) fn is_write(&self) -> bool {
        self.method != "GET"
    }

    /// Of the Lease: a step-down.
    pub(crate) fn is_release(&self) -> bool {
        self.is_write() && self.body["spec"]["holderIdentity"] == ""
    }
}

type Judge = Box<dyn FnMut(&Asked) -> Fate + Send>;
/// Path of the collection, and the watch of it.
type Watcher = (String, mpsc::UnboundedSender<(Instant, Value)>);

#[derive(Default)]
struct State {
    version: u64,
    lease: Option<Value>,
    pods: BTreeMap<String, Value>,
    asked: Vec<Asked>,
    judge: Option<Judge>,
    watchers: Vec<Watcher>,
    /// Every event: at which version, of which collection.
    told: Vec<(u64, &'static str, Value)>,
    /// How far the watches lag behind.
    lag: Duration,
}

pub(crate) struct Server {
    began: Instant,
    state: Mutex<State>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            state: Mutex::default(),
        }
    }
}

/// Answered, or never.
type Answer = Option<(u16, Value)>;

impl Server {
    pub(crate) fn client(self: &Arc<Self>) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                // Contenders really interleave.
                tokio::task::yield_now().await;
                let asked = server.asked(&parts, &body);
                let fate = server.judge(&asked);
                if asked.is_watch() && fate == Fate::Answered {
                    let events = axum::body::Body::from_stream(server.watch(&asked));
                    return Ok::<_, tower::BoxError>(Response::new(events));
                }
                match server.meet(fate, &asked).await {
                    Some((code, answer)) => Ok(Response::builder()
                        .status(code)
                        .body(axum::body::Body::from(answer.to_string()))?),
                    None => std::future::pending().await,
                }
            }
        });
        kube::Client::new(service, "n")
    }

    fn asked(&self, parts: &Parts, body: &[u8]) -> Asked {
        let length = parts.headers.get(http::header::CONTENT_LENGTH);
        let asked = Asked {
            at: self.began.elapsed(),
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(body).unwrap_or_default(),
            length: length.map(|l| l.to_str().unwrap().to_owned()),
        };
        self.state.lock().unwrap().asked.push(asked.clone());
        asked
    }

    fn judge(&self, asked: &Asked) -> Fate {
        // Not under the lock: it may change the Lease itself.
        let mut judge = self.state.lock().unwrap().judge.take();
        let fate = judge.as_mut().map_or(Fate::Answered, |judge| judge(asked));
        self.state.lock().unwrap().judge = judge;
        fate
    }

    async fn meet(&self, fate: Fate, asked: &Asked) -> Answer {
        match fate {
            Fate::Answered => Some(self.answer(asked)),
            Fate::Said(code, message) => Some(status(code, message)),
            Fate::Refused(code) => Some(status(code, "Refused")),
            Fate::Fenced => Some(status(403, &format!("{DENIED}: another term"))),
            Fate::Late(by) => {
                let answer = self.answer(asked);
                tokio::time::sleep(by).await;
                Some(answer)
            }
            Fate::Lost => None,
        }
    }

    /// What came after the version asked for, and what comes; ended in time.
    fn watch(
        &self,
        asked: &Asked,
    ) -> impl futures::Stream<Item = Result<String, Infallible>> + use<> {
        let (send, events) = mpsc::unbounded_channel();
        let mut state = self.state.lock().unwrap();
        let version = parameter(&asked.query, "resourceVersion")
            .unwrap()
            .parse::<u64>()
            .unwrap();
        let missed = state
            .told
            .iter()
            .filter(|(at, of, _)| *at > version && asked.path.ends_with(of));
        for (_, _, event) in missed {
            send.send((Instant::now(), event.clone())).unwrap();
        }
        state.watchers.push((asked.path.clone(), send));
        let lag = state.lag;
        UnboundedReceiverStream::new(events)
            .then(move |(at, event)| async move {
                tokio::time::sleep_until(at + lag).await;
                Ok(format!("{event}\n"))
            })
            .take_until(tokio::time::sleep(Duration::from_secs(15)))
    }

    fn answer(&self, asked: &Asked) -> (u16, Value) {
        let mut state = self.state.lock().unwrap();
        if asked.path.contains("/pods") {
            return state.pods(asked);
        }
        if !asked.path.contains("/leases") {
            return (201, asked.body.clone());
        }
        let selected = parameter(&asked.query, "fieldSelector");
        match (asked.method.as_str(), state.lease.clone()) {
            ("GET", lease) if selected.is_some() => {
                let lease = lease.filter(|_| selected == Some("metadata.name%3Dl"));
                state.list("LeaseList", lease.into_iter().collect())
            }
            ("GET", None) => status(404, "NotFound"),
            ("GET", Some(lease)) => (200, lease),
            ("POST", Some(_)) => status(409, "AlreadyExists"),
            ("POST", None) => {
                let mut new = asked.body.clone();
                new["metadata"]["uid"] = json!("lease-uid");
                // As the API server stores a map of strings.
                if let Some(all) = new["metadata"]["annotations"].as_object_mut() {
                    all.values_mut()
                        .filter(|v| v.is_null())
                        .for_each(|v| *v = json!(""));
                }
                (201, state.store("ADDED", new))
            }
            ("PATCH", Some(mut lease)) => {
                let meta = &lease["metadata"];
                for key in ["uid", "resourceVersion"] {
                    let given = &asked.body["metadata"][key];
                    if !given.is_null() && *given != meta[key] {
                        return status(409, "Conflict");
                    }
                }
                merge(&mut lease, &asked.body);
                (200, state.store("MODIFIED", lease))
            }
            _ => status(404, "NotFound"),
        }
    }

    /// As somebody else writes the Lease.
    pub(crate) fn put(&self, spec: Value, annotations: Value) {
        let lease = json!({"metadata": {"name": "l", "uid": "lease-uid", "annotations": annotations},
            "spec": spec});
        self.state.lock().unwrap().store("MODIFIED", lease);
    }

    /// Somebody else's merge patch of the Lease, unconditional.
    pub(crate) fn patch(&self, patch: &Value) {
        let mut state = self.state.lock().unwrap();
        let mut lease = state.lease.clone().unwrap();
        merge(&mut lease, patch);
        state.store("MODIFIED", lease);
    }

    /// As if it had been made anew just now.
    pub(crate) fn rename_uid(&self, uid: &str) {
        let mut state = self.state.lock().unwrap();
        state.lease.as_mut().unwrap()["metadata"]["uid"] = json!(uid);
    }

    pub(crate) fn delete(&self) {
        let mut state = self.state.lock().unwrap();
        let lease = state.lease.clone().unwrap();
        state.store("DELETED", lease);
        state.lease = None;
    }

    /// Null: none.
    pub(crate) fn lease(&self) -> Value {
        self.state.lock().unwrap().lease.clone().unwrap_or_default()
    }

    pub(crate) fn put_pod(&self, name: &str, mut pod: Value) {
        pod["metadata"]["name"] = json!(name);
        let mut state = self.state.lock().unwrap();
        pod["metadata"]["resourceVersion"] = json!(state.next());
        state.tell("/pods", "MODIFIED", &pod);
        state.pods.insert(name.to_owned(), pod);
    }

    /// What becomes of the requests from now on.
    pub(crate) fn on(&self, judge: impl FnMut(&Asked) -> Fate + Send + 'static) {
        self.state.lock().unwrap().judge = Some(Box::new(judge));
    }

    /// Watches opened from now on lag behind.
    pub(crate) fn lag(&self, by: Duration) {
        self.state.lock().unwrap().lag = by;
    }

    pub(crate) fn seen(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    pub(crate) fn seen_where(&self, of: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        self.seen().into_iter().filter(of).collect()
    }

    /// Since the server began.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }
}

impl State {
    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    fn store(&mut self, event: &str, mut lease: Value) -> Value {
        lease["metadata"]["resourceVersion"] = json!(self.next());
        self.tell("/leases", event, &lease);
        self.lease = Some(lease.clone());
        lease
    }

    fn tell(&mut self, of: &'static str, event: &str, object: &Value) {
        let event = json!({"type": event, "object": object});
        let now = Instant::now();
        self.watchers
            .retain(|(path, to)| !path.ends_with(of) || to.send((now, event.clone())).is_ok());
        self.told.push((self.version, of, event));
    }

    fn list(&self, kind: &str, items: Vec<Value>) -> (u16, Value) {
        let version = self.version.to_string();
        (
            200,
            json!({"kind": kind, "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": version}}),
        )
    }

    fn pods(&self, asked: &Asked) -> (u16, Value) {
        let name = asked.path.rsplit('/').next().unwrap();
        let selected = parameter(&asked.query, "fieldSelector");
        match (asked.method.as_str(), selected) {
            ("GET", Some(selector)) => {
                let name = selector.trim_start_matches("metadata.name%3D");
                self.list(
                    "PodList",
                    self.pods.get(name).cloned().into_iter().collect(),
                )
            }
            ("GET", None) => self
                .pods
                .get(name)
                .map_or_else(|| status(404, "NotFound"), |pod| (200, pod.clone())),
            _ => (200, asked.body.clone()),
        }
    }
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|p| p.strip_prefix(name)?.strip_prefix('='))
}

fn status(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code,
        "reason": reason, "message": reason, "status": "Failure"});
    (code, status)
}

fn merge(target: &mut Value, patch: &Value) {
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

/// A record of the Lease that `holder` wrote; its renewTime is years ago.
pub(crate) fn held_by(holder: &str) -> Value {
    json!({"holderIdentity": holder, "leaseDurationSeconds": 6, "leaseTransitions": 3,
        "renewTime": "2020-01-01T00:00:00.000000Z", "acquireTime": "2020-01-01T00:00:00.000000Z"})
}

/// What the wall says when a contender starts.
pub(crate) const STARTED: &str = "2026-01-01T12:00:00Z";

/// The runtime's clock, which a test pauses: both move together.
struct Paused(Instant);

impl Time for Paused {
    fn boot(&self) -> Duration {
        Duration::from_secs(1000) + self.0.elapsed()
    }

    fn started(&self) -> Timestamp {
        STARTED.parse().unwrap()
    }
}

pub(crate) fn paused_clock() -> Clock {
    Clock::new(Arc::new(Paused(Instant::now())))
}
