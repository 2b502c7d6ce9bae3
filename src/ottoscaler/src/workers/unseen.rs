//! Created pods that the watch has yet to show: whatever else it has to tell waits behind
//! them.
//!
//! What holds: a pod counts from the create's answer until the watch has come to its
//! version, at most for [`SILENT`]: a watch that is dead holds nobody up for good.
use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Beyond, nothing is created.
const MOST: usize = 16;
/// Nor while the first of them waits for so long.
const LATE: Duration = Duration::from_millis(20);
const SILENT: Duration = Duration::from_millis(300);
/// Between two looks at what the watch has told.
const LOOK: Duration = Duration::from_millis(5);

/// Versions, and when they were answered.
#[derive(Debug, Default)]
pub(super) struct Unseen(VecDeque<(u64, Instant)>);

impl Unseen {
    pub(super) fn made(&mut self, version: u64) {
        self.0.push_back((version, Instant::now()));
    }

    /// How many more may be created, if the watch has told so much.
    pub(super) fn room(&mut self, told: u64) -> usize {
        let now = Instant::now();
        self.0
            .retain(|(version, made)| *version > told && now < *made + SILENT);
        if self.is_late(now) {
            return 0;
        }
        MOST.saturating_sub(self.0.len())
    }

    /// The first that was answered is the first here.
    fn is_late(&self, now: Instant) -> bool {
        self.0.front().is_some_and(|(_, made)| *made + LATE <= now)
    }

    /// When to look again, if there was no room.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let now = Instant::now();
        (self.0.len() >= MOST || self.is_late(now)).then(|| now + LOOK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn there_is_room_as_the_watch_tells_or_where_it_is_silent() {
        let mut unseen = Unseen::default();
        assert_eq!((unseen.room(0), unseen.wake_at()), (MOST, None));
        // Answers come in any order.
        (1..=MOST as u64).rev().for_each(|v| unseen.made(v));
        assert_eq!(unseen.room(0), 0);
        assert_eq!(unseen.wake_at(), Some(Instant::now() + LOOK));
        assert_eq!((unseen.room(3), unseen.wake_at()), (3, None));
        (20..23).for_each(|v| unseen.made(v));
        assert_eq!(unseen.room(10), MOST - 6 - 3);
        tokio::time::sleep(LATE).await;
        assert_eq!(unseen.room(10), 0);
        assert_eq!(unseen.wake_at(), Some(Instant::now() + LOOK));
        unseen.made(23);
        assert_eq!((unseen.room(22), unseen.wake_at()), (MOST - 1, None));
        tokio::time::sleep(SILENT).await;
        assert_eq!((unseen.room(22), unseen.wake_at()), (MOST, None));
    }
}
