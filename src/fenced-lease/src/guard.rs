//! Makes kube-leader-election safe, from below its own client.
//!
//! Invariants:
//! - A PATCH goes out only with the uid and the resourceVersion of the GET just before it,
//!   each used once, so of two racing contenders one gets a 409.
//! - What kube-leader-election takes for an expired Lease is one that
//!   [`ObservedLease`](crate::lease::ObservedLease) calls free: the renewTime that it is shown
//!   says how long *we* have seen the record unchanged.
//! - One field manager writes the Lease.
//!
//! kube-leader-election runs one operation at a time: its lock is owned by the contender's loop.
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::client::Body;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::{
    Clock, Timings,
    candidate::Candidate,
    keys::Keys,
    lease::{Record, Standing},
};

/// kube-leader-election compares these with its wall clock, which may say anything.
const LONG_AGO: &str = "1970-01-01T00:00:00.000000Z";
const FAR_AHEAD: &str = "9000-01-01T00:00:00.000000Z";

/// What proves a holder's death later; published with the Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) pod_uid: String,
    pub(crate) container_id: String,
}

/// Shared by the requests of kube-leader-election and the contender.
#[derive(Debug)]
pub(crate) struct Guard {
    lease_duration: Duration,
    request_timeout: Duration,
    keys: Keys,
    clock: Clock,
    /// Written by requests, the watch and the contender; never locked across an await.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    candidate: Candidate,
    /// What is to be published.
    proof: Option<Proof>,
    /// What our last acknowledged write left on the Lease.
    written: Option<Proof>,
}

impl Guard {
    /// Each request of the Lease takes at most `request_timeout`.
    pub(crate) fn new(
        timings: &Timings,
        request_timeout: Duration,
        keys: Keys,
        clock: Clock,
    ) -> Self {
        Self {
            lease_duration: timings.lease_duration,
            request_timeout,
            keys,
            clock,
            state: Mutex::new(State {
                candidate: Candidate::new(timings.lease_duration, timings.renew_deadline),
                proof: None,
                written: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new identity; the one before becomes a former one.
    pub(crate) fn become_identity(&self, me: &str) {
        let mut state = self.state();
        state.candidate.become_identity(me);
        state.written = None;
    }

    /// Publishes the proof with the next write.
    pub(crate) fn publish(&self, proof: Option<Proof>) {
        self.state().proof = proof;
    }

    pub(crate) fn proved_dead(&self, holder: String) {
        self.state().candidate.proved_dead(holder);
    }

    /// Takes what the watch reported.
    pub(crate) fn observe(&self, lease: Option<&Lease>) {
        let record = lease.map(|lease| self.record(lease));
        self.state().candidate.observe(record, self.clock.boot());
    }

    pub(crate) fn standing(&self) -> Standing {
        self.state().candidate.standing(self.clock.boot())
    }

    /// Returns when the last write was sent.
    pub(crate) fn sent(&self) -> Duration {
        self.state().candidate.sent()
    }

    /// Returns until when the last write, now acknowledged, allows to act.
    pub(crate) fn valid_until(&self) -> Duration {
        self.state().candidate.valid_until()
    }

    /// Creates the client that kube-leader-election is given.
    pub(crate) fn client(self: &Arc<Self>, inner: kube::Client, namespace: &str) -> kube::Client {
        let guard = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (guard, inner) = (guard.clone(), inner.clone());
            async move { guard.call(&inner, request).await }
        });
        kube::Client::new(service, namespace)
    }

    async fn call(
        &self,
        inner: &kube::Client,
        request: Request<Body>,
    ) -> Result<Response<Body>, tower::BoxError> {
        let request = match *request.method() {
            Method::GET => return self.get(inner, request).await,
            Method::PATCH => self.patch(request).await?,
            Method::POST => self.post(request).await?,
            _ => return Err("the guard passes only get, create and patch of the Lease".into()),
        };
        let proof = {
            let mut state = self.state();
            state.candidate.send(self.clock.boot());
            state.proof.clone()
        };
        let response = timeout(self.request_timeout, inner.send(request)).await??;
        if response.status().is_success() {
            self.state().written = proof;
        }
        Ok(response)
    }

    fn is_proof_late(&self) -> bool {
        let state = self.state();
        state.proof.is_some() && state.written != state.proof
    }

    async fn get(
        &self,
        inner: &kube::Client,
        request: Request<Body>,
    ) -> Result<Response<Body>, tower::BoxError> {
        let response = timeout(self.request_timeout, inner.send(request)).await??;
        let (mut parts, body) = response.into_parts();
        let bytes = timeout(self.request_timeout, body.collect())
            .await??
            .to_bytes();
        let lease: Option<Lease> = match parts.status {
            StatusCode::OK => Some(serde_json::from_slice(&bytes)?),
            StatusCode::NOT_FOUND => None,
            _ => return Ok(Response::from_parts(parts, Body::from(bytes.to_vec()))),
        };
        let standing = {
            let record = lease.as_ref().map(|lease| self.record(lease));
            let mut state = self.state();
            let now = self.clock.boot();
            state.candidate.read(record, now);
            state.candidate.standing(now)
        };
        if lease.is_none() && matches!(standing, Standing::Free(_)) {
            // kube-leader-election creates it; two creates cannot both succeed.
            return Ok(Response::from_parts(parts, Body::from(bytes.to_vec())));
        }
        parts.status = StatusCode::OK;
        parts.headers.remove(http::header::CONTENT_LENGTH);
        let shown = show(lease.unwrap_or_default(), standing)?;
        Ok(Response::from_parts(
            parts,
            Body::from(serde_json::to_vec(&shown)?),
        ))
    }

    async fn patch(&self, request: Request<Body>) -> Result<Request<Body>, tower::BoxError> {
        let (uid, version) = self
            .state()
            .candidate
            .take_precondition()
            .ok_or("a patch of the Lease without a get before it")?;
        let (mut parts, body) = request.into_parts();
        let mut patch: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        patch["metadata"]["uid"] = json!(uid);
        patch["metadata"]["resourceVersion"] = json!(version);
        let seconds = self.lease_duration.as_secs();
        match patch["spec"]["holderIdentity"].as_str() {
            // A renewal. A proof that came late goes along.
            None => {
                if self.is_proof_late() {
                    patch["metadata"]["annotations"] = Value::Object(self.annotations());
                }
            }
            // A release.
            Some("") => {
                patch["spec"]["leaseDurationSeconds"] = json!(seconds);
                let me = json!(self.state().candidate.me());
                patch["metadata"]["annotations"] =
                    Value::Object(Map::from_iter([(self.keys.released_by(), me)]));
            }
            Some(_) => patch["metadata"]["annotations"] = Value::Object(self.annotations()),
        }
        self.rewritten(&mut parts, &patch)
    }

    async fn post(&self, request: Request<Body>) -> Result<Request<Body>, tower::BoxError> {
        let (mut parts, body) = request.into_parts();
        let mut lease: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        let mut annotations = self.annotations();
        // In a new object null removes nothing: it would be stored as "".
        annotations.retain(|_, value| !value.is_null());
        lease["metadata"]["annotations"] = Value::Object(annotations);
        self.rewritten(&mut parts, &lease)
    }

    fn rewritten(
        &self,
        parts: &mut http::request::Parts,
        body: &Value,
    ) -> Result<Request<Body>, tower::BoxError> {
        parts.uri = one_field_manager(&parts.uri, &self.keys.field_manager)?;
        parts.headers.remove(http::header::CONTENT_LENGTH);
        Ok(Request::from_parts(
            parts.clone(),
            Body::from(serde_json::to_vec(body)?),
        ))
    }

    /// The annotations of a new holder; null removes an old value.
    fn annotations(&self) -> Map<String, Value> {
        let state = self.state();
        let proof = state.proof.as_ref();
        Map::from_iter([
            (self.keys.released_by(), Value::Null),
            (self.keys.holder_pod_uid(), json!(proof.map(|p| &p.pod_uid))),
            (
                self.keys.holder_container_id(),
                json!(proof.map(|p| &p.container_id)),
            ),
        ])
    }

    /// Reads what contending needs of a Lease, of which fields may be missing.
    fn record(&self, lease: &Lease) -> Record {
        let spec = lease.spec.clone().unwrap_or_default();
        let meta = &lease.metadata;
        let seconds = spec.lease_duration_seconds.unwrap_or(0);
        Record {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            holder: spec.holder_identity.unwrap_or_default(),
            duration: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
            released: meta
                .annotations
                .as_ref()
                .and_then(|a| a.get(&self.keys.released_by()))
                .is_some_and(|by| !by.is_empty()),
        }
    }
}

/// The Lease as kube-leader-election shall see it: held far into the future, or long
/// expired, with no field missing.
fn show(lease: Lease, standing: Standing) -> serde_json::Result<Value> {
    let mut shown = serde_json::to_value(&lease)?;
    let renewed = match standing {
        Standing::Free(_) => LONG_AGO,
        Standing::Ours | Standing::HeldUntil(_) => FAR_AHEAD,
    };
    let spec = lease.spec.unwrap_or_default();
    // A Lease without a holder is held by nobody, which is not us.
    shown["spec"]["holderIdentity"] = json!(spec.holder_identity.unwrap_or_default());
    shown["spec"]["leaseTransitions"] = json!(spec.lease_transitions.unwrap_or(0));
    shown["spec"]["leaseDurationSeconds"] = json!(1);
    shown["spec"]["renewTime"] = json!(renewed);
    Ok(shown)
}

/// kube-leader-election writes under its holder's name, which changes with every term;
/// managedFields would grow without end.
fn one_field_manager(uri: &Uri, manager: &str) -> Result<Uri, tower::BoxError> {
    let query = uri.query().unwrap_or_default();
    let kept = query
        .split('&')
        .filter(|p| !p.is_empty() && !p.starts_with("fieldManager="));
    let query: Vec<String> = kept
        .map(str::to_owned)
        .chain([format!("fieldManager={manager}")])
        .collect();
    Ok(format!("{}?{}", uri.path(), query.join("&")).parse()?)
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
