//! Places in a log where lines may be missing.
use std::fmt;

use serde::{Deserialize, Serialize};

use super::position::Place;

/// Why lines may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Reason {
    /// The node serves a newer file only.
    Rotated,
    /// The log was opened late, and its file begins later than the container.
    Late,
    /// The pod went before its log was read to the end.
    PodGone,
    /// The container was replaced twice before its log was read to the end.
    Restarted,
    /// The node has removed the container, and its log with it.
    Removed,
}

impl Reason {
    /// Returns the reason as it stands in metadata, metrics and messages.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rotated => "rotated",
            Self::Late => "read late",
            Self::PodGone => "pod gone",
            Self::Restarted => "restarted",
            Self::Removed => "log removed",
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Gap {
    pub(crate) reason: Reason,
    /// The times of the last line before the gap and of the first line after it, where known.
    pub(crate) from: Option<jiff::Timestamp>,
    pub(crate) to: Option<jiff::Timestamp>,
    /// The position after the gap.
    pub(crate) place: Option<Place>,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "log lines may be missing here ({})",
            self.reason.as_str()
        )
    }
}
