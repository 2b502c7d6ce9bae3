//! What of a worker's log is acknowledged; pure.
use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::logs::read::position::{Anchor, Place};

/// The highest sequence. No log comes to it, it can be counted on from, and JSON numbers hold it
/// exactly.
const MAX_SEQUENCE: u64 = 1 << 52;
/// The highest epoch. No log comes to it, and it can be counted on from.
pub(super) const MAX_EPOCH: u32 = 1 << 30;

/// A position in a log.
///
/// Its text, `restart epoch next [a|b nanos hash nth]`, is what is stored: one line of a
/// shard (`shards/text.rs`). Serde reads the annotation of the pod in which
/// earlier versions stored it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Sequence of the next entry, from 1.
    pub(super) next: u64,
    /// Raised by each gap, and never the same after two of them, whoever told them: a
    /// receiver that keeps the highest epoch and sequence takes what follows a gap, also
    /// where lines with these sequences had come to it before and were not acknowledged.
    /// So a gap's epoch is stored apart from the checkpoint before it is used
    /// ([`Self::next_epoch`]): a checkpoint covers only what was acknowledged.
    pub(super) epoch: u32,
    /// Container instance.
    pub(super) restart: i32,
    /// None: the container's first byte is next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) place: Option<Place>,
}

impl Checkpoint {
    pub(super) fn start(restart: i32) -> Self {
        Self {
            next: 1,
            epoch: 0,
            restart,
            place: None,
        }
    }

    /// Reads the annotation of an earlier version; None if it holds no checkpoint.
    pub(super) fn of_annotation(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(Self::is_sane)
    }

    /// As an earlier version stored it on the pod.
    #[cfg(test)]
    pub(super) fn annotation(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether a log can stand there: anybody may have written what is stored.
    fn is_sane(&self) -> bool {
        (1..MAX_SEQUENCE).contains(&self.next) && self.epoch < MAX_EPOCH && self.restart >= 0
    }

    /// Orders checkpoints of one pod by how far the log has come.
    ///
    /// The epoch comes before the sequence: whoever resumed from an older checkpoint and
    /// found a gap there went on in a later epoch with lower sequences.
    pub(super) fn progress(&self) -> (i32, u32, u64) {
        (self.restart, self.epoch, self.next)
    }

    /// A line is behind us.
    pub(super) fn pass(&mut self, line: Anchor) {
        self.next += 1;
        self.place = Some(Place::After(line));
    }

    /// A record of our own, which is no line of the file, is behind us. `place`: what the
    /// file has after it.
    pub(super) fn pass_gap(&mut self, place: Option<Place>, epoch: u32) {
        self.next += 1;
        self.epoch = epoch;
        self.place = place;
    }

    /// The least epoch that a gap may begin here. `reserved`: the highest that any reader of
    /// this log has begun, or may have; `transitions`: of the leader's term, which versions
    /// that reserved none counted by.
    pub(super) fn next_epoch(&self, reserved: u32, transitions: u32) -> u32 {
        let last = self.epoch.max(reserved);
        last.saturating_add(1).max(transitions)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.restart, self.epoch, self.next)?;
        match &self.place {
            None => Ok(()),
            Some(place) => write!(f, " {place}"),
        }
    }
}

/// A text that is no checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoCheckpoint;

impl FromStr for Checkpoint {
    type Err = NoCheckpoint;

    fn from_str(text: &str) -> Result<Self, NoCheckpoint> {
        let mut words = text.split(' ');
        let checkpoint = Self {
            restart: number(words.next())?,
            epoch: number(words.next())?,
            next: number(words.next())?,
            place: match words.next() {
                None => None,
                Some(side) => Some(Place::of_words(side, &mut words).ok_or(NoCheckpoint)?),
            },
        };
        if words.next().is_some() || !checkpoint.is_sane() {
            return Err(NoCheckpoint);
        }
        Ok(checkpoint)
    }
}

fn number<T: FromStr>(word: Option<&str>) -> Result<T, NoCheckpoint> {
    word.and_then(|word| word.parse().ok()).ok_or(NoCheckpoint)
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
