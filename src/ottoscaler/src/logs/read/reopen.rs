//! When a log that ended or broke off is opened again.
use std::time::Duration;

/// The delay before the first attempt. Each that gives no new line doubles it, for each costs the
/// API server, and what is wrong with one log is often wrong with all of a node.
const SOON: Duration = Duration::from_millis(500);
/// The longest delay between two attempts: the lines of a node that is back are read within
/// seconds.
const LATEST: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Reopen {
    barren: u32,
}

impl Reopen {
    /// A new line was read.
    pub(super) fn fruitful(&mut self) {
        self.barren = 0;
    }

    /// How long to wait before the next open.
    pub(super) fn delay(&mut self) -> Duration {
        let delay = (SOON * (1 << self.barren)).min(LATEST);
        self.barren = (self.barren + 1).min(5);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_gives_nothing_is_opened_less_and_less() {
        let mut reopen = Reopen::default();
        let mut waits = || reopen.delay().as_millis();
        let waited: Vec<_> = (0..7).map(|_| waits()).collect();
        assert_eq!(waited, [500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000]);
        reopen.fruitful();
        assert_eq!(reopen.delay(), SOON);
    }
}
