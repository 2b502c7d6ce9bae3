//! List, then watch, one object by its name; again and again until it is dropped.
//!
//! Invariants: changes are reported in the API server's order. After a 410 the object is
//! listed anew; after any other failure the watch goes on from where it was, so that the
//! last state of a deleted object is not missed. Between two signs of life (an event or a
//! bookmark) lie at most [`WATCH_SECONDS`] + [`GRACE`], otherwise the watch is opened again.
//! Whatever the API server answers, requests that come to nothing are repeated with backoff.
//! An object that cannot be decoded is not reported as absent.
use std::{fmt::Debug, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use crate::error::Loggable;

/// The API server ends a watch after this time. A bookmark comes just before, so a silent
/// connection is noticed without waiting for the bookmarks that come once a minute.
const WATCH_SECONDS: u32 = 15;
/// The time by which an event or the end of a watch may be late, and within which a watch must be
/// opened. It is several round trips to a busy API server.
const GRACE: Duration = Duration::from_secs(5);
/// The longest time of one read of the object: it is one object, so an answer that takes longer
/// does not come.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// The delay after the first failure: a connection that was reset by chance is replaced before
/// anyone notices.
const MIN_DELAY: Duration = Duration::from_millis(50);
/// The longest delay between two attempts. A second after an outage the watch is back, and one
/// replica costs the API server one request a second.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// After so many refusals of a watch the object is listed anew: the API server may not know
/// the version any more and say so in other words than 410.
const MAX_REFUSALS: u32 = 5;

/// What a watch reports of its object.
#[derive(Debug)]
pub(crate) enum Change<K> {
    /// The object exists and was added, modified or listed.
    Present(K),
    /// The object was deleted; its last state.
    Deleted(K),
    /// There is no object of this name.
    Absent,
}

/// How far a watch has come.
struct Position {
    version: String,
    /// How often the watch was refused since it reported anything.
    refusals: u32,
}

/// Why a watch cannot go on, or a list failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server did not answer in time")]
    Timeout,
    #[error("the version is no longer available")]
    Expired,
    #[error(transparent)]
    Api(kube::Error),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 410 => Self::Expired,
            error => Self::Api(error),
        }
    }
}

impl Error {
    /// Whether the API server says what is wrong with the request, rather than that it is
    /// overloaded or that the credentials are not accepted yet.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if !matches!(status.code, 401 | 403 | 429 | 503))
    }
}

/// Watches the object `name` until the future is dropped; outages of any length are waited out.
pub(crate) async fn watch<K>(
    client: Client,
    namespace: &str,
    name: &str,
    mut report: impl FnMut(Change<K>) + Send,
) where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + Debug,
{
    // Decoded one by one, so that what cannot be decoded has a version.
    let kind = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &kind);
    let selector = format!("metadata.name={name}");
    let mut position: Option<Position> = None;
    // Without anything reported in between. That a list succeeds is no sign that a watch will.
    let mut failures = 0_u32;
    loop {
        let Some(at) = &mut position else {
            match list(&api, &selector, &mut report).await {
                Ok(version) => {
                    position = Some(Position {
                        version,
                        refusals: 0,
                    });
                    continue;
                }
                Err(error) => {
                    tracing::warn!(kind = kind.kind, error = %Loggable(&error), "not listed; trying again");
                }
            }
            failures += 1;
            sleep(delay(failures)).await;
            continue;
        };
        match follow(&api, &selector, at, &mut report).await {
            Ok(true) => {
                failures = 0;
                continue;
            }
            // The watch ended at once and reported nothing.
            Ok(false) => {}
            Err(Error::Expired) => position = None,
            Err(error) => {
                tracing::warn!(kind = kind.kind, error = %Loggable(&error), "watch interrupted; trying again");
                at.refusals += u32::from(error.is_refusal());
                if at.refusals >= MAX_REFUSALS {
                    position = None;
                }
            }
        }
        failures += 1;
        sleep(delay(failures)).await;
    }
}

fn delay(failures: u32) -> Duration {
    (MIN_DELAY * (1 << failures.min(10))).min(MAX_DELAY) + jitter()
}

/// Lists the object by a consistent read; returns as of which version.
async fn list<K>(
    api: &Api<DynamicObject>,
    selector: &str,
    report: &mut impl FnMut(Change<K>),
) -> Result<String, Error>
where
    K: DeserializeOwned,
{
    let params = ListParams::default().fields(selector);
    let found = timeout(LIST_TIMEOUT, api.list(&params))
        .await
        .map_err(|_| Error::Timeout)??;
    match found.items.into_iter().next() {
        None => report(Change::Absent),
        Some(object) => {
            if let Some(object) = decode(object) {
                report(Change::Present(object));
            }
        }
    }
    Ok(found.metadata.resource_version.unwrap_or_default())
}

/// Watches until the watch ends; returns whether it did so in its time or reported anything.
async fn follow<K>(
    api: &Api<DynamicObject>,
    selector: &str,
    at: &mut Position,
    report: &mut impl FnMut(Change<K>),
) -> Result<bool, Error>
where
    K: DeserializeOwned,
{
    let silence = Duration::from_secs(WATCH_SECONDS.into()) + GRACE;
    let began = tokio::time::Instant::now();
    let params = WatchParams::default()
        .fields(selector)
        .timeout(WATCH_SECONDS);
    let events = timeout(GRACE, api.watch(&params, &at.version)).await;
    let mut events = events.map_err(|_| Error::Timeout)??.boxed();
    let mut has_reported = false;
    loop {
        let event = timeout(silence, events.try_next())
            .await
            .map_err(|_| Error::Timeout)??;
        let version = match event {
            None => {
                let half = Duration::from_secs(WATCH_SECONDS.into()) / 2;
                return Ok(has_reported || began.elapsed() >= half);
            }
            Some(WatchEvent::Error(status)) => return Err(kube::Error::Api(status).into()),
            Some(WatchEvent::Bookmark(bookmark)) => Some(bookmark.metadata.resource_version),
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                let version = object.metadata.resource_version.clone();
                if let Some(object) = decode(object) {
                    report(Change::Present(object));
                }
                version
            }
            Some(WatchEvent::Deleted(object)) => {
                let version = object.metadata.resource_version.clone();
                report(decode(object).map_or(Change::Absent, Change::Deleted));
                version
            }
        };
        has_reported = true;
        at.refusals = 0;
        if let Some(version) = version {
            at.version = version;
        }
    }
}

/// Decodes an object; one of which a field is not understood is logged and left alone. What
/// it holds is not logged.
fn decode<K: DeserializeOwned>(object: DynamicObject) -> Option<K> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let decoded = serde_json::to_value(object).and_then(serde_json::from_value::<K>);
    if decoded.is_err() {
        tracing::warn!(
            name,
            "an object cannot be decoded; its last known state counts"
        );
    }
    decoded.ok()
}

/// Returns a random delay, because contenders that wake together should not write together.
pub(crate) fn jitter() -> Duration {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    Duration::from_millis(RandomState::new().build_hasher().finish() % 20)
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
