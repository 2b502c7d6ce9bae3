//! The accounting of the space that tasks take in etcd.
use crate::domain::task::Task;

/// The space that the known tasks take in etcd, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredBytes {
    /// The part of tasks that are not finished.
    pub unfinished: usize,
    /// The part of finished tasks, which may be deleted to make room.
    pub finished: usize,
}

/// The answer to whether more tasks may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageRoom {
    /// There is room.
    Available,
    /// There will be room when finished tasks have been deleted.
    AfterCleanup,
    /// There is no room: unfinished tasks take too much.
    Exhausted,
}

impl StoredBytes {
    /// Reports whether there is room for `more` bytes, where all tasks together may take
    /// `limit` bytes. There is always room for a change that takes no more bytes.
    pub fn room(self, more: usize, limit: usize) -> StorageRoom {
        match () {
            () if more == 0 || self.unfinished + self.finished + more <= limit => {
                StorageRoom::Available
            }
            () if self.unfinished + more <= limit => StorageRoom::AfterCleanup,
            () => StorageRoom::Exhausted,
        }
    }

    /// Returns the part that a task counts towards.
    fn part_of(&mut self, task: &Task) -> &mut usize {
        if task.status.phase.is_finished() {
            &mut self.finished
        } else {
            &mut self.unfinished
        }
    }

    pub(super) fn add(&mut self, task: &Task) {
        *self.part_of(task) += task.bytes;
    }

    pub(super) fn subtract(&mut self, task: &Task) {
        let part = self.part_of(task);
        *part = part.saturating_sub(task.bytes);
    }
}
