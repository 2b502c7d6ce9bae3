//! The index as methods read it.
use tonic::Status;

use super::errors;
use crate::index::Index;

/// The index of this replica. No method answers from it before both watches have
/// listed: it would show an empty cluster.
#[derive(Debug, Clone)]
pub(super) struct Reads(Index);

impl Reads {
    pub(super) fn new(index: Index) -> Self {
        Self(index)
    }

    /// # Errors
    /// UNAVAILABLE until there is something to read.
    pub(super) fn synced(&self) -> Result<&Index, Status> {
        if self.0.synced() {
            Ok(&self.0)
        } else {
            Err(errors::not_synced())
        }
    }

    /// See [`Index::reached`].
    pub(super) async fn reached(&self, task_version: u64, pod_version: u64) {
        self.0.reached(task_version, pod_version).await;
    }
}
