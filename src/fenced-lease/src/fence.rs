//! The leader's client: it exists only while leading, and writes only while valid.
//!
//! Invariants: no write is sent after validity is over, which is checked just before it
//! goes; each request ends within what is left of validity, and the API server is told so;
//! every write carries the term. What still arrives late is refused by the API server: by
//! the policy, or by resourceVersion.
use std::{
    fmt,
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

use crate::{
    Clock,
    event::{Barrier, Event, Observer},
    heartbeat::millis,
    policy::{self, FencePolicy},
    term::Term,
};

/// The longest time of one request, however much validity is left: an API server that is well
/// answers a write of one object far sooner.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a new leader's refused write is repeated: the API server may not have observed the
/// Lease of the new term yet. Its own watch of Leases lags by milliseconds, and by a second where
/// it is overloaded.
const LEASE_UNSEEN: Duration = Duration::from_secs(2);
/// A Lease that has been renewed for so long has been observed by every API server.
const LEASE_SEEN: Duration = Duration::from_secs(15);
/// The time between two tries of a write that was refused because the Lease was not observed yet.
/// It is about how long a watch event takes.
const RETRY_DELAY: Duration = Duration::from_millis(15);
/// Why the policy refuses a term whose Lease is renewed, and what helps.
const STALE_POLICY: &str = "; the Lease is renewed by this term, so this API server judges by a Lease of the past \
    (kubernetes/kubernetes#130887): restart it, or disable the fence policy until then";

/// Until when a leader may act. Written by the contender after each acknowledged renewal,
/// read before each write.
#[derive(Debug, Default)]
pub(crate) struct Validity {
    /// Milliseconds since boot.
    until: AtomicU64,
    /// How long one renewal lasts.
    lasts: Duration,
    clock: Clock,
}

impl Validity {
    pub(crate) fn new(lasts: Duration, clock: Clock) -> Self {
        Self {
            until: AtomicU64::new(0),
            lasts,
            clock,
        }
    }

    pub(crate) fn set(&self, until: Duration) {
        self.until.store(millis(until), Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    pub(crate) fn left(&self) -> Duration {
        Duration::from_millis(self.until.load(Ordering::Acquire)).saturating_sub(self.now())
    }

    fn now(&self) -> Duration {
        self.clock.boot()
    }
}

/// A write was not sent because this process no longer leads.
///
/// It is the innermost source of the [`kube::Error::Service`] that a call through a
/// [`LeaderClient`] returns. The work should stop: `LeaderContext::lost` is, or will be,
/// cancelled.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("this replica no longer leads; nothing was sent")]
pub struct NotLeading;

/// A write was not sent because its body has no place for the term.
///
/// A JSON patch is a list of operations; use a merge patch, a strategic merge patch or
/// server-side apply instead.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the body cannot carry the term; nothing was sent")]
pub struct CannotCarryTerm;

/// The client of one term; only a [`LeaderContext`](crate::LeaderContext) holds one.
///
/// Reads pass. Creates, updates and patches carry the term and are sent only while the term
/// is valid; deletes are sent only while it is valid.
#[derive(Clone)]
pub struct LeaderClient {
    client: kube::Client,
    namespace: Arc<str>,
    term: Arc<Term>,
    validity: Arc<Validity>,
}

impl fmt::Debug for LeaderClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderClient")
            .field("term", &self.term)
            .finish_non_exhaustive()
    }
}

/// What the clients of all terms of a contender share.
#[derive(Debug, Clone)]
pub(crate) struct FenceOptions {
    /// The annotation that carries the term.
    pub(crate) annotation: String,
    pub(crate) policy: FencePolicy,
    pub(crate) observer: Observer,
}

impl LeaderClient {
    pub(crate) fn new(
        inner: kube::Client,
        namespace: &str,
        term: Term,
        validity: Arc<Validity>,
        options: FenceOptions,
    ) -> Self {
        let fence = Arc::new(Fence {
            inner,
            options,
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

    /// Creates one whose validity never ends, for tests of a leader's work. Writes carry the
    /// term in the annotation `<prefix>/term`.
    #[cfg(any(test, feature = "testing"))]
    pub fn for_tests(
        client: kube::Client,
        namespace: &str,
        term: Term,
        prefix: &str,
        policy: FencePolicy,
    ) -> Self {
        let validity = Validity::new(Duration::from_secs(4), Clock::default());
        validity.set(Duration::from_millis(u64::MAX));
        let options = FenceOptions {
            annotation: crate::keys::Keys::new(prefix, prefix).term(),
            policy,
            observer: Observer::default(),
        };
        Self::new(client, namespace, term, Arc::new(validity), options)
    }

    /// Returns the objects of a kind in the Lease's namespace, behind the fence.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Returns the pods of the Lease's namespace, behind the fence.
    pub fn pods(&self) -> Api<Pod> {
        self.api()
    }

    /// Returns a [`kube::Client`] behind the fence, for objects of other namespaces and for
    /// code that takes a client.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Names an object of the Lease's namespace, as Events refer to it.
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

    /// Returns the term that the writes carry.
    pub fn term(&self) -> &Term {
        &self.term
    }

    /// Whether a write would be sent now.
    pub fn is_valid(&self) -> bool {
        !self.validity.left().is_zero()
    }

    /// Whether no renewal was acknowledged for half of the renew deadline. Work that can wait
    /// should wait then.
    pub fn is_late(&self) -> bool {
        self.validity.left() < self.validity.lasts / 2
    }
}

struct Fence {
    inner: kube::Client,
    options: FenceOptions,
    term: String,
    validity: Arc<Validity>,
    /// When the term began, since boot.
    since: Duration,
}

impl Fence {
    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, tower::BoxError> {
        match *request.method() {
            // A stale read does no harm, and a watch lasts long.
            Method::GET => Ok(self.inner.send(request).await?),
            Method::POST | Method::PUT | Method::PATCH => self.write(request).await,
            _ => self.send(request).await,
        }
    }

    async fn write(&self, request: Request<Body>) -> Result<Response<Body>, tower::BoxError> {
        let (mut parts, body) = request.into_parts();
        let changes = parts.method != Method::POST;
        let mut object: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        self.stamp(&mut object, parts.uri.path())?;
        let bytes = serde_json::to_vec(&object)?;
        parts.headers.remove(http::header::CONTENT_LENGTH);
        loop {
            let request = Request::from_parts(parts.clone(), Body::from(bytes.clone()));
            let response = self.send(request).await?;
            if changes && response.status() == StatusCode::CONFLICT {
                self.refused(Barrier::Version);
            }
            // A policy that could not be judged answers 422.
            let is_denied = response.status() == StatusCode::FORBIDDEN;
            if !is_denied && response.status() != StatusCode::UNPROCESSABLE_ENTITY {
                return Ok(response);
            }
            let (mut head, body) = response.into_parts();
            let text = timeout(REQUEST_TIMEOUT, body.collect()).await??.to_bytes();
            let status = serde_json::from_slice::<Value>(&text).ok();
            let status = status.filter(|status| {
                let message = status["message"].as_str().unwrap_or_default();
                self.options.policy.is_refusal(message)
            });
            let Some(mut status) = status else {
                return Ok(Response::from_parts(head, Body::from(text.to_vec())));
            };
            let age = self.validity.now().saturating_sub(self.since);
            if is_denied && age < LEASE_UNSEEN {
                tokio::time::sleep(RETRY_DELAY).await;
                continue;
            }
            let mut advice = "";
            if is_denied {
                self.refused(Barrier::Policy);
                if age >= LEASE_SEEN && !self.validity.left().is_zero() {
                    advice = STALE_POLICY;
                }
            }
            policy::mark(&mut status, advice);
            head.headers.remove(http::header::CONTENT_LENGTH);
            let body = Body::from(serde_json::to_vec(&status)?);
            return Ok(Response::from_parts(head, body));
        }
    }

    /// Sends if valid, for as long as valid.
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, tower::BoxError> {
        let left = self.validity.left().min(REQUEST_TIMEOUT);
        if left.is_zero() {
            self.refused(Barrier::Clock);
            return Err(NotLeading.into());
        }
        *request.uri_mut() = with_timeout(request.uri(), left)?;
        timeout(left, self.inner.send(request))
            .await?
            .map_err(Into::into)
    }

    /// Puts the term where the policy looks for it.
    fn stamp(&self, object: &mut Value, path: &str) -> Result<(), CannotCarryTerm> {
        let term = json!(self.term);
        if path.ends_with("/status") {
            if let Some(field) = &self.options.policy.status_field {
                entry(object, "status")?.insert(field.clone(), term);
            }
            return Ok(());
        }
        let metadata = object.as_object_mut().ok_or(CannotCarryTerm)?;
        let metadata = metadata.entry("metadata").or_insert(Value::Null);
        entry(metadata, "annotations")?.insert(self.options.annotation.clone(), term);
        Ok(())
    }

    fn refused(&self, by: Barrier) {
        self.options.observer.tell(Event::WriteRefused(by));
    }
}

/// The field `name` of an object, as an object; what is missing or null becomes one.
fn entry<'a>(
    object: &'a mut Value,
    name: &str,
) -> Result<&'a mut serde_json::Map<String, Value>, CannotCarryTerm> {
    if object.is_null() {
        *object = json!({});
    }
    let field = object.as_object_mut().ok_or(CannotCarryTerm)?;
    let field = field.entry(name).or_insert(Value::Null);
    if field.is_null() {
        *field = json!({});
    }
    field.as_object_mut().ok_or(CannotCarryTerm)
}

/// Asks the API server to give up when we do.
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
