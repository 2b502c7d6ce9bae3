//! WatchWorkers: a snapshot, then what changes.
//!
//! What holds: a stream has no task of its own; the connection pulls it, and nothing
//! is converted before it is pulled. Of each worker that its client knows it keeps
//! a fingerprint, of what is due the names of tasks, and of events at most
//! [`CHUNK`]: so one that is not read holds little, whatever happens meanwhile. A
//! reader that was slow hears how its workers differ from what it was told, not
//! every step on the way.
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use futures::{Stream, stream};
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{convert, untaken::Place};
use crate::{
    domain::{
        names,
        request::Selection,
        view::{State, WorkerView},
    },
    index::{Change, Index, Picture},
    proto::{WorkerEvent, WorkerPodStatus, worker_event::Type},
};

/// Events made at a time.
const CHUNK: usize = 256;
/// Tasks looked at before others get their turn.
const TASKS: usize = 64;

/// A task by name, and the index of its worker.
type Key = (Arc<str>, u32);

/// What a client knows of a worker.
#[derive(Debug, Clone)]
struct Known {
    task_id: Arc<str>,
    fingerprint: u64,
    attempt: u32,
    state: State,
}

pub(super) struct Watch {
    index: Index,
    selection: Selection,
    /// The only task that can have selected workers.
    only: Option<Arc<str>>,
    changes: broadcast::Receiver<Change>,
    drain: CancellationToken,
    known: BTreeMap<Key, Known>,
    /// Tasks to look at.
    due: BTreeSet<Arc<str>>,
    ready: VecDeque<WorkerEvent>,
    /// The snapshot was told.
    synced: bool,
    place: Arc<Place>,
}

impl Watch {
    pub(super) fn new(
        index: Index,
        selection: Selection,
        drain: CancellationToken,
        place: Arc<Place>,
    ) -> Self {
        // Subscribed before the snapshot: nothing falls between.
        let changes = index.subscribe();
        let only = selection.task_id.as_deref();
        let mut watch = Self {
            only: only.map(|id| names::task_name(id).into()),
            index,
            selection,
            changes,
            drain,
            known: BTreeMap::new(),
            due: BTreeSet::new(),
            ready: VecDeque::new(),
            synced: false,
            place,
        };
        watch.everything_is_due();
        watch
    }

    pub(super) fn events(self) -> impl Stream<Item = Result<WorkerEvent, Status>> + Send + 'static {
        stream::unfold(self, |mut watch| async move {
            let event = watch.next().await?;
            Some((Ok(event), watch))
        })
    }

    async fn next(&mut self) -> Option<WorkerEvent> {
        let mut looked = 0_usize;
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.place.offered();
                return Some(event);
            }
            if let Some(task) = self.due.pop_first() {
                if !self.look(&task) {
                    self.due.insert(task);
                }
                looked += 1;
                if looked.is_multiple_of(TASKS) {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            if !self.synced {
                self.synced = true;
                return Some(event(Type::Synced, None));
            }
            self.place.taken();
            tokio::select! {
                () = self.drain.cancelled() => return None,
                change = self.changes.recv() => match change {
                    Ok(change) => self.is_due(change),
                    Err(RecvError::Lagged(_)) => self.everything_is_due(),
                    Err(RecvError::Closed) => return None,
                },
            }
            // A burst is one look.
            loop {
                match self.changes.try_recv() {
                    Ok(change) => self.is_due(change),
                    Err(TryRecvError::Lagged(_)) => self.everything_is_due(),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
        }
    }

    fn is_due(&mut self, change: Change) {
        if self.only.as_ref().is_none_or(|only| *only == change.task) {
            self.due.insert(change.task);
        }
    }

    fn everything_is_due(&mut self) {
        match &self.only {
            Some(only) => drop(self.due.insert(only.clone())),
            None => {
                self.due.extend(self.index.task_names());
                // Those that are gone.
                let known = self.known.keys().map(|(task, _)| task.clone());
                self.due.extend(known);
            }
        }
    }

    /// Makes events of how a task differs from what the client knows of it. False:
    /// there are more of them.
    fn look(&mut self, task: &Arc<str>) -> bool {
        let picture = self.index.picture(task);
        let mut there = Vec::new();
        if let Some(Picture { task: of, workers }) = &picture {
            let id: Arc<str> = match of.spec.task_id.as_str() {
                id if *id == **task => task.clone(),
                id => id.into(),
            };
            for view in workers.iter().filter(|v| self.selection.selects(of, v)) {
                let index = view.record.index;
                there.push(index);
                let shown = convert::shown(of, view);
                let now = Known {
                    task_id: id.clone(),
                    fingerprint: fingerprint(&shown),
                    attempt: view.record.attempt,
                    state: view.state(),
                };
                let key = (task.clone(), index);
                let old = self.known.get(&key);
                if old.is_some_and(|old| old.fingerprint == now.fingerprint) {
                    continue;
                }
                if self.ready.len() >= CHUNK {
                    return false;
                }
                let shown = convert::labelled(of, index, shown);
                self.ready.push_back(event(Type::Updated, Some(shown)));
                if let Some(old) = old.filter(|old| old.attempt != now.attempt) {
                    let old = removed(task, index, old);
                    self.ready.push_back(event(Type::Removed, Some(old)));
                }
                self.known.insert(key, now);
            }
        }
        let (first, last) = ((task.clone(), 0), (task.clone(), u32::MAX));
        let left: Vec<u32> = self
            .known
            .range(first..=last)
            .map(|((_, index), _)| *index)
            .filter(|index| there.binary_search(index).is_err())
            .collect();
        for index in left {
            if self.ready.len() >= CHUNK {
                return false;
            }
            let Some(old) = self.known.remove(&(task.clone(), index)) else {
                continue;
            };
            // It may only have changed so that it is no longer selected.
            let still = picture.as_ref().and_then(|p| {
                let same = |v: &&WorkerView| {
                    v.record.index == index
                        && v.record.attempt == old.attempt
                        && p.task.spec.task_id == *old.task_id
                };
                let view = p.workers.iter().find(same)?;
                let shown = convert::shown(&p.task, view);
                Some(convert::labelled(&p.task, index, shown))
            });
            let still = still.unwrap_or_else(|| removed(task, index, &old));
            self.ready.push_back(event(Type::Removed, Some(still)));
        }
        true
    }

    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        (self.ready.len(), self.known.len())
    }
}

fn event(kind: Type, worker: Option<WorkerPodStatus>) -> WorkerEvent {
    WorkerEvent {
        r#type: kind.into(),
        worker,
    }
}

/// What is left of a worker that is gone.
fn removed(task: &str, index: u32, known: &Known) -> WorkerPodStatus {
    WorkerPodStatus {
        pod_name: names::pod_name_of(task, index, known.attempt),
        task_id: known.task_id.to_string(),
        status: known.state.as_str().to_owned(),
        worker_index: i32::try_from(index).unwrap_or(i32::MAX),
        attempt: i32::try_from(known.attempt).unwrap_or(i32::MAX),
        ..WorkerPodStatus::default()
    }
}

/// Two that differ in what a client sees differ in this.
fn fingerprint(shown: &WorkerPodStatus) -> u64 {
    let WorkerPodStatus {
        pod_name,
        task_id,
        status,
        created_at,
        started_at,
        completed_at,
        node_name,
        pod_ip,
        // They follow from the task and the index.
        labels: _,
        error_message,
        worker_index,
        attempt,
        exit_code,
        queued_at,
        scheduled_at,
        prepared_at,
        first_line_at,
    } = shown;
    let mut hasher = DefaultHasher::new();
    [pod_name, task_id, status, created_at, started_at].hash(&mut hasher);
    [completed_at, node_name, pod_ip, error_message].hash(&mut hasher);
    [queued_at, scheduled_at, prepared_at, first_line_at].hash(&mut hasher);
    (worker_index, attempt, exit_code).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
