//! The access of gRPC methods to the index.
use std::time::Duration;

use tonic::{Status, metadata::MetadataMap};

use super::{errors, forward::insert_metadata};
use crate::index::Index;

/// The staleness of the index from which on a response is marked stale. Each watch reports progress
/// every 15 s, so one that is late by as much again is broken.
const STALE_AFTER: Duration = Duration::from_secs(30);

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

/// A `Staleness` is the time for which this replica has received nothing from the API server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Staleness(Duration);

impl Staleness {
    pub(super) fn of(index: &Index) -> Self {
        Self(index.staleness())
    }

    /// Reports whether a response is marked stale.
    pub(super) fn is_stale(self) -> bool {
        self.0 > STALE_AFTER
    }

    /// Adds the time to the metadata of a response.
    pub(super) fn insert_into(self, metadata: &mut MetadataMap) {
        insert_metadata(metadata, "staleness-ms", &self.0.as_millis().to_string());
    }
}
