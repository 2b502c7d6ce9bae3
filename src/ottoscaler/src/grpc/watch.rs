//! The streams of WatchWorkers: a snapshot, then the changes.
//!
//! Invariants:
//! - A stream has no task of its own: the connection polls it, and nothing is converted before.
//! - A stream that is not read stays small, whatever happens meanwhile. It keeps a fingerprint of
//!   each worker that its client knows, the names of tasks that may have changed, and at most
//!   about [`MAX_READY_EVENTS`] events.
//! - A client that reads slowly gets the difference between the current workers and those that it
//!   knows, not each change in between.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures::{Stream, stream};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use xxhash_rust::xxh3::xxh3_64;

use super::{changed_tasks::ChangedTasks, convert, undelivered::DeliverySlot};
use crate::{
    domain::{names, request::Selection, view::ClientState},
    index::{Index, Row},
    proto::{WorkerPodStatus, encoded::WorkerEvent, worker_event::Type},
};

/// The number of events from which on no more are made until the client has read them. They take
/// some 100 KiB a stream.
const MAX_READY_EVENTS: usize = 256;

/// The name of a task and the index of one of its workers.
type WorkerKey = (Arc<str>, u32);

/// A `KnownWorker` is what a client knows about a worker.
#[derive(Debug, Clone)]
struct KnownWorker {
    task_id: Arc<str>,
    fingerprint: u64,
    attempt: u32,
    state: ClientState,
}

/// A `WorkerWatch` is the state of one WatchWorkers stream.
pub(super) struct WorkerWatch {
    index: Index,
    selection: Selection,
    changed: ChangedTasks,
    known: BTreeMap<WorkerKey, KnownWorker>,
    ready: VecDeque<WorkerEvent>,
    /// Whether the end of the snapshot was sent.
    synced: bool,
    slot: Arc<DeliverySlot>,
}

impl WorkerWatch {
    pub(super) fn new(
        index: Index,
        selection: Selection,
        drain: CancellationToken,
        slot: Arc<DeliverySlot>,
    ) -> Self {
        let only = selection.task_id.as_deref();
        let only = only.map(|id| names::task_name(id).into());
        Self {
            changed: ChangedTasks::new(index.clone(), only, drain),
            index,
            selection,
            known: BTreeMap::new(),
            ready: VecDeque::new(),
            synced: false,
            slot,
        }
    }

    pub(super) fn events(self) -> impl Stream<Item = Result<WorkerEvent, Status>> + Send + 'static {
        stream::try_unfold(self, |mut watch| async move {
            let event = watch.next().await?;
            Ok(Some((event, watch)))
        })
    }

    async fn next(&mut self) -> Result<WorkerEvent, Status> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.slot.mark_offered();
                return Ok(event);
            }
            if let Some(task) = self.changed.pop().await {
                if !self.diff_task(&task) {
                    self.changed.put_back(task);
                }
                continue;
            }
            if !self.synced {
                self.synced = true;
                return Ok(event(Type::Synced, None));
            }
            self.slot.mark_read();
            let known = &self.known;
            let known = || known.keys().map(|(task, _)| task.clone());
            self.changed.wait(known).await?;
        }
    }

    /// Makes events of the differences between a task and what the client knows of it. Returns
    /// false when there are more differences than fit.
    fn diff_task(&mut self, task: &Arc<str>) -> bool {
        let view = self.index.view(task);
        let mut selected = Vec::new();
        if let Some(view) = &view {
            let id: Arc<str> = match view.task.spec.task_id.as_str() {
                id if *id == **task => task.clone(),
                id => id.into(),
            };
            for position in view.select(&self.selection).into_iter().flatten() {
                let row = view.rows()[position];
                selected.push(row.index);
                let message = view.message(position);
                let now = KnownWorker {
                    task_id: id.clone(),
                    fingerprint: xxh3_64(&message),
                    attempt: row.attempt,
                    state: row.state,
                };
                let key = (task.clone(), row.index);
                let old = self.known.get(&key);
                if old.is_some_and(|old| old.fingerprint == now.fingerprint) {
                    continue;
                }
                if self.ready.len() >= MAX_READY_EVENTS {
                    return false;
                }
                self.ready.push_back(event(Type::Updated, Some(&message)));
                if let Some(old) = old.filter(|old| old.attempt != now.attempt) {
                    let old = removed_worker(task, row.index, old);
                    self.ready.push_back(event(Type::Removed, Some(&old)));
                }
                self.known.insert(key, now);
            }
        }
        let (first, last) = ((task.clone(), 0), (task.clone(), u32::MAX));
        let missing: Vec<u32> = self
            .known
            .range(first..=last)
            .map(|((_, index), _)| *index)
            .filter(|index| selected.binary_search(index).is_err())
            .collect();
        for index in missing {
            if self.ready.len() >= MAX_READY_EVENTS {
                return false;
            }
            let Some(old) = self.known.remove(&(task.clone(), index)) else {
                continue;
            };
            // The worker may still exist and only have left the selection.
            let last_status = view.as_ref().and_then(|view| {
                let same = |row: &Row| row.index == index && row.attempt == old.attempt;
                let position = view.rows().iter().position(same)?;
                (view.task.spec.task_id == *old.task_id).then(|| view.message(position))
            });
            let last_status = last_status.unwrap_or_else(|| removed_worker(task, index, &old));
            self.ready
                .push_back(event(Type::Removed, Some(&last_status)));
        }
        true
    }

    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        (self.ready.len(), self.known.len())
    }
}

/// Makes an event. It has a copy of the worker's bytes, because a client that does not read must
/// not keep the encoded workers of whole tasks in memory.
fn event(kind: Type, worker: Option<&Bytes>) -> WorkerEvent {
    WorkerEvent {
        r#type: kind.into(),
        worker: worker.map(|w| Bytes::copy_from_slice(w)),
    }
}

/// Returns what is sent about a worker that no longer exists.
fn removed_worker(task: &str, index: u32, known: &KnownWorker) -> Bytes {
    let removed = WorkerPodStatus {
        pod_name: names::pod_name_of(task, index, known.attempt),
        task_id: known.task_id.to_string(),
        status: known.state.as_str().to_owned(),
        worker_index: convert::count(index),
        attempt: convert::count(known.attempt),
        ..WorkerPodStatus::default()
    };
    removed.encode_to_vec().into()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
