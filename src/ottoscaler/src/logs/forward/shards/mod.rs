//! Where the checkpoints of all logs are stored: in a fixed set of ConfigMaps, the shards.
//!
//! A session notes its checkpoint here after each answer of otto-handler, in memory. One
//! writer a shard stores what changed. A new leader reads the shards before it opens a log.
//!
//! # Invariants
//!
//! - A shard has one write in flight at most, and begins one no sooner than a second after
//!   the one before: the shards cost at most [`SHARDS`] writes a second however many pods
//!   are followed, and a killed leader's successor repeats what was acknowledged in little
//!   more than a second.
//! - Each write carries the whole shard, the term, which the fence policy holds against the
//!   Lease, and the version of the object that it replaces: a former leader's write is
//!   refused by either.
//! - A checkpoint belongs to the uid of a pod; another pod of the same name gets none. It
//!   leaves its shard once the pod is gone.
//! - What is read is what anybody may have written. Whatever is wrong with a shard (it is
//!   missing, foreign or refused) costs repeated lines after the next change of leader, and
//!   one line in our log; it holds up no session and ends no replica.
//! - A drain ends only when everything is stored, or [`writer::FLUSH_WITHIN`] is over.
//!
//! # Why so
//!
//! An annotation of the pod would be a write of the pod for each checkpoint, which its
//! kubelet and every watch of pods take in; so few of these are possible a second that
//! checkpoints of many pods grow old. Leases are no place either: the API servers follow
//! them all for the fence policy.
//!
//! The leader makes the objects by server-side apply, whose create RBAC can hold to a name,
//! so the chart grants these names and no others. Helm does not know the objects, and so
//! an upgrade does not touch what they hold.
//!
//! The text is one value, not a key for each pod: for each key the API server would keep a
//! record of who manages it. etcd stores an object as a whole on each write, whatever a
//! patch holds, so several shards keep each write small, and [`writer`] writes larger
//! shards less often.
mod shard;
mod store;
#[cfg(test)]
mod test_api;
mod text;
mod writer;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::join_all;
use shard::Shard;
use store::Store;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use writer::{WRITE_INTERVAL, Writer};

use super::{checkpoint::Checkpoint, metrics::Metrics};
use crate::election::LeaderClient;

/// The number of shards. A thousand pods are some 60 a shard, 6 KiB a write. The chart's Role and
/// policy name each of them (charts/ottoscaler/templates/_helpers.tpl).
const SHARDS: u32 = 16;

/// The checkpoints of all pods, by uid. Sessions write and read it; each shard's writer
/// stores what they wrote.
#[derive(Debug, Clone)]
pub(super) struct Checkpoints(Arc<[Mutex<Shard>]>);

impl Default for Checkpoints {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl Checkpoints {
    pub(super) fn get(&self, uid: &str) -> Option<Checkpoint> {
        self.shard_of(uid).get(uid).cloned()
    }

    /// A session of that pod begins at that checkpoint.
    pub(super) fn begin(&self, uid: &str, from: &Checkpoint) {
        self.shard_of(uid).begin(uid, from);
    }

    /// The session of that pod has come to that checkpoint.
    pub(super) fn note(&self, uid: &str, checkpoint: &Checkpoint) {
        self.shard_of(uid).note(uid, checkpoint);
    }

    /// Removes the checkpoints of all other pods.
    pub(super) fn retain(&self, live: &HashSet<String>) {
        for shard in 0..SHARDS {
            self.shard(shard).retain(|uid| live.contains(uid));
        }
    }

    fn adopt(&self, uid: String, checkpoint: Checkpoint) {
        self.shard_of(&uid).adopt(uid, checkpoint);
    }

    fn shard_of(&self, uid: &str) -> MutexGuard<'_, Shard> {
        // FNV-1a.
        let hash = uid.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        self.shard(hash % SHARDS)
    }

    fn shard(&self, number: u32) -> MutexGuard<'_, Shard> {
        let shard = &self.0[number as usize];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores the checkpoints of a term.
pub(super) struct Writers(Vec<Writer>);

/// Reads what former leaders stored, and what is to store it from now on.
pub(super) async fn adopt(client: &LeaderClient, metrics: &Metrics) -> (Checkpoints, Writers) {
    let (checkpoints, store) = (Checkpoints::default(), Arc::new(Store::new(client)));
    let writers = (0..SHARDS)
        .map(|shard| Writer::new(shard, checkpoints.clone(), store.clone(), metrics.clone()));
    let adopted = join_all(writers.map(Writer::adopt)).await;
    let unread = adopted.iter().filter_map(|a| a.error.as_ref());
    if let Some(error) = unread.clone().next() {
        let shards = unread.count();
        tracing::warn!(%error, shards, "checkpoints of logs were not read; lines are sent again");
    }
    let bad: usize = adopted.iter().map(|a| a.bad).sum();
    if bad > 0 {
        tracing::warn!(
            lines = bad,
            "checkpoints of logs are none: somebody changed them; lines are sent again"
        );
    }
    let writers = adopted.into_iter().map(|a| a.writer).collect();
    (checkpoints, Writers(writers))
}

impl Writers {
    /// Stores what changes until `ended`, and then what is left.
    pub(super) async fn run(self, ended: &CancellationToken) {
        let now = Instant::now();
        let run = |(writer, n): (Writer, u32)| {
            // One after the other, not all at the same moment.
            writer.run(now + WRITE_INTERVAL * n / SHARDS, ended)
        };
        join_all(self.0.into_iter().zip(1..).map(run)).await;
    }
}
