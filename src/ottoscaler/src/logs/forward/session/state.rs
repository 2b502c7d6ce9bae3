//! The state of a running session.
use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};

use super::End;
use crate::logs::{
    forward::{
        backlog::Backlog,
        checkpoint::Checkpoint,
        entry::{Maker, Outgoing},
    },
    read::{follow::Source, pods::PodLookup, tail::Tail},
};

/// A log that was not read for so long, because there was no room, is opened again. The API server
/// and the kubelet may have given its connection up by then.
const HELD_UP: Duration = Duration::from_secs(10);

/// What changes while a session runs.
pub(super) struct SessionState<S, P> {
    pub(super) backlog: Backlog,
    pub(super) maker: Maker,
    /// The checkpoints after the last line read, and after the last one acknowledged.
    pub(super) read: Checkpoint,
    pub(super) acked: Checkpoint,
    pub(super) tail: Tail<S, P>,
    /// The last epoch that this session has stored.
    pub(super) reserved: u32,
    /// How the session ends, once there is no more to read.
    pub(super) end: Option<End>,
    /// Since when nothing is read, because there is no room.
    pub(super) held_up: Option<Instant>,
    pub(super) pause_until: Option<Instant>,
    pub(super) last_answer: Instant,
    /// When otto-handler last settled an entry.
    pub(super) settled: Instant,
    pub(super) counts: Counts,
}

impl<S: Source, P: PodLookup> SessionState<S, P> {
    /// Whether there is more to read, and room for it.
    pub(super) fn may_read(&mut self) -> bool {
        let now = Instant::now();
        if !self.backlog.has_room(now) {
            self.held_up.get_or_insert(now);
            return false;
        }
        if self.held_up.take().is_some_and(|at| now - at > HELD_UP) {
            self.tail.was_held_up();
        }
        self.end.is_none()
    }

    /// Sends the next entry, if there is one that may be sent.
    pub(super) fn send(&mut self, permit: mpsc::Permit<'_, Outgoing>) -> bool {
        let Some(entry) = self.backlog.window.next() else {
            return false;
        };
        permit.send(self.maker.message(entry));
        self.backlog.window.sent();
        true
    }

    /// Whether otto-handler has settled nothing for so long.
    pub(super) fn is_stale(&self, limit: Duration) -> bool {
        self.settled.elapsed() > limit
    }
}

/// What a session reports when it ends.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) lines: u64,
    pub(super) gaps: u64,
    pub(super) dropped: u64,
    pub(super) retried: u64,
}
