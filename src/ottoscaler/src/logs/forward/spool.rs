//! Entries that wait on disk for otto-handler.
//!
//! Invariants: entries come out in the order in which they went in. The bytes of a worker, and
//! of all workers, are bounded. The files have no names, so nothing outlives the process: a
//! successor reads the logs from the nodes again.
use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use prometheus_client::{
    metrics::gauge::Gauge,
    registry::{Registry, Unit},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{task::spawn_blocking, time::timeout};

/// How many bytes are written or read at once. So much of a worker may wait in memory, and it is
/// large enough that calls of the disk do not count.
const CHUNK: usize = 16 * 1024;
/// The size of one file. A file is deleted as a whole once it was read, so it is also what a worker
/// may hold of the disk without need.
const SEGMENT: u64 = 4 * 1024 * 1024;
/// One worker may take this fraction (1/n) of the limit, so that a single worker without bounds
/// leaves room for others.
const SHARE: i64 = 8;
/// The deadline of one operation on the local disk. A disk that does not answer for so long is
/// broken, and logs wait on their nodes then.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);
/// The bytes before each record that hold its length, a `u32`.
const HEAD: usize = 4;

/// The disk space that all sessions share.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    dir: PathBuf,
    /// The limit in bytes; with 0 nothing goes to the disk.
    limit: i64,
    used: Gauge<i64, AtomicI64>,
}

impl Spool {
    pub(super) fn new(dir: PathBuf, limit: u64) -> Self {
        Self {
            dir,
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            used: Gauge::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "ottoscaler_log_spool",
            "Log entries on this replica's disk that otto-handler has yet to take",
            Unit::Bytes,
            self.used.clone(),
        );
    }

    pub(super) fn queue<T>(&self) -> Queue<T> {
        Queue {
            spool: self.clone(),
            segments: VecDeque::new(),
            unwritten: Vec::new(),
            chunk: Vec::new(),
            taken: 0,
            len: 0,
            used: 0,
            is_broken: false,
            of: std::marker::PhantomData,
        }
    }
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    written: u64,
    read: u64,
}

/// The entries of one worker, first in, first out: the segments, the oldest first, and then what
/// is not written yet.
#[derive(Debug)]
pub(super) struct Queue<T> {
    spool: Spool,
    segments: VecDeque<Segment>,
    unwritten: Vec<u8>,
    /// Bytes that were read ahead, and how many of them are consumed.
    chunk: Vec<u8>,
    taken: usize,
    len: usize,
    /// The bytes on disk.
    used: i64,
    /// A write failed. The disk is tried again once the queue is empty.
    is_broken: bool,
    of: std::marker::PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> Queue<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn has_room(&self) -> bool {
        !self.is_broken
            && self.spool.used.get() < self.spool.limit
            && self.used < self.spool.limit / SHARE
    }

    /// Adds an entry. If the disk fails, it stays in memory, and there is no room for more.
    pub(super) async fn push(&mut self, entry: &T) -> io::Result<()> {
        let start = self.unwritten.len();
        self.unwritten.extend([0; HEAD]);
        rmp_serde::encode::write_named(&mut self.unwritten, entry).map_err(io::Error::other)?;
        let length = u32::try_from(self.unwritten.len() - start - HEAD);
        let length = length.map_err(io::Error::other)?.to_be_bytes();
        self.unwritten[start..start + HEAD].copy_from_slice(&length);
        self.len += 1;
        if self.unwritten.len() >= CHUNK && !self.is_broken {
            let written = self.write().await;
            self.is_broken = written.is_err();
            return written;
        }
        Ok(())
    }

    /// Takes the oldest entry.
    ///
    /// # Errors
    /// Entries are lost. Those after them are out of order, and must not be used.
    pub(super) async fn pop(&mut self) -> io::Result<Option<T>> {
        if self.len == 0 {
            return Ok(None);
        }
        let head = self.next(HEAD).await?;
        let length = u32::from_be_bytes(head.try_into().map_err(io::Error::other)?);
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let entry = rmp_serde::from_slice(self.next(length).await?).map_err(io::Error::other)?;
        self.len -= 1;
        if self.len == 0 {
            self.clear();
        }
        Ok(Some(entry))
    }

    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.account(-self.used);
        self.unwritten = Vec::new();
        self.chunk = Vec::new();
        (self.taken, self.len, self.is_broken) = (0, 0, false);
    }

    /// Empties the files.
    #[cfg(test)]
    pub(super) fn lose(&self) -> io::Result<()> {
        let files = self.segments.iter().map(|s| s.file.set_len(0));
        files.collect()
    }

    fn account(&mut self, bytes: i64) {
        self.used += bytes;
        self.spool.used.inc_by(bytes);
    }

    async fn write(&mut self) -> io::Result<()> {
        let (file, at) = match self.segments.back() {
            Some(last) if last.written < SEGMENT => (last.file.clone(), last.written),
            _ => {
                let dir = self.spool.dir.clone();
                let file = Arc::new(on_disk(move || tempfile::tempfile_in(dir)).await?);
                self.segments.push_back(Segment {
                    file: file.clone(),
                    written: 0,
                    read: 0,
                });
                (file, 0)
            }
        };
        // Kept, should the disk not take it.
        let bytes = Arc::new(std::mem::take(&mut self.unwritten));
        let taken = bytes.clone();
        let written = on_disk(move || file.write_all_at(&taken, at)).await;
        if written.is_err() {
            self.unwritten = Arc::unwrap_or_clone(bytes);
            return written;
        }
        if let Some(last) = self.segments.back_mut() {
            last.written += bytes.len() as u64;
        }
        self.account(i64::try_from(bytes.len()).unwrap_or(0));
        Ok(())
    }

    /// So many bytes.
    async fn next(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.chunk.len() - self.taken < count {
            self.chunk.drain(..self.taken);
            self.taken = 0;
            let lack = count - self.chunk.len();
            let mut more = self.read(lack.max(CHUNK)).await?;
            self.chunk.append(&mut more);
        }
        let from = self.taken;
        self.taken += count;
        Ok(&self.chunk[from..self.taken])
    }

    /// At most so many, at least one.
    async fn read(&mut self, most: usize) -> io::Result<Vec<u8>> {
        while let Some(first) = self.segments.front_mut() {
            let left = first.written - first.read;
            if left == 0 {
                let written = i64::try_from(first.written).unwrap_or(0);
                self.segments.pop_front();
                self.account(-written);
                continue;
            }
            let count = usize::try_from(left).unwrap_or(most).min(most);
            let (file, at) = (first.file.clone(), first.read);
            first.read += count as u64;
            return on_disk(move || {
                let mut bytes = vec![0; count];
                file.read_exact_at(&mut bytes, at)?;
                Ok(bytes)
            })
            .await;
        }
        match std::mem::take(&mut self.unwritten) {
            rest if rest.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            rest => Ok(rest),
        }
    }
}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        self.spool.used.dec_by(self.used);
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match timeout(DISK_TIMEOUT, spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
