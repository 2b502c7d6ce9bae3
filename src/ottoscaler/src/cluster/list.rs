//! Lists of objects, in pages whose size follows that of the objects.
use std::time::Duration;

use http::Request;
use kube::{Api, Resource, api::ListParams};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{
    error::ErrorMessage,
    object::{self, Decoded},
};
use crate::domain::unread::Unread;

/// The time within which a page must arrive. It is at most some megabytes, which any network of a
/// cluster carries in far less.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of objects in a page. Ten thousand at once would take most of the
/// program's memory.
const MAX_PAGE_ITEMS: u32 = 500;
/// The number of objects in the first page, when their size is not known yet. Even of the largest
/// WorkerTasks so many are below 20 MiB.
const FIRST_PAGE_ITEMS: u32 = 50;
/// The size of a page in bytes that the number of its objects is chosen for. Pages of it keep a
/// list of any size at some megabytes of memory, and the number of requests small.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// A list or watch that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API server did not answer in time")]
    Timeout,
    #[error("{}", ErrorMessage(.0))]
    Api(#[from] kube::Error),
    #[error("the watch broke off: {0}")]
    Read(#[from] std::io::Error),
    #[error("the answer is not what was asked for")]
    Malformed,
}

/// An `ObjectList` holds all objects of a kind as of one version.
#[derive(Debug)]
pub struct ObjectList<T> {
    /// The objects, as they were projected.
    pub items: Vec<T>,
    /// The objects that cannot be decoded.
    pub unread: Vec<Unread>,
    /// The resourceVersion of the list.
    pub version: String,
}

/// Lists all objects as of one version, page by page. Only what `project` returns is held
/// until the list is complete.
///
/// # Errors
/// Returns an error if a page fails or has expired (410). The caller may list again.
pub async fn list<K, T>(
    api: &Api<K>,
    params: ListParams,
    project: impl Fn(K) -> Option<T>,
) -> Result<ObjectList<T>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
{
    // A list without a resourceVersion is a consistent read.
    let mut limit = FIRST_PAGE_ITEMS;
    let mut params = params.limit(limit);
    let (mut items, mut unread) = (Vec::new(), Vec::new());
    loop {
        let mut request = kube::core::Request::new(api.resource_url())
            .list(&params)
            .map_err(kube::Error::BuildRequest)?;
        // The trace span of the call gets this name.
        request.extensions_mut().insert("list");
        let text = fetch_page(api, request).await?;
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
                Decoded::Object(object) => items.extend(project(object)),
                Decoded::Unread(object) => unread.push(object),
            }
        }
        let text_of = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
        params.continue_token = Some(text_of("continue")).filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(ObjectList {
                items,
                unread,
                version: text_of("resourceVersion"),
            });
        }
        let fit = limit as usize * MAX_PAGE_BYTES / text.len().max(1);
        limit = u32::try_from(fit)
            .unwrap_or(MAX_PAGE_ITEMS)
            .clamp(1, MAX_PAGE_ITEMS);
        params.limit = Some(limit);
    }
}

async fn fetch_page<K: Resource + Clone>(
    api: &Api<K>,
    request: Request<Vec<u8>>,
) -> Result<String, Error> {
    let client = api.clone().into_client();
    let text = timeout(LIST_TIMEOUT, client.request_text(request)).await;
    Ok(text.map_err(|_| Error::Timeout)??)
}
