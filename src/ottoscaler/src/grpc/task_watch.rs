//! The streams of WatchTasks: a snapshot, then the changes.
//!
//! Invariants:
//! - A stream has no task of its own: the connection polls it, and nothing is made before.
//! - It keeps a fingerprint of each task that its client knows, and the names of changed tasks. A
//!   client that reads slowly gets the difference, not each change in between.
use std::{collections::BTreeMap, sync::Arc};

use futures::{Stream, stream};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use xxhash_rust::xxh3::xxh3_64;

use super::{changed_tasks::ChangedTasks, tasks::summary, undelivered::DeliverySlot};
use crate::{
    domain::request::TaskFilter,
    index::Index,
    proto::{TaskEvent, TaskSummary, task_event::Type},
};

/// A `TaskWatch` is the state of one WatchTasks stream.
pub(super) struct TaskWatch {
    index: Index,
    filter: TaskFilter,
    changed: ChangedTasks,
    /// The id and the fingerprint of each task that the client knows, by name.
    known: BTreeMap<Arc<str>, (Arc<str>, u64)>,
    /// Whether the end of the snapshot was sent.
    synced: bool,
    slot: Arc<DeliverySlot>,
}

impl TaskWatch {
    pub(super) fn new(
        index: Index,
        filter: TaskFilter,
        drain: CancellationToken,
        slot: Arc<DeliverySlot>,
    ) -> Self {
        Self {
            changed: ChangedTasks::new(index.clone(), None, drain),
            index,
            filter,
            known: BTreeMap::new(),
            synced: false,
            slot,
        }
    }

    pub(super) fn events(self) -> impl Stream<Item = Result<TaskEvent, Status>> + Send + 'static {
        stream::try_unfold(self, |mut watch| async move {
            let event = watch.next().await?;
            Ok(Some((event, watch)))
        })
    }

    async fn next(&mut self) -> Result<TaskEvent, Status> {
        loop {
            if let Some(task) = self.changed.pop().await {
                if let Some(event) = self.compare(&task) {
                    self.slot.mark_offered();
                    return Ok(event);
                }
                continue;
            }
            if !self.synced {
                self.synced = true;
                return Ok(TaskEvent {
                    r#type: Type::Synced.into(),
                    task: None,
                });
            }
            self.slot.mark_read();
            let known = &self.known;
            self.changed.wait(|| known.keys().cloned()).await?;
        }
    }

    /// Returns the difference between a task and what the client knows of it.
    fn compare(&mut self, name: &Arc<str>) -> Option<TaskEvent> {
        let view = self.index.view(name);
        let view = view.filter(|view| self.filter.selects(&view.task, view.phase));
        let Some(view) = view else {
            let (id, _) = self.known.remove(name)?;
            return Some(TaskEvent {
                r#type: Type::Removed.into(),
                task: Some(TaskSummary {
                    task_id: id.to_string(),
                    ..TaskSummary::default()
                }),
            });
        };
        let task = summary(&view);
        let fingerprint = xxh3_64(&task.encode_to_vec());
        let now = (Arc::from(task.task_id.as_str()), fingerprint);
        let before = self.known.insert(name.clone(), now.clone());
        (before.as_ref() != Some(&now)).then(|| TaskEvent {
            r#type: Type::Updated.into(),
            task: Some(task),
        })
    }
}

#[cfg(test)]
#[path = "task_watch_tests.rs"]
mod tests;
