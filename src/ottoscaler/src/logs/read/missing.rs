//! Whether lines may be missing before the next one; pure.
use std::time::Duration;

use super::{gap::Reason, line::Line};

/// The period in which a kubelet looks for logs to rotate. Nothing was rotated away before a
/// container had run for so long.
const ROTATION_PERIOD: Duration = Duration::from_secs(10);

/// What may be missing before the next line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Nothing,
    /// The line looked for is not in the file: what there is comes after a gap.
    Rotated,
    /// This is the first reader of a container that started at that Unix second. Lines may
    /// have been rotated away before the log was opened, at `opened`.
    BeforeFirst {
        started: i64,
        opened: Option<Duration>,
    },
}

impl Missing {
    pub(super) fn before_first(started: i64) -> Self {
        Self::BeforeFirst {
            started,
            opened: None,
        }
    }

    /// The log was opened.
    pub(super) fn log_opened(&mut self, now: Duration) {
        if let Self::BeforeFirst { opened, .. } = self {
            opened.get_or_insert(now);
        }
    }

    /// The log broke off, or was not read: whatever it held meanwhile may be gone.
    pub(super) fn log_interrupted(&mut self) {
        if let Self::BeforeFirst { opened, .. } = self {
            *opened = None;
        }
    }

    /// Why lines may be missing before that one, which was read at `now`.
    pub(super) fn reason(self, line: &Line, now: Duration) -> Option<Reason> {
        match self {
            Self::Nothing => None,
            Self::Rotated => Some(Reason::Rotated),
            Self::BeforeFirst { started, opened } => {
                // By the node's clock, the line was printed so long after the start. By ours, the
                // log was open for the last part of that time at most. A container that was
                // silent for so long looks the same as one whose lines are gone.
                let start = jiff::Timestamp::from_second(started).ok()?;
                let age = Duration::try_from(line.time()?.duration_since(start)).ok()?;
                let open_for = now.saturating_sub(opened.unwrap_or(now));
                (age.saturating_sub(open_for) > ROTATION_PERIOD).then_some(Reason::Late)
            }
        }
    }
}
