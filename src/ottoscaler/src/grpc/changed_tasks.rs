//! The tasks that may differ from what the client of a stream knows.
//!
//! Invariants:
//! - It has no task of its own and grows with the number of tasks alone, however many changes
//!   there are: the names of changed tasks are a set.
//! - It subscribes before the snapshot is taken, so that no change is lost in between.
use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::errors;
use crate::index::{Index, TaskChanged};

/// The number of tasks that a stream compares before it yields to other tasks of the runtime. A
/// turn stays short, however many tasks there are.
const TASKS_PER_TURN: usize = 64;

/// A `ChangedTasks` collects the names of changed tasks for one stream.
pub(super) struct ChangedTasks {
    index: Index,
    /// The name of the selected task, when the selection names one.
    only: Option<Arc<str>>,
    changes: broadcast::Receiver<TaskChanged>,
    drain: CancellationToken,
    names: BTreeSet<Arc<str>>,
    /// The number of tasks that were compared in this turn.
    compared: usize,
}

impl ChangedTasks {
    /// Creates a set with all tasks, or with one.
    pub(super) fn new(index: Index, only: Option<Arc<str>>, drain: CancellationToken) -> Self {
        let mut new = Self {
            changes: index.subscribe(),
            index,
            only,
            drain,
            names: BTreeSet::new(),
            compared: 0,
        };
        new.add_all(std::iter::empty());
        new
    }

    /// Returns a task to compare with what the client knows. At the end of a turn it yields first.
    pub(super) async fn pop(&mut self) -> Option<Arc<str>> {
        if self.compared == TASKS_PER_TURN {
            self.compared = 0;
            tokio::task::yield_now().await;
        }
        let task = self.names.pop_first()?;
        self.compared += 1;
        Some(task)
    }

    /// Puts a task back that was not compared to its end.
    pub(super) fn put_back(&mut self, task: Arc<str>) {
        self.names.insert(task);
    }

    /// Waits for changes and collects those that there are. `known` returns the names of the tasks
    /// that the client knows, which are compared too after changes were missed.
    ///
    /// # Errors
    /// Returns UNAVAILABLE when the replica drains: the stream ends.
    pub(super) async fn wait<I>(&mut self, known: impl Fn() -> I) -> Result<(), Status>
    where
        I: Iterator<Item = Arc<str>>,
    {
        let change = tokio::select! {
            () = self.drain.cancelled() => return Err(errors::draining()),
            change = self.changes.recv() => change,
        };
        match change {
            Ok(change) => self.add(change),
            Err(RecvError::Lagged(_)) => self.add_all(known()),
            Err(RecvError::Closed) => return Err(errors::draining()),
        }
        // A burst of changes is compared once.
        loop {
            match self.changes.try_recv() {
                Ok(change) => self.add(change),
                Err(TryRecvError::Lagged(_)) => self.add_all(known()),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
            }
        }
    }

    fn add(&mut self, change: TaskChanged) {
        if self.only.as_ref().is_none_or(|only| *only == change.task) {
            self.names.insert(change.task);
        }
    }

    /// Adds every task, at the start and after missed changes.
    fn add_all(&mut self, known: impl Iterator<Item = Arc<str>>) {
        match &self.only {
            Some(only) => drop(self.names.insert(only.clone())),
            None => {
                self.names.extend(self.index.task_names());
                // The client may know tasks that no longer exist.
                self.names.extend(known);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }
}
