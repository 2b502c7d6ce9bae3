//! The workers of a task as clients are sent them.
//!
//! Invariants:
//! - A view is what the task and its pods said at one moment.
//! - A task has at most one view. Any change of the task or of its pods drops it, and the next
//!   reader builds it again; readers that come at the same time build it once.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use bytes::Bytes;

use super::worker_status::worker_status;
use crate::{
    domain::{
        names,
        request::Selection,
        task::{Counts, Task, TaskPhase},
        view::{self, ClientState, WorkerView},
    },
    proto::encoded::EncodedWorkers,
};

/// A task as its pods bring it up to date, and its workers by index, each with its encoded status.
#[derive(Debug)]
pub struct TaskView {
    pub task: Arc<Task>,
    pub phase: TaskPhase,
    pub counts: Counts,
    rows: Vec<Row>,
    encoded: EncodedWorkers,
}

/// A `Row` is what is read of a worker without decoding its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub index: u32,
    pub attempt: u32,
    pub state: ClientState,
}

impl TaskView {
    pub(super) fn new(task: Arc<Task>, workers: &[WorkerView]) -> Self {
        let rows = workers.iter().map(|worker| Row {
            index: worker.record.index,
            attempt: worker.record.attempt,
            state: worker.state(),
        });
        let (counts, phase) = view::progress(&task, workers.iter().map(|w| &w.record));
        Self {
            phase,
            counts,
            rows: rows.collect(),
            encoded: workers.iter().map(|w| worker_status(&task, w)).collect(),
            task,
        }
    }

    /// Returns the workers in ascending order of their indices.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns the positions of the selected workers in [`Self::rows`], as ranges of neighbours.
    pub fn select(&self, selection: &Selection) -> Vec<std::ops::Range<usize>> {
        let Selection {
            task_id,
            pod_name,
            state,
        } = selection;
        if task_id
            .as_ref()
            .is_some_and(|id| *id != self.task.spec.task_id)
        {
            return Vec::new();
        }
        let pod = pod_name.as_deref().map(|pod| {
            let task = names::task_name(&self.task.spec.task_id);
            names::parse_pod_name(&task, pod)
        });
        let mut found: Vec<std::ops::Range<usize>> = Vec::new();
        for (position, row) in self.rows.iter().enumerate() {
            let is_selected = state.is_none_or(|state| state == row.state)
                && pod.is_none_or(|pod| pod == Some((row.index, row.attempt)));
            match found.last_mut() {
                _ if !is_selected => {}
                Some(last) if last.end == position => last.end += 1,
                _ => found.push(position..position + 1),
            }
        }
        found
    }

    /// Returns the statuses of neighbouring workers, see [`EncodedWorkers::elements`].
    pub fn elements(&self, positions: std::ops::Range<usize>) -> Bytes {
        self.encoded.elements(positions)
    }

    /// Returns the status of one worker by its position, see [`EncodedWorkers::message`].
    pub fn message(&self, position: usize) -> Bytes {
        self.encoded.message(position)
    }
}

/// The view of a task, once a reader has built it.
pub(super) type ViewCell = Arc<OnceLock<Arc<TaskView>>>;

/// The views of all tasks by name. A reader takes a cell while it holds the lock of the state, and
/// a writer drops the cell under the same lock: so what is built in a cell is never older than
/// the state that the cell's next reader sees.
#[derive(Debug, Default)]
pub(super) struct TaskViews(Mutex<HashMap<Arc<str>, ViewCell>>);

impl TaskViews {
    fn cells(&self) -> MutexGuard<'_, HashMap<Arc<str>, ViewCell>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the cell of a task that exists.
    pub(super) fn cell(&self, task: &str) -> ViewCell {
        let mut cells = self.cells();
        if let Some(cell) = cells.get(task) {
            return cell.clone();
        }
        let cell = ViewCell::default();
        cells.insert(Arc::from(task), cell.clone());
        cell
    }

    /// Drops the view of a task that changed or is gone.
    pub(super) fn drop_view(&self, task: &str) {
        self.cells().remove(task);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.cells().len()
    }
}
