//! Makes kube-leader-election safe, from below its own client.
//!
//! What holds: a PATCH goes out only with uid and resourceVersion of the GET just
//! before it, each used once, so of two racing contenders one gets a 409; what
//! the crate takes for an expired Lease is one that [`fenced_lease::lease::ObservedLease`] calls free, for
//! the renewTime it is shown says how long *we* saw the record unchanged; one
//! field manager writes. The crate runs one operation at a time: its lock is
//! owned by the contender's loop.
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fenced_lease::{
    candidate::Candidate,
    lease::{Record, Standing},
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Clock;

pub(super) const RELEASED_BY: &str = "ottoscaler.io/released-by";
pub(super) const HOLDER_POD_UID: &str = "ottoscaler.io/holder-pod-uid";
pub(super) const HOLDER_CONTAINER_ID: &str = "ottoscaler.io/holder-container-id";

const FIELD_MANAGER: &str = "ottoscaler";
/// The crate compares these with its wall clock, which may say anything.
const LONG_AGO: &str = "1970-01-01T00:00:00.000000Z";
const FAR_AHEAD: &str = "9000-01-01T00:00:00.000000Z";

/// What proves a holder's death later: published with the Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) pod_uid: String,
    pub(super) container_id: String,
}

/// Shared by the client's requests and the contender.
#[derive(Debug)]
pub(super) struct Guard {
    name: String,
    duration: Duration,
    request_timeout: Duration,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    candidate: Candidate,
    proof: Option<Proof>,
    /// What our last acknowledged write left on the Lease.
    written: Option<Proof>,
}

impl Guard {
    /// A Lease call takes at most `request_timeout`.
    pub(super) fn new(
        name: &str,
        duration: Duration,
        renew_deadline: Duration,
        request_timeout: Duration,
        clock: Clock,
    ) -> Self {
        Self {
            name: name.to_owned(),
            duration,
            request_timeout,
            clock,
            state: Mutex::new(State {
                candidate: Candidate::new(duration, renew_deadline),
                proof: None,
                written: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on as `me`; the identity before is one of the past.
    pub(super) fn become_identity(&self, me: &str) {
        let mut state = self.state();
        state.candidate.become_identity(me);
        state.written = None;
    }

    pub(super) fn publish(&self, proof: Option<Proof>) {
        self.state().proof = proof;
    }

    pub(super) fn proved_dead(&self, holder: String) {
        self.state().candidate.proved_dead(holder);
    }

    /// What the watch told.
    pub(super) fn observe(&self, lease: Option<&Lease>) {
        let mut state = self.state();
        state
            .candidate
            .observe(lease.map(record), self.clock.boot());
    }

    pub(super) fn standing(&self) -> Standing {
        self.state().candidate.standing(self.clock.boot())
    }

    /// When the last write was sent.
    pub(super) fn sent(&self) -> Duration {
        self.state().candidate.sent()
    }

    /// What the last write, now acknowledged, allows.
    pub(super) fn valid_until(&self) -> Duration {
        self.state().candidate.valid_until()
    }

    /// The client to give to the crate.
    pub(super) fn client(self: &Arc<Self>, inner: kube::Client, namespace: &str) -> kube::Client {
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
            let mut state = self.state();
            let now = self.clock.boot();
            state.candidate.read(lease.as_ref().map(record), now);
            state.candidate.standing(now)
        };
        if lease.is_none() && matches!(standing, Standing::Free(_)) {
            // The crate creates it; two creates cannot both succeed.
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
        let seconds = self.duration.as_secs();
        match patch["spec"]["holderIdentity"].as_str() {
            // Renews; a proof that came late goes along.
            None => {
                if self.is_proof_late() {
                    patch["metadata"]["annotations"] = self.annotations();
                }
            }
            // Steps down.
            Some("") => {
                patch["spec"]["leaseDurationSeconds"] = json!(seconds);
                patch["metadata"]["annotations"] =
                    json!({ RELEASED_BY: self.state().candidate.me() });
            }
            Some(_) => patch["metadata"]["annotations"] = self.annotations(),
        }
        parts.uri = one_field_manager(&parts.uri)?;
        parts.headers.remove(http::header::CONTENT_LENGTH);
        Ok(Request::from_parts(
            parts,
            Body::from(serde_json::to_vec(&patch)?),
        ))
    }

    async fn post(&self, request: Request<Body>) -> Result<Request<Body>, tower::BoxError> {
        let (mut parts, body) = request.into_parts();
        let mut lease: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        let mut annotations = self.annotations();
        // In a new object null is no removal: it would be stored as "".
        if let Some(all) = annotations.as_object_mut() {
            all.retain(|_, value| !value.is_null());
        }
        lease["metadata"]["annotations"] = annotations;
        parts.uri = one_field_manager(&parts.uri)?;
        parts.headers.remove(http::header::CONTENT_LENGTH);
        Ok(Request::from_parts(
            parts,
            Body::from(serde_json::to_vec(&lease)?),
        ))
    }

    /// Of a new holder: null takes an old value away.
    fn annotations(&self) -> Value {
        let state = self.state();
        json!({
            RELEASED_BY: Value::Null,
            HOLDER_POD_UID: state.proof.as_ref().map(|p| &p.pod_uid),
            HOLDER_CONTAINER_ID: state.proof.as_ref().map(|p| &p.container_id),
        })
    }

    pub(super) fn lease_name(&self) -> &str {
        &self.name
    }
}

/// What contending needs of a Lease; fields may be missing.
pub(super) fn record(lease: &Lease) -> Record {
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
            .and_then(|a| a.get(RELEASED_BY))
            .is_some_and(|by| !by.is_empty()),
    }
}

/// The Lease as the crate shall see it: held far into the future, or long
/// expired, with no field missing.
fn show(lease: Lease, standing: Standing) -> serde_json::Result<Value> {
    let mut shown = serde_json::to_value(&lease)?;
    let renewed = match standing {
        Standing::Free(_) => LONG_AGO,
        Standing::Ours | Standing::HeldUntil(_) => FAR_AHEAD,
    };
    let spec = lease.spec.unwrap_or_default();
    // What is not there is held by nobody, which is not us.
    shown["spec"]["holderIdentity"] = json!(spec.holder_identity.unwrap_or_default());
    shown["spec"]["leaseTransitions"] = json!(spec.lease_transitions.unwrap_or(0));
    shown["spec"]["leaseDurationSeconds"] = json!(1);
    shown["spec"]["renewTime"] = json!(renewed);
    Ok(shown)
}

/// The crate writes under its holder's name, which changes; managedFields would
/// grow with every term.
fn one_field_manager(uri: &Uri) -> Result<Uri, tower::BoxError> {
    let query = uri.query().unwrap_or_default();
    let kept = query
        .split('&')
        .filter(|p| !p.is_empty() && !p.starts_with("fieldManager="));
    let query: Vec<String> = kept
        .map(str::to_owned)
        .chain([format!("fieldManager={FIELD_MANAGER}")])
        .collect();
    Ok(format!("{}?{}", uri.path(), query.join("&")).parse()?)
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
