//! When a log that ended or broke off is opened again.
use std::time::Duration;

const SOON: Duration = Duration::from_millis(200);
const LATEST: Duration = Duration::from_secs(5);
/// Opens without a new line that come soon: the kubelet may not have told yet that
/// the container ended. Then they grow rare, for each costs the API server, and what
/// is wrong with one log is often wrong with all of a node.
const FREE: u32 = 10;

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
        let over = self.barren.saturating_sub(FREE);
        self.barren = self.barren.saturating_add(1);
        (SOON * (1 << over.min(5))).min(LATEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_gives_nothing_is_opened_less_and_less() {
        let mut reopen = Reopen::default();
        let mut waits = || reopen.delay().as_millis();
        let soon: Vec<_> = (0..=FREE).map(|_| waits()).collect();
        assert_eq!(soon, [200; 11]);
        let later: Vec<_> = (0..6).map(|_| waits()).collect();
        assert_eq!(later, [400, 800, 1_600, 3_200, 5_000, 5_000]);
        reopen.fruitful();
        assert_eq!(reopen.delay(), SOON);
    }
}
