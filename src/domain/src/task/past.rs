//! Remembers earlier attempts of a worker until otto-handler has acknowledged all of their
//! transitions. What is notified of an attempt must depend neither on when that happens nor
//! on who leads then.
use std::{fmt, str::FromStr};

use super::{NotifiedState, WorkerRecord};

/// The number of attempts of a worker that are remembered beside its newest one. A worker is
/// retried a few times, and otto-handler is seldom away for more than two attempts.
pub const MAX_PAST: usize = 4;

/// A `PastAttempt` is an attempt that another one has followed. Times are Unix seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PastAttempt {
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The time at which the pod was created. None if there was none, or if the time is not
    /// known.
    pub created: Option<i64>,
    /// The time at which the container started, if it did.
    pub started: Option<i64>,
    /// The time at which the attempt ended.
    pub finished: Option<i64>,
    /// Whether ScaleDown ended the attempt. Otherwise it was interrupted, which the next
    /// attempt shows.
    pub terminated: bool,
}

impl PastAttempt {
    /// Returns what the record of an attempt says of it.
    pub fn of(record: &WorkerRecord, terminated: bool) -> Self {
        let by_then = record.queued.or(record.started).or(record.finished);
        let by_then = by_then.filter(|_| record.uid.is_some());
        let created = record.created.or(by_then);
        let runs = record.phase == super::WorkerPhase::Running;
        Self {
            attempt: record.attempt,
            created,
            started: record.started.or(if runs { created } else { None }),
            finished: record.finished,
            terminated,
        }
    }

    /// Returns the transitions that the attempt has passed, in order.
    pub(crate) fn passed(self) -> impl Iterator<Item = NotifiedState> {
        // An attempt of which nothing is known had a pod, unless ScaleDown ended it.
        let had_pod = self.created.is_some() || !self.terminated;
        let all = [
            had_pod.then_some(NotifiedState::Created),
            self.started.map(|_| NotifiedState::Running),
            self.terminated.then_some(NotifiedState::Terminated),
        ];
        all.into_iter().flatten()
    }
}

/// Writes `attempt:created:started:finished`, each time in seconds after the one before, and
/// `:t` if ScaleDown ended the attempt.
impl fmt::Display for PastAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = 0;
        write!(f, "{}", self.attempt)?;
        for at in [self.created, self.started, self.finished] {
            match at {
                Some(at) => write!(f, ":{}", at - last)?,
                None => f.write_str(":")?,
            }
            last = at.unwrap_or(last);
        }
        f.write_str(if self.terminated { ":t" } else { "" })
    }
}

impl FromStr for PastAttempt {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(':');
        let attempt = words.next().unwrap_or_default().parse()?;
        let mut last = 0_i64;
        let mut time = || {
            let after: i64 = words.next()?.parse().ok()?;
            last = last.saturating_add(after);
            Some(last)
        };
        let (created, started, finished) = (time(), time(), time());
        Ok(Self {
            attempt,
            created,
            started,
            finished,
            terminated: words.next() == Some("t"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_stored_in_few_bytes_and_comes_back() {
        let all = [
            (
                Some(1_764_032_000),
                Some(1_764_032_005),
                Some(1_764_032_065),
            ),
            (Some(1_764_032_000), None, Some(1_764_032_001)),
            (None, None, None),
        ];
        for (created, started, finished) in all {
            for terminated in [false, true] {
                let past = PastAttempt {
                    attempt: 12,
                    created,
                    started,
                    finished,
                    terminated,
                };
                let text = past.to_string();
                assert!(text.len() < 24 && !text.contains([' ', '=', ',']), "{text}");
                assert_eq!(text.parse(), Ok(past), "{text}");
            }
        }
        assert!("x:1".parse::<PastAttempt>().is_err());
    }
}
