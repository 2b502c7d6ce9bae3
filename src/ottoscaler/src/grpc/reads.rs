//! The access of gRPC methods to the index.
use tonic::Status;

use super::errors;
use crate::index::Index;

/// A `SyncedIndex` is the index of this replica, which no method reads before both watches have
/// listed: until then it would show an empty cluster.
#[derive(Debug, Clone)]
pub(super) struct SyncedIndex(Index);

impl SyncedIndex {
    pub(super) fn new(index: Index) -> Self {
        Self(index)
    }

    /// Returns the index once both watches have listed.
    ///
    /// # Errors
    /// Returns UNAVAILABLE before.
    pub(super) fn synced(&self) -> Result<&Index, Status> {
        if self.0.synced() {
            Ok(&self.0)
        } else {
            Err(errors::not_synced())
        }
    }

    /// Waits until the watches have reached these versions, see [`Index::wait_for_versions`].
    pub(super) async fn reached(&self, task_version: u64, pod_version: u64) {
        self.0.wait_for_versions(task_version, pod_version).await;
    }
}
