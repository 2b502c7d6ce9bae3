//! The ends of follows, and what they mean: a kubelet ends one when the container has
//! ended, and its own end looks the same.
//!
//! What holds: one end alone proves nothing; the status, or a second end at once with
//! nothing more, does.
use std::time::Duration;

use tokio::time::Instant;

/// A kubelet ends a follow when the container has ended, and its status may come later. What
/// ended by itself so long ago, with nothing later in the file since, counts as read to the
/// container's end; so long, for it may have been a kubelet that went.
const ENDED: Duration = Duration::from_secs(6);
/// After such an end the log is asked for again, if the status did not tell of it meanwhile: a
/// kubelet that went refuses, and one that came back follows on.
pub(super) const ASKED_AGAIN: Duration = Duration::from_secs(2);
/// One that ends again at once, with nothing more, has ended for good. The status, which may
/// take a busy node half a minute, is waited for.
const TOLD: Duration = Duration::from_secs(30);
/// So soon after it was opened, on a busy node.
const AT_ONCE: Duration = Duration::from_secs(5);
/// And so soon that it need not be read again when the status tells the same: of a kubelet
/// that went twice, the second time would have to be within this.
const SWIFTLY: Duration = Duration::from_secs(2);

/// Of follows that had given all that the file had, since the last line that was new.
#[derive(Debug, Default)]
pub(super) struct Ends {
    last: Option<Instant>,
    /// All but the first came at once.
    in_a_row: u32,
    /// The last one came swiftly, and nothing was in doubt since.
    swift: bool,
}

impl Ends {
    /// A follow ended that was open since then, or a read that followed nothing.
    pub(super) fn note(&mut self, followed_since: Option<Instant>) {
        self.last = Some(Instant::now());
        if let Some(opened) = followed_since {
            let again = opened.elapsed() < AT_ONCE;
            self.in_a_row = if again { self.in_a_row + 1 } else { 1 };
            self.swift = opened.elapsed() < SWIFTLY;
        }
    }

    /// The file has something later, or may have.
    pub(super) fn doubt(&mut self) {
        self.swift = false;
    }

    /// It could not be opened, or broke off.
    pub(super) fn not_read(&mut self) {
        self.doubt();
        if !self.are_for_good() {
            self.forget();
        }
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// For good, whatever the status tells.
    pub(super) fn are_for_good(&self) -> bool {
        self.in_a_row > 1
    }

    /// What a status that tells of the end needs no further read for.
    pub(super) fn are_proven(&self) -> bool {
        self.are_for_good() && self.swift
    }

    /// Whether a file that has nothing later counts as read to the container's end.
    pub(super) fn reached_the_end(&self) -> bool {
        self.are_for_good() || self.last.is_some_and(|at| at.elapsed() <= ENDED)
    }

    /// Until the log is asked for again, unless the status tells before.
    pub(super) fn wait(&self) -> Duration {
        if self.are_for_good() {
            TOLD
        } else {
            ASKED_AGAIN
        }
    }
}
