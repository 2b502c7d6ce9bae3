//! List, then watch, into the index; again and again.
//!
//! Own loop instead of kube's `watcher`, which hides bookmarks and list
//! versions: we must know how far a watch has come, and how stale it is. What
//! holds: events reach the sink in the API server's order; after a 410 the whole
//! list is taken anew; between two signs of life lie at most
//! [`WATCH_SECONDS`] + [`GRACE`], else the watch is opened again. An object that cannot
//! be decoded holds nobody up: the sink is told of it, and the watch goes on behind it. A
//! sign of life is an event or a bookmark that was taken in: that a watch can be opened is
//! none. Whatever the API server answers, what comes to nothing is tried again ever less
//! often, until something is told.
use std::{fmt::Debug, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use http::Request;
use kube::{
    Api, Resource,
    api::{ListParams, WatchParams},
    core::Status,
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use super::object::number;
use super::{
    Loggable,
    error::Brief,
    object::{self, Object},
};
use crate::domain::unread::Unread;

/// The API server ends a watch after this time; a bookmark comes just before, so without
/// waiting for those that come once a minute.
const WATCH_SECONDS: u32 = 15;
const GRACE: Duration = Duration::from_secs(5);
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Objects in one answer: ten thousand at once would be most of our memory.
const PAGE: u32 = 500;
/// Objects in the first answer: how large they are is not known yet.
const FIRST_PAGE: u32 = 50;
/// Bytes that an answer is to have at most; the pages follow the size of the objects.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// The longest wait before an answer of the API server that failed is asked for again.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// The longest wait before a list is taken anew of which no watch told anything: each is
/// all there is.
const MAX_RELIST_DELAY: Duration = Duration::from_secs(30);
/// Refusals of a watch after which the list is taken anew: the API server may not know the
/// version any more and say so in other words than 410.
const REFUSALS: u32 = 5;

/// What to watch.
#[derive(Debug, Clone)]
pub enum Select {
    /// Every object.
    All,
    /// The object of this name.
    Name(String),
}

impl Select {
    fn list(&self) -> ListParams {
        match self {
            Self::All => ListParams::default(),
            Self::Name(name) => ListParams::default().fields(&format!("metadata.name={name}")),
        }
    }

    fn watch(&self) -> WatchParams {
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        match self {
            Self::All => params,
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
    /// Everything there is, as of `version`, and what of it cannot be decoded.
    fn listed(&self, all: Vec<Self::Kept>, unread: Vec<Unread>, version: u64);
    /// The same of a list that can all be decoded.
    fn reset(&self, all: Vec<Self::Kept>, version: u64) {
        self.listed(all, Vec::new(), version);
    }
    fn applied(&self, object: K);
    fn deleted(&self, object: K);
    /// An object is there, or was changed, that cannot be decoded.
    fn unread(&self, object: Unread) {
        object::log(&object);
    }
    /// An object was deleted whose last state cannot be decoded.
    fn unread_deleted(&self, object: Unread) {
        object::log(&object);
    }
    /// The API server has told everything up to `version`.
    fn heard(&self, version: u64);
}

/// How far a watch has come.
struct Place {
    version: String,
    /// It has come further than the list that it began with.
    has_moved: bool,
    /// The watch that is open, or was last, told something.
    has_told: bool,
    /// Refusals since it told something.
    refusals: u32,
}

/// How a watch ended that was opened.
enum Ended {
    /// In its time, or having told something.
    Well,
    /// At once, having told nothing.
    Empty,
    /// The version is no longer to be had: list anew.
    Expired,
}

fn backoff(most: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(most)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Runs until cancelled; outages of any length are waited out.
pub async fn run<K, S>(api: Api<K>, select: Select, sink: S, cancel: CancellationToken)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
    S: Sink<K>,
{
    // Between two events, or in a wait.
    cancel
        .run_until_cancelled(Box::pin(forever(api, select, sink)))
        .await;
}

async fn forever<K, S>(api: Api<K>, select: Select, sink: S)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
    S: Sink<K>,
{
    let (mut delays, mut relists) = (backoff(MAX_DELAY), backoff(MAX_RELIST_DELAY));
    let mut place: Option<Place> = None;
    loop {
        let delay = match &mut place {
            None => match reset(&api, &select, &sink).await {
                Ok(version) => {
                    place = Some(Place {
                        version,
                        has_moved: false,
                        has_told: false,
                        refusals: 0,
                    });
                    None
                }
                Err(error) => {
                    tracing::warn!(error = %Loggable(&error), "not listed; trying again");
                    delays.next()
                }
            },
            Some(at) => {
                let ended = watch(&api, &select, at, &sink).await;
                if at.has_moved {
                    relists = backoff(MAX_RELIST_DELAY);
                }
                if at.has_told {
                    delays = backoff(MAX_DELAY);
                }
                match ended {
                    Ok(Ended::Well) => None,
                    Ok(Ended::Empty) => delays.next(),
                    Ok(Ended::Expired) => {
                        let has_moved = at.has_moved;
                        place = None;
                        if has_moved { None } else { relists.next() }
                    }
                    Err(error) => {
                        tracing::warn!(error = %Loggable(&error), "watch interrupted; trying again");
                        if at.refusals >= REFUSALS {
                            place = None;
                        }
                        delays.next()
                    }
                }
            }
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }
}

/// The API server did not tell what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API server did not answer in time")]
    Timeout,
    #[error("{}", Brief(.0))]
    Api(#[from] kube::Error),
    #[error("the watch broke off: {0}")]
    Read(#[from] std::io::Error),
    #[error("the answer is not what was asked for")]
    Malformed,
}

/// What a list found.
#[derive(Debug)]
pub struct Listed<T> {
    /// What was kept.
    pub all: Vec<T>,
    /// What cannot be decoded.
    pub unread: Vec<Unread>,
    /// As of which version.
    pub version: String,
}

/// Everything there is, of one moment; in pages, of each of which only what `keep` makes
/// of it outlives it.
///
/// # Errors
/// A page did not come, or is no longer to be had (410): list anew.
pub async fn list<K, T>(
    api: &Api<K>,
    params: ListParams,
    keep: impl Fn(K) -> Option<T>,
) -> Result<Listed<T>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
{
    // No resourceVersion: a consistent read.
    let mut limit = FIRST_PAGE;
    let mut params = params.limit(limit);
    let (mut all, mut unread) = (Vec::new(), Vec::new());
    loop {
        let mut request = kube::core::Request::new(api.resource_url())
            .list(&params)
            .map_err(kube::Error::BuildRequest)?;
        // Names the span.
        request.extensions_mut().insert("list");
        let text = page(api, request).await?;
        let (mut metadata, mut page) = (serde_json::Value::Null, None);
        for (key, value) in object::fields(&text) {
            match &*key {
                "metadata" => metadata = serde_json::from_str(value).unwrap_or_default(),
                "items" if value.trim() == "null" => page = Some(Vec::new()),
                "items" => page = object::items(value),
                _ => {}
            }
        }
        for item in page.ok_or(Error::Malformed)? {
            match object::decode::<K>(item).0 {
                Object::Known(object) => all.extend(keep(object)),
                Object::Unread(object) => unread.push(object),
            }
        }
        let told = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
        params.continue_token = Some(told("continue")).filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(Listed {
                all,
                unread,
                version: told("resourceVersion"),
            });
        }
        let fit = limit as usize * PAGE_BYTES / text.len().max(1);
        limit = u32::try_from(fit).unwrap_or(PAGE).clamp(1, PAGE);
        params.limit = Some(limit);
    }
}

fn client_of<K: Resource + Clone>(api: &Api<K>) -> kube::Client {
    api.clone().into_client()
}

async fn page<K: Resource + Clone>(
    api: &Api<K>,
    request: Request<Vec<u8>>,
) -> Result<String, Error> {
    let client = client_of(api);
    let text = timeout(LIST_TIMEOUT, client.request_text(request)).await;
    Ok(text.map_err(|_| Error::Timeout)??)
}

async fn reset<K, S>(api: &Api<K>, select: &Select, sink: &S) -> Result<String, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
    S: Sink<K>,
{
    let found = list(api, select.list(), S::keep).await?;
    sink.listed(found.all, found.unread, number(&found.version));
    Ok(found.version)
}

async fn watch<K, S>(
    api: &Api<K>,
    select: &Select,
    at: &mut Place,
    sink: &S,
) -> Result<Ended, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
    S: Sink<K>,
{
    at.has_told = false;
    let begun = Instant::now();
    let silence = Duration::from_secs(WATCH_SECONDS.into()) + GRACE;
    let mut request = kube::core::Request::new(api.resource_url())
        .watch(&select.watch(), &at.version)
        .map_err(kube::Error::BuildRequest)?;
    // Names the span.
    request.extensions_mut().insert("watch");
    let client = client_of(api);
    let opened = timeout(GRACE, client.request_stream(request))
        .await
        .map_err(|_| Error::Timeout)?;
    let lines = match opened {
        Ok(lines) => lines,
        Err(kube::Error::Api(status)) if status.code == 410 => return Ok(Ended::Expired),
        Err(error) => {
            at.refusals += u32::from(is_refusal(&error));
            return Err(error.into());
        }
    };
    let lines = std::pin::pin!(lines);
    let mut lines = lines.lines();
    loop {
        let line = timeout(silence, lines.try_next())
            .await
            .map_err(|_| Error::Timeout)??;
        let Some(line) = line else {
            let lasted = begun.elapsed() >= Duration::from_secs(WATCH_SECONDS.into()) / 2;
            let well = at.has_told || lasted;
            return Ok(if well { Ended::Well } else { Ended::Empty });
        };
        let version = match tell::<K, S>(&line, sink)? {
            Told::Event(version) => version,
            Told::Nothing => continue,
            Told::Failed(status) if status.code == 410 => return Ok(Ended::Expired),
            Told::Failed(status) => {
                let error = kube::Error::Api(status);
                at.refusals += u32::from(is_refusal(&error));
                return Err(error.into());
            }
        };
        at.has_told = true;
        at.refusals = 0;
        if let Some(version) = version {
            at.has_moved |= version != at.version;
            at.version = version;
        }
        sink.heard(number(&at.version));
    }
}

/// The API server said what is wrong, and it will be so the next time; not that it has too
/// much to do.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if !matches!(status.code, 401 | 403 | 429 | 503))
}

/// What a line of a watch was.
enum Told {
    /// Something that was taken in, and its resourceVersion where it has one.
    Event(Option<String>),
    /// A kind of event that this version does not know.
    Nothing,
    Failed(Box<Status>),
}

fn tell<K, S>(line: &str, sink: &S) -> Result<Told, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
    S: Sink<K>,
{
    let (mut kind, mut text) = (String::new(), None);
    for (key, value) in object::fields(line) {
        match &*key {
            "type" => kind = serde_json::from_str(value).unwrap_or_default(),
            "object" => text = Some(value),
            _ => {}
        }
    }
    let text = text.ok_or(Error::Malformed)?;
    Ok(match kind.as_str() {
        "ADDED" | "MODIFIED" => {
            let (object, version) = object::decode::<K>(text);
            match object {
                Object::Known(object) => sink.applied(object),
                Object::Unread(object) => sink.unread(object),
            }
            Told::Event(version)
        }
        "DELETED" => {
            let (object, version) = object::decode::<K>(text);
            match object {
                Object::Known(object) => sink.deleted(object),
                Object::Unread(object) => sink.unread_deleted(object),
            }
            Told::Event(version)
        }
        "BOOKMARK" => Told::Event(object::version(text)),
        "ERROR" => Told::Failed(serde_json::from_str(text).unwrap_or_default()),
        _ => Told::Nothing,
    })
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
