//! WatchWorkers: a snapshot, then what changes. No task of its own: the stream is
//! pulled by the connection, and ends with the drain.
use std::collections::{BTreeMap, VecDeque};

use futures::{Stream, stream};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert;
use crate::{
    domain::request::Selection,
    index::{Change, Index},
    proto::{WorkerEvent, WorkerPodStatus, worker_event::Type},
};

struct Watch {
    index: Index,
    selection: Selection,
    changes: broadcast::Receiver<Change>,
    drain: CancellationToken,
    /// What the client knows, by pod name.
    told: BTreeMap<String, WorkerPodStatus>,
    queue: VecDeque<WorkerEvent>,
}

pub(super) fn watch(
    index: Index,
    selection: Selection,
    drain: CancellationToken,
) -> impl Stream<Item = Result<WorkerEvent, Status>> + Send + 'static {
    // Subscribed before the snapshot: nothing falls between.
    let changes = index.subscribe();
    let mut watch = Watch {
        index,
        selection,
        changes,
        drain,
        told: BTreeMap::new(),
        queue: VecDeque::new(),
    };
    watch.compare();
    watch.queue.push_back(event(Type::Synced, None));
    stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok(event), watch))
    })
}

fn event(kind: Type, worker: Option<WorkerPodStatus>) -> WorkerEvent {
    WorkerEvent {
        r#type: kind.into(),
        worker,
    }
}

impl Watch {
    async fn next(&mut self) -> Option<WorkerEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            let change = tokio::select! {
                () = self.drain.cancelled() => return None,
                change = self.changes.recv() => change,
            };
            if matches!(change, Err(RecvError::Closed)) {
                return None;
            }
            // A burst is one comparison.
            while self.changes.try_recv().is_ok() {}
            self.compare();
        }
    }

    fn compare(&mut self) {
        let now: BTreeMap<String, WorkerPodStatus> = self
            .index
            .workers(&self.selection)
            .iter()
            .map(|w| (w.view.pod_name.clone(), convert::worker(w)))
            .collect();
        for (name, worker) in &now {
            if self.told.get(name) != Some(worker) {
                self.queue
                    .push_back(event(Type::Updated, Some(worker.clone())));
            }
        }
        for (name, worker) in &self.told {
            if !now.contains_key(name) {
                self.queue
                    .push_back(event(Type::Removed, Some(worker.clone())));
            }
        }
        self.told = now;
    }
}
