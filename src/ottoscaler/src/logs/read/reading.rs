//! An open log, as the state machine of a tail knows it; pure.
use std::time::Duration;

use super::position::Resume;

/// What a log is open for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To follow a container that runs.
    Follow,
    /// To read what a container that runs has printed, where its node cannot follow.
    Poll,
    /// To read the file of a container that runs to its end, which decides whether the line
    /// looked for is gone.
    Decide,
    /// To read the log of a container that has ended to its last byte.
    Drain,
}

/// An open log.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) purpose: Purpose,
    pub(super) previous: bool,
    pub(super) resume: Resume,
    pub(super) opened: Duration,
    /// Lines later than the one looked for came; when to decide whether it is gone.
    pub(super) decide_at: Option<Duration>,
    /// When the silence has lasted for too long.
    pub(super) quiet_at: Duration,
    pub(super) is_probed: bool,
}

impl Reading {
    /// When the silence, or the doubt, has lasted for too long.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let decide_at = self.decide_at.filter(|_| self.purpose == Purpose::Follow);
        let quiet_at = (!self.is_probed).then_some(self.quiet_at);
        [decide_at, quiet_at].into_iter().flatten().min()
    }

    /// Whether the file is to be read to its end to decide whether the line looked for is gone.
    pub(super) fn is_in_doubt_at(&self, now: Duration) -> bool {
        self.purpose == Purpose::Follow && self.decide_at.is_some_and(|at| at <= now)
    }
}
