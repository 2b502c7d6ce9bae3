//! Entries between a log and otto-handler: the window, and the spool behind it.
//!
//! Invariants: entries enter the window in the order in which they were read. Entries in memory
//! and on disk are bounded, for each worker and in all. The disk is used only when otto-handler
//! has lagged behind for [`BEHIND`].
use std::{io, time::Duration};

use tokio::time::Instant;

use super::{budget::Held, context::Context, entry::Entry, spool::Queue, window::Window};

/// How long the window must have been more than half full before the spool is used. A handler that
/// pauses for less is followed without the disk.
const BEHIND: Duration = Duration::from_secs(1);

/// The entries of one session that otto-handler has not acknowledged.
pub(super) struct Backlog {
    pub(super) window: Window<Entry>,
    held: Held,
    spooled: Queue<Entry>,
    /// Since when otto-handler lags behind.
    behind: Option<Instant>,
}

impl Backlog {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            window: Window::new(context.window),
            held: context.budget.hold(),
            spooled: context.spool.queue(),
            behind: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.window.is_empty() && self.spooled.is_empty()
    }

    /// Whether there is room for one more entry, in memory or on disk.
    pub(super) fn has_room(&mut self, now: Instant) -> bool {
        let fits = self.fits_window();
        if !fits {
            self.behind.get_or_insert(now);
        } else if self.window.is_half_free() && self.spooled.is_empty() {
            self.behind = None;
        }
        if !self.spooled.is_empty() {
            return self.spooled.has_room();
        }
        let is_behind = self.behind.is_some_and(|at| now - at >= BEHIND);
        fits || is_behind && self.spooled.has_room()
    }

    /// Returns when the spool may be used.
    pub(super) fn has_room_at(&self) -> Option<Instant> {
        let at = self.behind? + BEHIND;
        (at > Instant::now()).then_some(at)
    }

    /// Adds an entry, whether there is room or not.
    pub(super) async fn push(&mut self, entry: Entry) {
        if self.spooled.is_empty() && self.fits_window() {
            return self.admit(entry);
        }
        if let Err(error) = self.spooled.push(&entry).await {
            tracing::warn!(%error, "the spool takes nothing more; lines wait on their nodes (LOG_SPOOL_DIR)");
        }
    }

    /// Moves entries from the spool into the window while that has room.
    ///
    /// # Errors
    /// The spooled entries are lost, and the log must be read again after [`Window::last`].
    pub(super) async fn refill(&mut self) -> io::Result<()> {
        while !self.spooled.is_empty() && self.fits_window() {
            match self.spooled.pop().await {
                Ok(Some(entry)) => self.admit(entry),
                Ok(None) => {}
                Err(error) => {
                    self.spooled.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Releases the memory of an entry that has left the window for good.
    pub(super) fn settled(&mut self, entry: &Entry) {
        self.held.sub(entry.bytes());
    }

    fn admit(&mut self, entry: Entry) {
        self.held.add(entry.bytes());
        self.window.push(entry);
    }

    fn fits_window(&self) -> bool {
        // An empty window always takes one entry: only an answer wakes the session.
        self.window.is_empty() || !self.window.is_full() && self.held.has_room()
    }

    /// As if otto-handler had been behind for long.
    #[cfg(test)]
    pub(super) fn fall_behind(&mut self) {
        self.behind = Instant::now().checked_sub(BEHIND);
    }

    /// The disk forgets.
    #[cfg(test)]
    pub(super) fn lose(&self) -> io::Result<()> {
        self.spooled.lose()
    }
}
