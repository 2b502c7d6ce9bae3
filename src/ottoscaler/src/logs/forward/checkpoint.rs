//! Where a worker's log stands, exactly; pure.
//!
//! The API's `sinceTime` has whole seconds, so a position is a line, mostly the last one behind us:
//! its time to the nanosecond, its hash, and which of the lines of that time it was.
//! Whoever reads from some seconds before it on drops everything up to it. Lines are
//! taken in file order. By time they are compared for one thing only: a line later
//! than the one looked for raises the suspicion that the file has moved on, which a
//! read to the file's end decides.
use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::line::Line;

/// How far before the last line a reader starts, in seconds: so far a clock may be
/// set back between it and the lines before and after.
const LOOK_BACK: i64 = 10;

/// Sequences and epochs that no log comes to; each can be counted on from.
const MAX_SEQUENCE: u64 = 1 << 52;
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
        let (side, line) = match &self.place {
            None => return Ok(()),
            Some(Place::After(line)) => ('a', line),
            Some(Place::Before(line)) => ('b', line),
        };
        match line.nanos {
            Some(nanos) => write!(f, " {side} {nanos}")?,
            None => write!(f, " {side} -")?,
        }
        write!(f, " {:x} {}", line.hash, line.nth)
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
                Some("a") => Some(Place::After(Anchor::of_words(&mut words)?)),
                Some("b") => Some(Place::Before(Anchor::of_words(&mut words)?)),
                Some(_) => return Err(NoCheckpoint),
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

/// Between two lines of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Place {
    After(Anchor),
    /// After a gap: the line is the first one of its file.
    Before(Anchor),
}

impl Place {
    fn line(&self) -> &Anchor {
        let (Self::After(line) | Self::Before(line)) = self;
        line
    }

    /// Where to read from to see its line again, as Unix time in seconds.
    pub(super) fn since(&self) -> Option<i64> {
        let nanos = self.line().nanos?;
        Some(nanos.div_euclid(1_000_000_000) - LOOK_BACK)
    }

    /// Of its line.
    pub(super) fn time(&self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::from_nanosecond(self.line().nanos?.into()).ok()
    }
}

/// A line of a file, told from its likes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Anchor {
    /// Unix time; of the line before, where it had none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nanos: Option<i64>,
    /// Of text and timestamp.
    hash: u64,
    /// Which of the lines of one time, that follow each other, it is; from 1.
    nth: u64,
}

impl Anchor {
    /// Of the line that comes after `before`.
    pub(super) fn of(line: &Line, before: Option<&Self>) -> Self {
        let nanos = line.nanos.or_else(|| before.and_then(|b| b.nanos));
        let nth = before
            .filter(|b| b.nanos == nanos)
            .map_or(1, |b| b.nth.saturating_add(1));
        Self {
            nanos,
            hash: line.hash(),
            nth,
        }
    }

    fn of_words<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<Self, NoCheckpoint> {
        let nanos = match words.next() {
            Some("-") => None,
            word => Some(number(word)?),
        };
        let hash = words.next().ok_or(NoCheckpoint)?;
        Ok(Self {
            nanos,
            hash: u64::from_str_radix(hash, 16).map_err(|_| NoCheckpoint)?,
            nth: number(words.next())?,
        })
    }
}

/// What to do with a line that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It is behind us.
    Held,
    /// The same, though it is later than the line looked for, which may be gone.
    Late,
    New(Anchor),
}

/// Drops what is behind us from a freshly opened log.
#[derive(Debug)]
pub(super) struct Resume {
    sought: Option<Place>,
    at: Option<Anchor>,
}

impl Resume {
    pub(super) fn new(place: Option<Place>) -> Self {
        Self {
            sought: place,
            at: None,
        }
    }

    /// Nothing is held back any more.
    pub(super) fn is_flowing(&self) -> bool {
        self.sought.is_none()
    }

    pub(super) fn step(&mut self, line: &Line) -> Step {
        let this = Anchor::of(line, self.at.as_ref());
        self.at = Some(this.clone());
        let Some(sought) = &self.sought else {
            return Step::New(this);
        };
        let step = match sought {
            Place::After(line) if *line == this => Step::Held,
            Place::Before(line) if *line == this => Step::New(this),
            place if this.nanos > place.line().nanos => return Step::Late,
            _ => return Step::Held,
        };
        self.sought = None;
        step
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
