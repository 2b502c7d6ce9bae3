//! Where lines may be missing.
use std::fmt;

use serde::{Deserialize, Serialize};

use super::position::Place;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Reason {
    /// The node has a newer file only.
    Rotated,
    /// Nobody read it from the container's start on, and its file begins later.
    Late,
    /// The pod went before its log was read to the end.
    PodGone,
    /// A container ran, ended and was replaced before its log was read to the end.
    Restarted,
    /// The node has removed the container, and its log with it.
    Removed,
}

impl Reason {
    /// As metadata, metrics and people have it.
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
    /// Times of the last line before and the first one after, where known.
    pub(crate) from: Option<jiff::Timestamp>,
    pub(crate) to: Option<jiff::Timestamp>,
    /// What the file has after it.
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
