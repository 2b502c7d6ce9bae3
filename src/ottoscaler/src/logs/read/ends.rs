//! What the ends of follows prove about a container's log; pure.
//!
//! A kubelet ends a follow when the container has ended. It also ends one when it
//! restarts, and the two look the same. Times are Durations since the reader began.
//!
//! Invariants: a single end proves nothing. Only the pod's status, or a second end that
//! comes right after the log was opened again and brings nothing new, makes an end final.
//! A new line clears everything.
use std::time::Duration;

/// An end that is no older than this, with nothing later in the file, counts as the
/// container's end. The status may lag behind it; a kubelet that went away is noticed
/// within this time, because it refuses the next read.
const RECENT: Duration = Duration::from_secs(6);
/// The delay after a first end, unless the status tells of the container's end before: a
/// kubelet that went away refuses then, and one that came back follows on.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(2);
/// The delay after a final end: on a busy node the status may lag by half a minute.
const STATUS_LAG: Duration = Duration::from_secs(30);
/// A follow that ends within this time of its opening confirms the end before it, on a
/// busy node too.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// A follow that ends within this time proves the end so well that the log need not be
/// read once more when the status tells the same: a kubelet would have had to restart
/// twice, the second time within this period.
const PROVEN_WITHIN: Duration = Duration::from_secs(2);

/// The ends of follows since the last new line.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// The last end of a follow that had given all that the file had.
    last: Option<Duration>,
    /// The number of ends of which each confirmed the one before.
    in_a_row: u32,
    /// The last end came within [`PROVEN_WITHIN`], and nothing cast doubt on it since.
    is_swift: bool,
    /// The last read ended with a whole line.
    is_whole: bool,
    /// A follow ended when the status had told of the container's end already.
    is_told: bool,
}

impl Ends {
    /// A read came to an end that had given all that the file had. `opened`: when it was
    /// opened, if it was a follow.
    pub(super) fn note(&mut self, opened: Option<Duration>, now: Duration) {
        self.last = Some(now);
        if let Some(opened) = opened {
            let open_for = now.saturating_sub(opened);
            let confirms = open_for < CONFIRMED_WITHIN;
            self.in_a_row = if confirms { self.in_a_row + 1 } else { 1 };
            self.is_swift = open_for < PROVEN_WITHIN;
        }
    }

    /// Whether the status had told of the container's end when a follow ended.
    pub(super) fn note_status(&mut self, is_over: bool) {
        self.is_told = is_over;
    }

    /// Whether the bytes of a read ended with a whole line.
    pub(super) fn note_whole(&mut self, is_whole: bool) {
        self.is_whole = is_whole;
    }

    /// The file has later lines, or may have.
    pub(super) fn doubt(&mut self) {
        self.is_swift = false;
    }

    /// The log could not be opened, or it broke off.
    pub(super) fn not_read(&mut self) {
        self.doubt();
        if !self.is_final() {
            (self.last, self.in_a_row) = (None, 0);
        }
    }

    /// A new line was read.
    pub(super) fn clear(&mut self) {
        let is_whole = self.is_whole;
        *self = Self {
            is_whole,
            ..Self::default()
        };
    }

    /// Whether the container has ended, whatever its status tells.
    pub(super) fn is_final(&self) -> bool {
        self.in_a_row > 1
    }

    /// Whether the log is complete as soon as the status tells of the container's end.
    pub(super) fn needs_no_reread(&self) -> bool {
        self.is_final() && self.is_swift && self.is_whole
    }

    /// Whether a follow came to an end that the status had told of.
    pub(super) fn is_told(&self) -> bool {
        self.is_told
    }

    /// Whether the log is complete if its file has nothing later.
    pub(super) fn reached_the_end(&self, now: Duration) -> bool {
        let is_recent = |at: Duration| now.saturating_sub(at) <= RECENT;
        self.is_told || self.is_final() || self.last.is_some_and(is_recent)
    }

    /// How long to wait for the status before the log is opened again.
    pub(super) fn retry_after(&self) -> Duration {
        if self.is_final() {
            STATUS_LAG
        } else {
            RETRY_AFTER
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(ends: &mut Ends, opened: u64, at: u64) {
        ends.note_whole(true);
        let millis = Duration::from_millis;
        ends.note(Some(millis(opened)), millis(at));
    }

    #[test]
    fn one_end_proves_nothing_for_long_and_a_second_one_at_once_does() {
        let mut ends = Ends::default();
        ended(&mut ends, 0, 60_000);
        assert!(!ends.is_final() && !ends.needs_no_reread());
        assert_eq!(ends.retry_after(), RETRY_AFTER);
        let end = Duration::from_secs(60);
        assert!(ends.reached_the_end(end + RECENT));
        assert!(!ends.reached_the_end(end + RECENT + Duration::from_nanos(1)));
        ended(&mut ends, 62_000, 62_100);
        assert!(ends.is_final() && ends.needs_no_reread());
        assert!(ends.reached_the_end(Duration::MAX));
        assert_eq!(ends.retry_after(), STATUS_LAG);
    }

    #[test]
    fn a_second_end_proves_as_much_as_it_came_soon() {
        for (open_for, is_final, needs_no_reread) in [
            (1_999, true, true),
            (2_000, true, false),
            (4_999, true, false),
            (5_000, false, false),
        ] {
            let mut ends = Ends::default();
            ended(&mut ends, 0, 60_000);
            ended(&mut ends, 62_000, 62_000 + open_for);
            assert_eq!(ends.is_final(), is_final, "{open_for}");
            assert_eq!(ends.needs_no_reread(), needs_no_reread, "{open_for}");
        }
    }

    #[test]
    fn what_casts_doubt_on_an_end_asks_for_another_read() {
        let proven = || {
            let mut ends = Ends::default();
            ended(&mut ends, 0, 0);
            ended(&mut ends, 0, 0);
            ends
        };
        let doubts: [fn(&mut Ends); 4] = [Ends::doubt, Ends::not_read, Ends::clear, |ends| {
            ends.note_whole(false)
        }];
        for (n, doubt) in doubts.iter().enumerate() {
            let mut ends = proven();
            assert!(ends.needs_no_reread());
            doubt(&mut ends);
            assert!(!ends.needs_no_reread(), "{n}");
            // A line alone shows that the container had not ended.
            assert_eq!(ends.is_final(), n != 2, "{n}");
        }
        // What was not final is forgotten when the node refuses.
        let mut ends = Ends::default();
        ended(&mut ends, 0, 0);
        ends.not_read();
        assert!(!ends.reached_the_end(Duration::ZERO));
        // An end that the status told of is not.
        ends.note_status(true);
        ends.not_read();
        assert!(ends.is_told() && ends.reached_the_end(Duration::MAX));
    }
}
