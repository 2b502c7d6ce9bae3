//! Entries between a log and otto-handler: the window, and the spool behind it.
//!
//! What holds: entries come to the window in the order in which they were read; those in
//! memory are bounded, per worker and in all, and those on disk too. The disk is used
//! only when otto-handler takes less than there is for longer: one that keeps up costs
//! none.
use std::{io, time::Duration};

use tokio::time::Instant;

use super::{budget::Held, context::Context, entry::Entry, spool::Queue, window::Window};

/// With a window that is more than half full, until the spool is used.
const BEHIND: Duration = Duration::from_secs(1);

pub(super) struct Backlog {
    pub(super) window: Window<Entry>,
    held: Held,
    spooled: Queue<Entry>,
    /// Since when otto-handler takes less than there is.
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

    /// For one more entry, in memory or on disk.
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

    /// When there will be room on disk.
    pub(super) fn has_room_at(&self) -> Option<Instant> {
        let at = self.behind? + BEHIND;
        (at > Instant::now()).then_some(at)
    }

    /// Takes it in, room or not.
    pub(super) async fn push(&mut self, entry: Entry) {
        if self.spooled.is_empty() && self.fits_window() {
            return self.admit(entry);
        }
        if let Err(error) = self.spooled.push(&entry).await {
            tracing::warn!(%error, "the spool takes nothing more; lines wait on their nodes (LOG_SPOOL_DIR)");
        }
    }

    /// Out of the spool, as the window becomes free. An error: what was spooled is lost,
    /// and the log must be read again after [`Window::last`].
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

    /// It left the window for good.
    pub(super) fn settled(&mut self, entry: &Entry) {
        self.held.sub(entry.bytes());
    }

    fn admit(&mut self, entry: Entry) {
        self.held.add(entry.bytes());
        self.window.push(entry);
    }

    fn fits_window(&self) -> bool {
        // Without an entry under way no answer would wake it.
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
