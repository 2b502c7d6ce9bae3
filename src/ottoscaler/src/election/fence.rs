//! The leader's client: exists only while leading, writes only while valid.
//!
//! What holds: no write is sent after validity is over, checked just before it
//! goes; each request ends within what is left of validity, and the API server is
//! told so; every write carries the term. What then still arrives late is refused
//! by the API server's policy, or by resourceVersion.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ObjectReference, Pod},
};
use kube::{Api, client::Body};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    Clock,
    metrics::{Metrics, Wall},
};
use crate::{cluster::TERM, election::Term};

/// Of one request, however much validity is left.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The fence policy's refusals begin so (charts/ottoscaler/templates/fence.yaml).
const POLICY: &str = "ottoscaler fence";
/// How long a new leader's refused write is tried again: the API server may not
/// have seen its Lease yet (0.74 s at most when measured).
const LEASE_UNSEEN: Duration = Duration::from_secs(2);
/// A Lease of ours that is renewed for so long was seen by every API server.
const LEASE_SEEN: Duration = Duration::from_secs(15);
/// Tells people why the policy refuses a term whose Lease is renewed.
const STUCK: &str = "; the Lease is renewed by this term, so this API server judges by a Lease of the past \
    (kubernetes/kubernetes#130887): restart it, or set fence.policy.enabled=false until then";
const TRY_AGAIN: Duration = Duration::from_millis(15);

/// Until when a leader may act: written by the contender after each acknowledged
/// renewal, read before each write.
#[derive(Debug, Default)]
pub(super) struct Validity {
    /// Milliseconds since boot.
    until: AtomicU64,
    /// Of one renewal.
    lasts: Duration,
    clock: Clock,
}

impl Validity {
    pub(super) fn new(lasts: Duration, clock: Clock) -> Self {
        Self {
            until: AtomicU64::new(0),
            lasts,
            clock,
        }
    }

    pub(super) fn set(&self, until: Duration) {
        self.until.store(
            u64::try_from(until.as_millis()).unwrap_or(0),
            Ordering::Release,
        );
    }

    pub(super) fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    pub(super) fn left(&self) -> Duration {
        Duration::from_millis(self.until.load(Ordering::Acquire)).saturating_sub(self.now())
    }

    fn now(&self) -> Duration {
        self.clock.boot()
    }
}

/// Whether the API server refused a write for the fence: its term is over, or the
/// policy could not be judged just then. Nobody's fault, and never for good.
pub fn is_fenced(message: &str) -> bool {
    message.contains(POLICY) || message.contains("-fence' with binding '")
}

/// A write that was not sent.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("this replica no longer leads; nothing was sent")]
pub struct NotLeading;

/// Only a [`super::Tenure`] gives one.
#[derive(Clone)]
pub struct LeaderClient {
    client: kube::Client,
    namespace: Arc<str>,
    term: Arc<Term>,
    validity: Arc<Validity>,
}

impl std::fmt::Debug for LeaderClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaderClient")
            .field("term", &self.term)
            .finish_non_exhaustive()
    }
}

impl LeaderClient {
    pub(super) fn new(
        inner: kube::Client,
        namespace: &str,
        term: Term,
        validity: Arc<Validity>,
        metrics: Metrics,
    ) -> Self {
        let fence = Arc::new(Fence {
            inner,
            metrics,
            term: term.to_string(),
            validity: validity.clone(),
            since: validity.now(),
        });
        let service = tower::service_fn(move |request: Request<Body>| {
            let fence = fence.clone();
            async move { fence.call(request).await }
        });
        Self {
            client: kube::Client::new(service, namespace),
            namespace: namespace.into(),
            term: Arc::new(term),
            validity,
        }
    }

    /// One whose validity never ends.
    #[cfg(test)]
    pub(crate) fn for_tests(client: kube::Client, namespace: &str, term: Term) -> Self {
        let validity = Validity::new(Duration::from_secs(4), Clock::default());
        validity.set(Duration::from_millis(u64::MAX));
        Self::new(
            client,
            namespace,
            term,
            Arc::new(validity),
            Metrics::default(),
        )
    }

    pub fn pods(&self) -> Api<Pod> {
        self.api()
    }

    /// Objects of our namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Names an object of our namespace.
    pub fn reference<K>(&self, name: &str, uid: &str) -> ObjectReference
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        let kind = K::DynamicType::default();
        ObjectReference {
            api_version: Some(K::api_version(&kind).into_owned()),
            kind: Some(K::kind(&kind).into_owned()),
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.to_string()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        }
    }

    /// For what only takes a client: the same fence.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    pub fn term(&self) -> &Term {
        &self.term
    }

    pub fn is_valid(&self) -> bool {
        !self.validity.left().is_zero()
    }

    /// No renewal came through for half of what one lasts: whatever can wait should.
    pub fn is_late(&self) -> bool {
        self.validity.left() < self.validity.lasts / 2
    }
}

struct Fence {
    inner: kube::Client,
    metrics: Metrics,
    term: String,
    validity: Arc<Validity>,
    /// When the term began.
    since: Duration,
}

impl Fence {
    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, tower::BoxError> {
        match *request.method() {
            // Reads pass: a stale one does no harm, and follows last long.
            Method::GET => Ok(self.inner.send(request).await?),
            Method::POST | Method::PUT | Method::PATCH => self.write(request).await,
            _ => self.send(request).await,
        }
    }

    async fn write(&self, request: Request<Body>) -> Result<Response<Body>, tower::BoxError> {
        let (mut parts, body) = request.into_parts();
        let changes = parts.method != Method::POST;
        let mut object: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        stamp(&mut object, parts.uri.path(), &self.term);
        let bytes = serde_json::to_vec(&object)?;
        parts.headers.remove(http::header::CONTENT_LENGTH);
        loop {
            let request = Request::from_parts(parts.clone(), Body::from(bytes.clone()));
            let response = self.send(request).await?;
            if changes && response.status() == StatusCode::CONFLICT {
                self.metrics.refused(Wall::Version);
            }
            if response.status() != StatusCode::FORBIDDEN {
                return Ok(response);
            }
            let (mut head, body) = response.into_parts();
            let text = timeout(REQUEST_TIMEOUT, body.collect()).await??.to_bytes();
            let fenced = String::from_utf8_lossy(&text).contains(POLICY);
            let reign = self.validity.now().saturating_sub(self.since);
            if fenced && reign < LEASE_UNSEEN {
                tokio::time::sleep(TRY_AGAIN).await;
                continue;
            }
            let mut body = text.to_vec();
            if fenced {
                self.metrics.refused(Wall::Policy);
                if reign >= LEASE_SEEN && !self.validity.left().is_zero() {
                    body = advise(&body)?;
                    head.headers.remove(http::header::CONTENT_LENGTH);
                }
            }
            return Ok(Response::from_parts(head, Body::from(body)));
        }
    }

    /// Sends if valid, for as long as valid.
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, tower::BoxError> {
        let left = self.validity.left().min(REQUEST_TIMEOUT);
        if left.is_zero() {
            self.metrics.refused(Wall::Clock);
            return Err(NotLeading.into());
        }
        *request.uri_mut() = with_timeout(request.uri(), left)?;
        timeout(left, self.inner.send(request))
            .await?
            .map_err(Into::into)
    }
}

/// The refusal with what can be done about it.
fn advise(refusal: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut status: Value = serde_json::from_slice(refusal)?;
    if let Some(message) = status["message"].as_str() {
        status["message"] = json!(format!("{message}{STUCK}"));
    }
    serde_json::to_vec(&status)
}

/// The term where the policy looks for it.
fn stamp(object: &mut Value, path: &str, term: &str) {
    if path.ends_with("/status") {
        object["status"]["term"] = json!(term);
    } else {
        object["metadata"]["annotations"][TERM] = json!(term);
    }
}

/// The API server gives up when we do.
fn with_timeout(uri: &Uri, left: Duration) -> Result<Uri, tower::BoxError> {
    let base = uri
        .path_and_query()
        .map_or_else(|| uri.path(), |p| p.as_str());
    let base = base.trim_end_matches('?');
    let sign = if base.contains('?') { '&' } else { '?' };
    Ok(format!("{base}{sign}timeout={}ms", left.as_millis().max(1)).parse()?)
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
