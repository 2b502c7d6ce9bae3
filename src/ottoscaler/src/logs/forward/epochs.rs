//! Epochs of gaps, each stored on its pod before it is used.
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::checkpoint::MAX_EPOCH;
use crate::{
    cluster::LOG_EPOCH,
    domain::pod::Pod,
    logs::read::follow::{Cluster, Error},
};

/// How often a write that meets somebody else's is tried. An annotation of a pod is written by few,
/// so that more conflicts in a row do not happen by chance.
const CONFLICTS: usize = 5;

/// Where the epochs of workers' logs are stored.
#[tonic::async_trait]
pub(super) trait EpochStore: Send + Sync + 'static {
    /// Stores on the pod, as it is known, an epoch of at least `least` that nobody has stored
    /// before, and returns it once it is stored.
    async fn reserve(&self, pod: &Pod, least: u32) -> Result<u32, Error>;
}

#[tonic::async_trait]
impl EpochStore for Cluster {
    async fn reserve(&self, pod: &Pod, least: u32) -> Result<u32, Error> {
        let (mut version, mut stored) = (pod.resource_version.to_string(), 0_u32);
        for _ in 0..CONFLICTS {
            let epoch = least.max(stored.saturating_add(1));
            let patch = json!({ "metadata": {
                "uid": pod.uid,
                // A former leader's write that takes effect late must not lower it.
                "resourceVersion": version,
                "annotations": { LOG_EPOCH: epoch.to_string() },
            }});
            let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
            let save = self.pods.patch_metadata(&pod.name, &params, &patch);
            match self.writes.pass(|| self.is_late(), save).await {
                Ok(_) => return Ok(epoch),
                Err(kube::Error::Api(status)) if status.code == 404 => return Err(Error::Gone),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
            let now = self.pods.get_metadata_opt(&pod.name).await?;
            let now = now.filter(|now| now.metadata.uid.as_deref() == Some(&*pod.uid));
            let Some(now) = now else {
                return Err(Error::Gone);
            };
            let annotations = now.metadata.annotations.unwrap_or_default();
            let epoch = annotations.get(LOG_EPOCH).and_then(|e| e.parse().ok());
            let epoch = epoch.filter(|epoch: &u32| *epoch < MAX_EPOCH);
            version = now.metadata.resource_version.unwrap_or_default();
            stored = epoch.unwrap_or(0).max(stored);
        }
        Err(Error::Timeout)
    }
}
