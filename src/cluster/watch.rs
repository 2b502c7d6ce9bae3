//! List, then watch, into the index; again and again.
//!
//! Own loop instead of kube's `watcher`, which hides bookmarks and list
//! versions: we must know how far a watch has come, and how stale it is. What
//! holds: events reach the sink in the API server's order; after a 410 the whole
//! list is taken anew; between two signs of life lie at most
//! [`WATCH_SECONDS`] + [`GRACE`], else the watch is opened again.
use std::{fmt::Debug, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api, Resource,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The API server ends a watch after this time; opening the next one shows that
/// it still answers, without waiting for its bookmarks (about one a minute).
const WATCH_SECONDS: u32 = 15;
const GRACE: Duration = Duration::from_secs(5);
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// What to watch.
#[derive(Debug, Clone)]
pub enum Select {
    Labels(String),
    /// The object of this name.
    Name(String),
}

impl Select {
    fn list(&self) -> ListParams {
        match self {
            Self::Labels(labels) => ListParams::default().labels(labels),
            Self::Name(name) => ListParams::default().fields(&format!("metadata.name={name}")),
        }
    }

    fn watch(&self) -> WatchParams {
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        match self {
            Self::Labels(labels) => params.labels(labels),
            Self::Name(name) => params.fields(&format!("metadata.name={name}")),
        }
    }
}

/// Where a watch goes.
pub trait Sink<K>: Send {
    /// Everything there is, as of `version`.
    fn reset(&self, all: Vec<K>, version: u64);
    fn applied(&self, object: K);
    fn deleted(&self, object: K);
    /// The API server has told everything up to `version`.
    fn heard(&self, version: u64);
}

/// Runs until cancelled; outages of any length are waited out.
pub async fn run<K, S>(api: Api<K>, select: Select, sink: S, cancel: CancellationToken)
where
    K: Resource + Clone + Debug + DeserializeOwned + 'static,
    S: Sink<K>,
{
    let backoff = || {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times()
            .build()
    };
    let mut delays = backoff();
    let mut from: Option<String> = None;
    while !cancel.is_cancelled() {
        let step = async {
            match &from {
                None => list(&api, &select, &sink).await.map(Some),
                Some(version) => watch(&api, &select, version.clone(), &sink).await,
            }
        };
        let result = tokio::select! {
            () = cancel.cancelled() => return,
            result = step => result,
        };
        match result {
            Ok(next) => {
                from = next;
                delays = backoff();
            }
            Err(error) => {
                tracing::warn!(%error, "watch interrupted; trying again");
                let delay = delays.next().unwrap_or(Duration::from_secs(1));
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(delay) => {}
                }
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server did not answer in time")]
    Timeout,
    #[error("{0}")]
    Api(#[from] kube::Error),
}

async fn list<K, S>(api: &Api<K>, select: &Select, sink: &S) -> Result<String, Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
    S: Sink<K>,
{
    // No resourceVersion: a consistent read.
    let list = timeout(LIST_TIMEOUT, api.list(&select.list()))
        .await
        .map_err(|_| Error::Timeout)??;
    let version = list.metadata.resource_version.unwrap_or_default();
    sink.reset(list.items, number(&version));
    Ok(version)
}

/// The version to go on from, or None when the list must be taken anew.
async fn watch<K, S>(
    api: &Api<K>,
    select: &Select,
    mut version: String,
    sink: &S,
) -> Result<Option<String>, Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
    S: Sink<K>,
{
    let params = select.watch();
    let silence = Duration::from_secs(WATCH_SECONDS.into()) + GRACE;
    let opened = timeout(GRACE, api.watch(&params, &version))
        .await
        .map_err(|_| Error::Timeout)?;
    let mut events = match opened {
        Ok(events) => events.boxed(),
        Err(kube::Error::Api(status)) if status.code == 410 => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    sink.heard(number(&version));
    loop {
        let next = timeout(silence, events.try_next())
            .await
            .map_err(|_| Error::Timeout)?;
        let seen = |object: &K| object.meta().resource_version.clone();
        match next? {
            None => {
                sink.heard(number(&version));
                return Ok(Some(version));
            }
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                version = seen(&object).unwrap_or(version);
                sink.applied(object);
            }
            Some(WatchEvent::Deleted(object)) => {
                version = seen(&object).unwrap_or(version);
                sink.deleted(object);
            }
            Some(WatchEvent::Bookmark(mark)) => version = mark.metadata.resource_version,
            Some(WatchEvent::Error(status)) if status.code == 410 => return Ok(None),
            Some(WatchEvent::Error(status)) => return Err(kube::Error::Api(status).into()),
        }
        sink.heard(number(&version));
    }
}

fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}
