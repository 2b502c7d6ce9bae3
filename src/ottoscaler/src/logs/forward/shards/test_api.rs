//! An API server in memory, as far as shards ask: ConfigMaps by server-side apply.
#![expect(clippy::unwrap_used)]
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::election::LeaderClient;

/// What becomes of a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    Answered,
    /// Not before so long.
    Late(Duration),
    Refused(u16),
}

/// A call that came: when, how, and of which object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) at: Instant,
    pub(super) method: String,
    pub(super) name: String,
}

type Judge = Box<dyn FnMut(&Call) -> Fate + Send>;

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    calls: Vec<Call>,
    judge: Option<Judge>,
    /// Calls take effect also where nobody waits for the answer any more.
    running: JoinSet<()>,
}

#[derive(Clone, Default)]
pub(super) struct Api(Arc<Mutex<State>>);

impl Api {
    /// A leader's client of that term.
    pub(super) fn leader(&self, term: &str) -> LeaderClient {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let name = parts.uri.path().rsplit('/').next().unwrap().to_owned();
                let (answered, answer) = oneshot::channel();
                let called = api.clone();
                let call = async move {
                    let answer = called.call(parts.method.as_str(), &name, &body).await;
                    let _ = answered.send(answer);
                };
                api.0.lock().unwrap().running.spawn(call);
                let (code, answer) = answer.await?;
                Ok::<_, tower::BoxError>(
                    Response::builder()
                        .status(code)
                        .body(axum::body::Body::from(answer.to_string()))?,
                )
            }
        });
        let client = kube::Client::new(service, "n");
        crate::election::test_client(client, "n", term.parse().unwrap())
    }

    async fn call(&self, method: &str, name: &str, body: &Value) -> (u16, Value) {
        let call = Call {
            at: Instant::now(),
            method: method.to_owned(),
            name: name.to_owned(),
        };
        let fate = {
            let mut state = self.0.lock().unwrap();
            state.calls.push(call.clone());
            let judge = state.judge.as_mut();
            judge.map_or(Fate::Answered, |judge| judge(&call))
        };
        match fate {
            Fate::Answered => sleep(Duration::from_millis(1)).await,
            Fate::Late(time) => sleep(time).await,
            Fate::Refused(code) => return status(code),
        }
        let mut state = self.0.lock().unwrap();
        match (method, state.objects.get(name).cloned()) {
            ("GET", Some(object)) => (200, object),
            ("PATCH", known) => {
                let given = &body["metadata"]["resourceVersion"];
                let version = known.map(|o| o["metadata"]["resourceVersion"].clone());
                if !given.is_null() && Some(given) != version.as_ref() {
                    return status(409);
                }
                (200, state.store(name, body.clone()))
            }
            _ => status(404),
        }
    }

    /// As somebody else writes it.
    pub(super) fn put(&self, name: &str, data: &Value) {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name}, "data": data});
        self.0.lock().unwrap().store(name, object);
    }

    pub(super) fn delete(&self, name: &str) {
        self.0.lock().unwrap().objects.remove(name);
    }

    /// Null: there is none.
    pub(super) fn object(&self, name: &str) -> Value {
        let state = self.0.lock().unwrap();
        state.objects.get(name).cloned().unwrap_or_default()
    }

    /// The lines of all shards, in order.
    pub(super) fn lines(&self) -> Vec<String> {
        let state = self.0.lock().unwrap();
        let texts = state.objects.values().map(|o| o["data"]["v1"].clone());
        let lines = |text: Value| {
            text.as_str()
                .unwrap_or_default()
                .lines()
                .map(str::to_owned)
                .collect()
        };
        let mut all: Vec<String> = texts.flat_map::<Vec<String>, _>(lines).collect();
        all.sort();
        all
    }

    /// Calls of that method since the last time.
    pub(super) fn calls(&self, method: &str) -> Vec<Call> {
        let mut calls = std::mem::take(&mut self.0.lock().unwrap().calls);
        calls.retain(|c| c.method == method);
        calls
    }

    /// What becomes of calls from now on.
    pub(super) fn on(&self, judge: impl FnMut(&Call) -> Fate + Send + 'static) {
        self.0.lock().unwrap().judge = Some(Box::new(judge));
    }
}

impl State {
    fn store(&mut self, name: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(name.to_owned(), object.clone());
        object
    }
}

fn status(code: u16) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "Forbidden",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code,
        "reason": reason, "message": "configmaps is forbidden", "status": "Failure"});
    (code, status)
}
