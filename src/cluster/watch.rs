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
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Objects in one answer: ten thousand at once would be most of our memory.
const PAGE: u32 = 500;

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
    /// What is left of a listed object while the rest of the list comes.
    type Kept: Send;

    /// None: of no interest.
    fn keep(object: K) -> Option<Self::Kept>;
    /// Everything there is, as of `version`.
    fn reset(&self, all: Vec<Self::Kept>, version: u64);
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
                None => reset(&api, &select, &sink).await.map(Some),
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

/// The API server did not tell what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API server did not answer in time")]
    Timeout,
    #[error("{0}")]
    Api(#[from] kube::Error),
}

/// Everything there is, of one moment, and as of which version; in pages, of each of
/// which only what `keep` makes of it outlives it.
///
/// # Errors
/// A page did not come, or is no longer to be had (410): list anew.
pub async fn list<K, T>(
    api: &Api<K>,
    params: ListParams,
    keep: impl Fn(K) -> Option<T>,
) -> Result<(Vec<T>, String), Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    // No resourceVersion: a consistent read.
    let mut params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = timeout(LIST_TIMEOUT, api.list(&params))
            .await
            .map_err(|_| Error::Timeout)??;
        all.extend(page.items.into_iter().filter_map(&keep));
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok((all, page.metadata.resource_version.unwrap_or_default()));
        }
    }
}

async fn reset<K, S>(api: &Api<K>, select: &Select, sink: &S) -> Result<String, Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
    S: Sink<K>,
{
    let (all, version) = list(api, select.list(), S::keep).await?;
    sink.reset(all, number(&version));
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

/// Versions of one resource can be compared (KEP-5504).
pub fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use http::{Request, Response};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Client, ResourceExt, client::Body};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_list_comes_in_pages_of_one_moment() {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = asked.clone();
        let client = Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let query = request.uri().query().unwrap().to_owned();
                let rest = if query.contains("continue=more") {
                    ""
                } else {
                    "more"
                };
                heard.lock().unwrap().push(query);
                let page = json!({
                    "metadata": {"resourceVersion": "7", "continue": rest},
                    "items": [{"metadata": {"name": format!("before {rest}")}}],
                });
                async move {
                    Ok::<_, Infallible>(Response::new(Body::from(page.to_string().into_bytes())))
                }
            }),
            "n",
        );
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        let (all, version) = list(&maps, ListParams::default().labels("a=b"), Some)
            .await
            .unwrap();
        let names: Vec<String> = all.iter().map(ResourceExt::name_any).collect();
        assert_eq!(
            (names.join(", "), number(&version)),
            ("before more, before ".to_owned(), 7)
        );
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 2);
        assert!(
            asked
                .iter()
                .all(|q| q.contains("limit=500") && q.contains("labelSelector=a"))
        );
    }
}
