//! Reads a shard at a term's beginning, and stores it while the term lasts.
use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    super::metrics::{CheckpointWrite, Metrics},
    Checkpoints, SHARDS,
    store::{Error, Store, Stored},
    text,
};

/// The time between the beginnings of two writes of a shard. It is what a killed leader's successor
/// repeats, and sixteen writes a second are few for an API server.
pub(super) const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// The most bytes that all shards together write in a second. etcd keeps each version of an object
/// until it is compacted, every 5 min, and holds 2 GiB by default. Shards of more than 16 KiB are
/// written less often than once a second.
const BYTES_PER_SECOND: u32 = 256 * 1024;
/// The delay after the first write that fails. It doubles up to [`LAST_BACKOFF`].
const FIRST_BACKOFF: Duration = WRITE_INTERVAL;
/// The longest delay between two tries of a write: checkpoints are stored again half a minute after
/// an outage at the latest, and until then only a change of leader repeats more.
const LAST_BACKOFF: Duration = Duration::from_secs(30);
/// The time within which a shard must be read. Sessions wait for it; they then begin without, and
/// repeat what otto-handler drops.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// The time between two tries to read a shard: small beside a change of leader, and 64 reads a
/// second of all shards.
const READ_AGAIN: Duration = Duration::from_millis(250);
/// The time within which what is left must be stored at a drain. With the last answers of
/// otto-handler before it, it is within HANDOVER_TIMEOUT.
pub(super) const FLUSH_WITHIN: Duration = Duration::from_secs(6);
/// The time between two tries to store what is left at a drain: some tries within [`FLUSH_WITHIN`].
const FLUSH_AGAIN: Duration = Duration::from_millis(200);

/// Of one shard.
pub(super) struct Writer {
    shard: u32,
    checkpoints: Checkpoints,
    store: Arc<Store>,
    metrics: Metrics,
    /// Of the object, as it is known. None: there is none, or it is not known.
    version: Option<String>,
    /// Writes that failed in a row.
    failures: u32,
}

/// A writer that has read its shard.
pub(super) struct Adopted {
    pub(super) writer: Writer,
    /// Lines that were no checkpoint.
    pub(super) bad: usize,
    /// Why it was not read.
    pub(super) error: Option<Error>,
}

impl Writer {
    pub(super) fn new(
        shard: u32,
        checkpoints: Checkpoints,
        store: Arc<Store>,
        metrics: Metrics,
    ) -> Self {
        Self {
            shard,
            checkpoints,
            store,
            metrics,
            version: None,
            failures: 0,
        }
    }

    /// Takes what is stored.
    pub(super) async fn adopt(mut self) -> Adopted {
        let (stored, error) = match self.read().await {
            Ok(stored) => (stored, None),
            Err(error) => (Stored::default(), Some(error)),
        };
        let decoded = text::decode(&stored.text);
        for (uid, checkpoint) in decoded.checkpoints {
            self.checkpoints.adopt(uid, checkpoint);
        }
        self.version = stored.version;
        Adopted {
            writer: self,
            bad: decoded.bad,
            error,
        }
    }

    async fn read(&self) -> Result<Stored, Error> {
        let until = Instant::now() + READ_WITHIN;
        loop {
            match self.store.read(self.shard).await {
                Err(error) if !error.is_final() && Instant::now() + READ_AGAIN < until => {
                    sleep(READ_AGAIN).await;
                }
                result => return result,
            }
        }
    }

    /// Stores what changes until `ended`, and then what is left.
    pub(super) async fn run(mut self, first: Instant, ended: &CancellationToken) {
        let mut due = first;
        while ended.run_until_cancelled(sleep_until(due)).await.is_some() {
            let began = Instant::now();
            due = began + WRITE_INTERVAL;
            if self.store.is_late() {
                continue;
            }
            due = began
                + match self.write().await {
                    Ok(bytes) => pace(bytes),
                    Err(_) => backoff(self.failures),
                };
        }
        let flush = async {
            while self.write().await.is_err() {
                sleep(FLUSH_AGAIN).await;
            }
        };
        if timeout(FLUSH_WITHIN, flush).await.is_err() {
            tracing::warn!(
                shard = self.shard,
                "checkpoints of logs were not stored in time; the next leader sends some lines again"
            );
        }
    }

    /// Stores what is not stored. Returns the bytes that it took.
    async fn write(&mut self) -> Result<usize, Error> {
        let Some(snapshot) = self.checkpoints.shard(self.shard).unstored() else {
            return Ok(0);
        };
        let text = snapshot.text();
        let mut written = self.replace(&text).await;
        if matches!(written, Err(Error::Changed)) {
            // What somebody else wrote there is not ours to keep: ours are further.
            self.metrics.checkpoint_write(CheckpointWrite::Conflict);
            written = match self.store.read(self.shard).await {
                Ok(now) => {
                    self.version = now.version;
                    self.replace(&text).await
                }
                Err(error) => Err(error),
            };
        }
        match written {
            Ok(()) => {
                self.metrics.checkpoint_write(CheckpointWrite::Stored);
                self.checkpoints.shard(self.shard).stored(&snapshot);
                if std::mem::take(&mut self.failures) > 0 {
                    self.store.works_again();
                }
                Ok(text.len())
            }
            Err(error) => {
                self.metrics.checkpoint_write(CheckpointWrite::Failed);
                if self.failures == 0 {
                    self.store.fails(self.shard, &error);
                }
                self.failures += 1;
                Err(error)
            }
        }
    }

    async fn replace(&mut self, text: &str) -> Result<(), Error> {
        let version = self.version.as_deref();
        self.version = self.store.write(self.shard, text, version).await?;
        Ok(())
    }
}

/// From the beginning of a write of so many bytes to the next one.
fn pace(bytes: usize) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let share = f64::from(BYTES_PER_SECOND / SHARDS);
    WRITE_INTERVAL.max(Duration::from_secs_f64(f64::from(bytes) / share))
}

fn backoff(failures: u32) -> Duration {
    let doubled = FIRST_BACKOFF * (1 << failures.saturating_sub(1).min(5));
    doubled.min(LAST_BACKOFF)
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
