//! The shards as the API server has them.
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use http::StatusCode;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    cluster::Loggable,
    election::{LeaderClient, NotLeading, is_fenced},
};

/// The chart's Role and policy name the objects: PREFIX-0, PREFIX-1 …
const PREFIX: &str = "ottoscaler-log-checkpoints";
/// The form of the text (`text.rs`). A later version may keep another one beside it.
const KEY: &str = "v1";
const MANAGER: &str = "ottoscaler";
/// The deadline of one call for a shard. A drain may have one call to wait for before it stores
/// what is left, and both together with the last answers of otto-handler take less than
/// HANDOVER_TIMEOUT.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A shard was not read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("not within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// It is not the version that was to be replaced, or is gone.
    #[error("somebody else changed it")]
    Changed,
    #[error("{}", Loggable(.0))]
    Api(#[source] kube::Error),
}

impl Error {
    /// Asking again would give the same answer: a right is missing, or the object is none.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Api(kube::Error::Api(status)) => status.code == StatusCode::FORBIDDEN,
            Self::Api(kube::Error::SerdeError(_)) => true,
            _ => false,
        }
    }

    /// The term is over: others store checkpoints now.
    fn is_of_the_fence(&self) -> bool {
        match self {
            Self::Api(kube::Error::Api(status)) => is_fenced(status),
            Self::Api(kube::Error::Service(error)) => error.is::<NotLeading>(),
            _ => false,
        }
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if matches!(status.code, 404 | 409) => Self::Changed,
            error => Self::Api(error),
        }
    }
}

/// A shard's text and the version of its object.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) text: String,
    pub(super) version: Option<String>,
}

#[derive(Debug)]
pub(super) struct Store {
    api: Api<ConfigMap>,
    client: LeaderClient,
    /// Shards that cannot be written: the first is told in the log.
    failing: AtomicUsize,
}

impl Store {
    pub(super) fn new(client: &LeaderClient) -> Self {
        Self {
            api: client.api(),
            client: client.clone(),
            failing: AtomicUsize::new(0),
        }
    }

    /// Renewals of the Lease are late: whatever can wait should.
    pub(super) fn is_late(&self) -> bool {
        self.client.is_late()
    }

    /// Empty where there is no such object.
    pub(super) async fn read(&self, shard: u32) -> Result<Stored, Error> {
        let name = name(shard);
        let read = timeout(CALL_TIMEOUT, self.api.get_opt(&name));
        let Some(object) = read.await.map_err(|_| Error::Timeout)?? else {
            return Ok(Stored::default());
        };
        let text = object.data.and_then(|mut data| data.remove(KEY));
        Ok(Stored {
            text: text.unwrap_or_default(),
            version: object.metadata.resource_version,
        })
    }

    /// Replaces that version of a shard, or whatever there is (None), and makes the object
    /// where it is missing. Returns its new version.
    pub(super) async fn write(
        &self,
        shard: u32,
        text: &str,
        version: Option<&str>,
    ) -> Result<Option<String>, Error> {
        let name = name(shard);
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "resourceVersion": version,
                "labels": {
                    "app.kubernetes.io/name": "ottoscaler",
                    "app.kubernetes.io/component": "log-checkpoints",
                },
            },
            "data": { KEY: text },
        });
        // Whoever else wrote these fields made a mistake.
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let write = timeout(
            CALL_TIMEOUT,
            self.api.patch_metadata(&name, &params, &patch),
        );
        let written = write.await.map_err(|_| Error::Timeout)??;
        Ok(written.metadata.resource_version)
    }

    /// A shard's writes begin to fail.
    pub(super) fn fails(&self, shard: u32, error: &Error) {
        let others = self.failing.fetch_add(1, Ordering::Relaxed);
        if others == 0 && !error.is_of_the_fence() {
            tracing::warn!(
                name = name(shard),
                %error,
                "checkpoints of logs are not stored; trying again, lines are sent again by whoever leads next"
            );
        }
    }

    /// They no longer do.
    pub(super) fn works_again(&self) {
        if self.failing.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!("checkpoints of logs are stored again");
        }
    }
}

fn name(shard: u32) -> String {
    format!("{PREFIX}-{shard}")
}
