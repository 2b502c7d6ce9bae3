//! Lists objects, then watches them, and hands each change to a [`WatchHandler`].
//!
//! This is not kube's `watcher`, which hides bookmarks and the versions of lists: the index
//! must know how far a watch has come, and for how long it has received nothing.
//!
//! Invariants:
//! - The handler receives events in the API server's order. After a 410 it receives a new
//!   complete list.
//! - An object that cannot be decoded does not stop the watch. The handler receives it as
//!   [`Unread`], and the events after it follow.
//! - Between two events or bookmarks lie at most [`WATCH_SECONDS`] + [`GRACE`]; otherwise the
//!   watch is opened again. Only an event or bookmark that was handled counts as progress. That
//!   a watch could be opened does not.
//! - Attempts without progress are repeated with a growing backoff, whatever the API server
//!   answers. Progress resets the backoff.
use std::{fmt::Debug, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use kube::{
    Api, Resource,
    api::{ListParams, WatchParams},
    core::Status,
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Loggable,
    object::{self, Decoded},
};
pub use super::{
    list::{Error, ObjectList, list},
    object::parse_version,
};
use crate::domain::unread::Unread;

/// The time after which the API server ends a watch, in seconds. It sends a bookmark just
/// before the end, so a short watch yields bookmarks more often than once a minute.
const WATCH_SECONDS: u32 = 15;
/// The time by which an event or the end of a watch may be late, and within which a watch must be
/// opened. It is several round trips to a busy API server.
const GRACE: Duration = Duration::from_secs(5);
/// The longest backoff after a failed request. A second after an outage the index follows again,
/// and one replica costs the API server a few requests a second.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The longest backoff before a new list, where no watch since the last one made progress.
/// Lists are expensive: each returns all objects.
const MAX_RELIST_DELAY: Duration = Duration::from_secs(30);
/// The number of refusals of a watch after which the objects are listed again. The API server
/// may refuse a version that it no longer has with another status than 410.
const MAX_REFUSALS: u32 = 5;

/// A `Select` says which objects of a kind to list and watch.
#[derive(Debug, Clone)]
pub enum Select {
    /// All objects.
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

/// A `WatchHandler` receives what a watch reports.
pub trait WatchHandler<K>: Send {
    /// The form in which a listed object is held until the list is complete.
    type Item: Send;

    /// Reduces an object to what the handler needs; returns `None` to ignore the object.
    fn project(object: K) -> Option<Self::Item>;
    /// Replaces everything by a complete list as of `version`; `unread` are its objects that
    /// cannot be decoded.
    fn replace(&self, all: Vec<Self::Item>, unread: Vec<Unread>, version: u64);
    /// Replaces everything by a list whose objects can all be decoded.
    fn reset(&self, all: Vec<Self::Item>, version: u64) {
        self.replace(all, Vec::new(), version);
    }
    /// Takes an object that was created or changed.
    fn apply(&self, object: K);
    /// Takes the last state of an object that was deleted.
    fn delete(&self, object: K);
    /// Takes an object that was created or changed and cannot be decoded.
    fn apply_unread(&self, object: Unread) {
        object::log_unread(&object);
    }
    /// Takes a deleted object whose last state cannot be decoded.
    fn delete_unread(&self, object: Unread) {
        object::log_unread(&object);
    }
    /// Notes that every change up to `version` has been received.
    fn synced_to(&self, version: u64);
}

/// The position up to which changes have been received.
struct Position {
    version: String,
    /// Whether the watch has passed the version of the list that it began with.
    is_past_list: bool,
    /// Whether the open watch, or the last one, made progress.
    has_progress: bool,
    /// The number of refusals since the last progress.
    refusals: u32,
}

/// How an opened watch ended.
enum WatchEnd {
    /// It lasted its time, or made progress.
    Normal,
    /// It ended early without progress.
    Empty,
    /// The API server no longer has the version, so a new list is needed.
    Expired,
}

fn backoff(max_delay: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(max_delay)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Lists and watches until cancelled. It outlasts an outage of any length.
pub async fn run<K, H>(api: Api<K>, select: Select, handler: H, cancel: CancellationToken)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
    H: WatchHandler<K>,
{
    // Cancellation takes effect between two events or during a wait.
    cancel
        .run_until_cancelled(Box::pin(run_forever(api, select, handler)))
        .await;
}

async fn run_forever<K, H>(api: Api<K>, select: Select, handler: H)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
    H: WatchHandler<K>,
{
    let (mut retries, mut relists) = (backoff(MAX_RETRY_DELAY), backoff(MAX_RELIST_DELAY));
    let mut position: Option<Position> = None;
    loop {
        let delay = match &mut position {
            None => match relist(&api, &select, &handler).await {
                Ok(version) => {
                    position = Some(Position {
                        version,
                        is_past_list: false,
                        has_progress: false,
                        refusals: 0,
                    });
                    None
                }
                Err(error) => {
                    tracing::warn!(error = %Loggable(&error), "not listed; trying again");
                    retries.next()
                }
            },
            Some(at) => {
                let ended = watch(&api, &select, at, &handler).await;
                if at.is_past_list {
                    relists = backoff(MAX_RELIST_DELAY);
                }
                if at.has_progress {
                    retries = backoff(MAX_RETRY_DELAY);
                }
                match ended {
                    Ok(WatchEnd::Normal) => None,
                    Ok(WatchEnd::Empty) => retries.next(),
                    Ok(WatchEnd::Expired) => {
                        let is_past_list = at.is_past_list;
                        position = None;
                        if is_past_list { None } else { relists.next() }
                    }
                    Err(error) => {
                        tracing::warn!(error = %Loggable(&error), "watch interrupted; trying again");
                        if at.refusals >= MAX_REFUSALS {
                            position = None;
                        }
                        retries.next()
                    }
                }
            }
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }
}

/// Hands a complete list to the handler and returns its version.
async fn relist<K, H>(api: &Api<K>, select: &Select, handler: &H) -> Result<String, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
    H: WatchHandler<K>,
{
    let found = list(api, select.list(), H::project).await?;
    handler.replace(found.items, found.unread, parse_version(&found.version));
    Ok(found.version)
}

/// Opens a watch and hands over its events until it ends.
async fn watch<K, H>(
    api: &Api<K>,
    select: &Select,
    at: &mut Position,
    handler: &H,
) -> Result<WatchEnd, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
    H: WatchHandler<K>,
{
    at.has_progress = false;
    let opened_at = Instant::now();
    let max_silence = Duration::from_secs(WATCH_SECONDS.into()) + GRACE;
    let mut request = kube::core::Request::new(api.resource_url())
        .watch(&select.watch(), &at.version)
        .map_err(kube::Error::BuildRequest)?;
    // The trace span of the call gets this name.
    request.extensions_mut().insert("watch");
    let client = api.clone().into_client();
    let opened = timeout(GRACE, client.request_stream(request))
        .await
        .map_err(|_| Error::Timeout)?;
    let lines = match opened {
        Ok(lines) => lines,
        Err(kube::Error::Api(status)) if status.code == 410 => return Ok(WatchEnd::Expired),
        Err(error) => {
            at.refusals += u32::from(is_refusal(&error));
            return Err(error.into());
        }
    };
    let lines = std::pin::pin!(lines);
    let mut lines = lines.lines();
    loop {
        let line = timeout(max_silence, lines.try_next())
            .await
            .map_err(|_| Error::Timeout)??;
        let Some(line) = line else {
            let has_lasted = opened_at.elapsed() >= Duration::from_secs(WATCH_SECONDS.into()) / 2;
            return Ok(if at.has_progress || has_lasted {
                WatchEnd::Normal
            } else {
                WatchEnd::Empty
            });
        };
        let version = match handle_line::<K, H>(&line, handler)? {
            Line::Handled(version) => version,
            Line::UnknownType => continue,
            Line::Error(status) if status.code == 410 => return Ok(WatchEnd::Expired),
            Line::Error(status) => {
                let error = kube::Error::Api(status);
                at.refusals += u32::from(is_refusal(&error));
                return Err(error.into());
            }
        };
        at.has_progress = true;
        at.refusals = 0;
        if let Some(version) = version {
            at.is_past_list |= version != at.version;
            at.version = version;
        }
        handler.synced_to(parse_version(&at.version));
    }
}

/// Reports whether the API server refused the request for what it asks, so that the same
/// request will fail again. Missing permissions and overload do not count.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if !matches!(status.code, 401 | 403 | 429 | 503))
}

/// The meaning of a line of a watch.
enum Line {
    /// An event or bookmark that was handled, with its resourceVersion where it has one.
    Handled(Option<String>),
    /// An event of a type that this version does not know.
    UnknownType,
    /// The API server ended the watch with an error.
    Error(Box<Status>),
}

/// Hands the event of a line to the handler.
fn handle_line<K, H>(line: &str, handler: &H) -> Result<Line, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
    H: WatchHandler<K>,
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
                Decoded::Object(object) => handler.apply(object),
                Decoded::Unread(object) => handler.apply_unread(object),
            }
            Line::Handled(version)
        }
        "DELETED" => {
            let (object, version) = object::decode::<K>(text);
            match object {
                Decoded::Object(object) => handler.delete(object),
                Decoded::Unread(object) => handler.delete_unread(object),
            }
            Line::Handled(version)
        }
        "BOOKMARK" => Line::Handled(object::resource_version(text)),
        "ERROR" => Line::Error(serde_json::from_str(text).unwrap_or_default()),
        _ => Line::UnknownType,
    })
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
