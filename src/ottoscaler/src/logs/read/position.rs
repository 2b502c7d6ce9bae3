//! Positions in a log; pure.
//!
//! The API's `sinceTime` has a resolution of one second, so a position is a line, mostly the last
//! one that was read: its time to the nanosecond, its hash, and its ordinal among the lines of
//! that time. A reader starts some seconds before it and drops everything up to it. Lines are
//! taken in file order. They are compared by time for one thing only: a line later than the one
//! looked for raises the suspicion that the file has moved on, which a read to the file's end
//! decides.
use std::fmt;

use serde::{Deserialize, Serialize};

use super::line::Line;

/// How many seconds before its line a reader starts. A clock may be set back so far between
/// that line and the lines around it.
pub(crate) const LOOK_BACK: i64 = 10;

/// A position between two lines of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    After(Anchor),
    /// The position after a gap: the line is the first one of its file.
    Before(Anchor),
}

impl Place {
    fn line(&self) -> &Anchor {
        let (Self::After(line) | Self::Before(line)) = self;
        line
    }

    /// Returns the Unix second to read from in order to see the line of this position again.
    pub(crate) fn since(&self) -> Option<i64> {
        let nanos = self.line().nanos?;
        Some(nanos.div_euclid(1_000_000_000) - LOOK_BACK)
    }

    /// Reads what [`fmt::Display`] writes: `side`, and the words after it.
    pub(crate) fn of_words<'a>(
        side: &str,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Option<Self> {
        let line = Anchor {
            nanos: match words.next()? {
                "-" => None,
                nanos => Some(nanos.parse().ok()?),
            },
            hash: u64::from_str_radix(words.next()?, 16).ok()?,
            nth: words.next()?.parse().ok()?,
        };
        match side {
            "a" => Some(Self::After(line)),
            "b" => Some(Self::Before(line)),
            _ => None,
        }
    }

    /// Returns the time of its line.
    pub(crate) fn time(&self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::from_nanosecond(self.line().nanos?.into()).ok()
    }
}

/// Writes `a` (after) or `b` (before), and the line's time, hash and ordinal.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (side, line) = match self {
            Self::After(line) => ('a', line),
            Self::Before(line) => ('b', line),
        };
        match line.nanos {
            Some(nanos) => write!(f, "{side} {nanos}")?,
            None => write!(f, "{side} -")?,
        }
        write!(f, " {:x} {}", line.hash, line.nth)
    }
}

/// The identity of a line in its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Anchor {
    /// The line's Unix time, or that of the line before if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nanos: Option<i64>,
    /// The hash of timestamp and text.
    hash: u64,
    /// The ordinal among the consecutive lines of the same time, from 1.
    nth: u64,
}

impl Anchor {
    /// Returns the identity of the line that comes after `before`.
    pub(crate) fn of(line: &Line, before: Option<&Self>) -> Self {
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
}

/// What to do with a line that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The line was handed on before.
    Held,
    /// The line is not handed on, although it is later than the line looked for, which may be
    /// gone.
    Late,
    New(Anchor),
}

/// Drops the lines of a freshly opened log that were handed on before.
#[derive(Debug)]
pub(crate) struct Resume {
    sought: Option<Place>,
    at: Option<Anchor>,
}

impl Resume {
    pub(crate) fn new(place: Option<Place>) -> Self {
        Self {
            sought: place,
            at: None,
        }
    }

    /// Whether the position has been reached, so that every line is new.
    pub(crate) fn is_flowing(&self) -> bool {
        self.sought.is_none()
    }

    pub(crate) fn step(&mut self, line: &Line) -> Step {
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
