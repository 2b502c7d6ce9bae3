//! Where a worker's log stands, exactly; pure.
//!
//! The API's `sinceTime` has whole seconds, so a position is: a second well
//! before the last line, how many lines since then are behind us, and a hash over
//! them. Whoever reads from that second on drops as many lines, and knows by the
//! hash that they were the same. Lines are counted in file order, never compared
//! by time; after a timestamp that goes back the whole file is read.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::line::Line;

/// How far before the last line a reader starts: clocks and the kubelet's own
/// rounding stay within it.
const LOOK_BACK: i64 = 10;

/// A position, short enough for an annotation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Sequence of the next line.
    pub(super) next: u64,
    /// Raised by each gap.
    pub(super) epoch: u32,
    /// Read from this second on (Unix); None: from the first byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<i64>,
    /// Lines from there on that are behind us, and a hash over them.
    pub(super) lines: u64,
    pub(super) hash: u64,
    /// Hash of the last of them.
    pub(super) last: u64,
    /// The same count and hash over the whole file.
    #[serde(default)]
    pub(super) total: u64,
    #[serde(default)]
    pub(super) whole: u64,
    /// Container instance.
    #[serde(default)]
    pub(super) restart: i32,
}

impl Checkpoint {
    pub(super) fn start(restart: i32) -> Self {
        Self {
            next: 1,
            restart,
            ..Self::default()
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text)
            .ok()
            .filter(|c: &Self| c.next > 0)
    }

    pub(super) fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Follows the lines that are behind us.
#[derive(Debug, Clone)]
pub(super) struct Tracker {
    next: u64,
    epoch: u32,
    restart: i32,
    /// (second, lines, hash chain), oldest first.
    seconds: VecDeque<(i64, u64, u64)>,
    /// Over everything since the start, for when time went back.
    all: (u64, u64),
    last: u64,
    newest: i64,
    /// Lines before the oldest second are forgotten.
    trimmed: bool,
    went_back: bool,
}

fn chain(hash: u64, next: u64) -> u64 {
    // Depends on order; cheap.
    (hash.rotate_left(5) ^ next).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Tracker {
    /// Goes on from a checkpoint; its lines must be fed to it by [`Self::held`].
    pub(super) fn resume(from: &Checkpoint) -> Self {
        Self {
            next: from.next,
            epoch: from.epoch,
            restart: from.restart,
            seconds: VecDeque::new(),
            all: (from.total, from.whole),
            last: from.last,
            newest: i64::MIN,
            trimmed: from.since.is_some(),
            went_back: false,
        }
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(super) fn restart(&self) -> i32 {
        self.restart
    }

    /// A line that was behind us already.
    pub(super) fn held(&mut self, second: Option<i64>, hash: u64) {
        let at = second.unwrap_or_else(|| self.newest.max(0));
        if at < self.newest {
            self.went_back = true;
        }
        self.newest = at.max(self.newest);
        self.last = hash;
        match self.seconds.back_mut() {
            Some((s, n, h)) if *s >= at => (*n, *h) = (*n + 1, chain(*h, hash)),
            _ => self.seconds.push_back((at, 1, chain(0, hash))),
        }
        while self.seconds.len() > 1
            && self
                .seconds
                .front()
                .is_some_and(|(s, ..)| *s < self.newest - LOOK_BACK)
        {
            self.seconds.pop_front();
            self.trimmed = true;
        }
    }

    /// A new line is behind us.
    pub(super) fn pass(&mut self, second: Option<i64>, hash: u64) {
        self.next += 1;
        self.all = (self.all.0 + 1, chain(self.all.1, hash));
        self.held(second, hash);
    }

    /// A record of our own, which is no line of the file.
    pub(super) fn pass_gap(&mut self) {
        self.next += 1;
        self.epoch += 1;
        // The file starts anew here.
        self.seconds.clear();
        self.all = (0, 0);
        self.newest = i64::MIN;
        self.trimmed = true;
    }

    pub(super) fn checkpoint(&self) -> Checkpoint {
        let from_start = self.went_back || !self.trimmed;
        let (lines, hash) = if from_start {
            self.all
        } else {
            self.seconds
                .iter()
                .fold((0, 0), |(n, h), (_, lines, part)| {
                    (n + lines, chain(h, *part))
                })
        };
        Checkpoint {
            next: self.next,
            epoch: self.epoch,
            since: (!from_start && !self.seconds.is_empty()).then(|| self.newest - LOOK_BACK),
            lines,
            hash,
            last: self.last,
            total: self.all.0,
            whole: self.all.1,
            restart: self.restart,
        }
    }
}

/// What to do with a line that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It is behind us.
    Held,
    New,
    /// These are not the lines that were behind us: the node's file has moved on.
    Mismatch,
}

/// Drops what is behind a checkpoint from a freshly opened log.
#[derive(Debug)]
pub(super) struct Resume {
    from: Checkpoint,
    tracker: Tracker,
    held: u64,
    hash: u64,
}

impl Resume {
    pub(super) fn new(from: Checkpoint) -> Self {
        let tracker = Tracker::resume(&from);
        Self {
            from,
            tracker,
            held: 0,
            hash: 0,
        }
    }

    /// Nothing is held back any more.
    pub(super) fn is_flowing(&self) -> bool {
        self.held >= self.from.lines
    }

    pub(super) fn step(&mut self, line: &Line) -> Step {
        if self.is_flowing() {
            return Step::New;
        }
        self.held += 1;
        self.hash = chain(self.hash, line.hash());
        self.tracker.held(line.second, line.hash());
        if !self.is_flowing() {
            return Step::Held;
        }
        let reached = match self.from.since {
            None => self.hash,
            Some(_) => self.tracker.checkpoint().hash,
        };
        if reached == self.from.hash {
            Step::Held
        } else {
            Step::Mismatch
        }
    }

    /// The tracker of lines behind us, once flowing.
    pub(super) fn into_tracker(self) -> Tracker {
        self.tracker
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn line(second: i64, n: usize) -> Line {
        let timestamp = format!("{second}");
        Line {
            timestamp,
            second: Some(second),
            text: format!("line {n}").into_bytes(),
            cut_from: None,
        }
    }

    /// What the API serves since a second: lines stamped from there on, in file
    /// order.
    fn served(file: &[Line], since: Option<i64>) -> Vec<Line> {
        file.iter()
            .filter(|l| since.is_none_or(|s| l.second.unwrap() >= s))
            .cloned()
            .collect()
    }

    /// Reads on from a checkpoint to the end; the new lines with sequences.
    fn read(file: &[Line], from: &Checkpoint) -> Result<(Vec<(u64, Line)>, Tracker), ()> {
        let mut resume = Resume::new(from.clone());
        let mut new = Vec::new();
        let mut fresh = Vec::new();
        for l in served(file, from.since) {
            match resume.step(&l) {
                Step::Held => {}
                Step::New => fresh.push(l),
                Step::Mismatch => return Err(()),
            }
        }
        if !resume.is_flowing() {
            return Err(());
        }
        let mut tracker = resume.into_tracker();
        for l in fresh {
            new.push((tracker.next(), l.clone()));
            tracker.pass(l.second, l.hash());
        }
        Ok((new, tracker))
    }

    proptest! {
        /// A reader that dies after any line, any number of times, gives every
        /// line once, with the same sequence, also where timestamps go back by
        /// less than LOOK_BACK. (The kubelet serves no line stamped before
        /// `since`: a clock set back further while nobody reads hides lines.)
        #[test]
        fn a_resume_gives_every_line_once_in_order(
            steps in prop::collection::vec(-9i64..9, 1..60),
            cuts in prop::collection::vec(0usize..60, 0..4),
        ) {
            let (mut now, mut peak) = (1_000, 1_000);
            let file: Vec<Line> = steps.iter().enumerate().map(|(n, step)| { now = (now + step).max(peak - LOOK_BACK + 1);
                    peak = now.max(peak); line(now, n) }).collect();
            let mut at = Checkpoint::start(0);
            let mut all: Vec<(u64, Line)> = Vec::new();
            let mut cuts = cuts;
            cuts.sort_unstable();
            for end in cuts.into_iter().map(|c| c.min(file.len())).chain([file.len()]) {
                // Only `end` lines exist by now, and all are acknowledged.
                if (end as u64) + 1 < at.next { continue; }
                let (new, tracker) = read(&file[..end], &at).map_err(|()| TestCaseError::fail("mismatch"))?;
                all.extend(new);
                at = Checkpoint::parse(&tracker.checkpoint().encode()).unwrap();
            }
            let expected: Vec<(u64, Line)> = (1..).zip(file).collect();
            prop_assert_eq!(all, expected);
        }
    }

    #[test]
    fn lines_with_one_timestamp_are_told_apart() {
        let file: Vec<Line> = (0..1_000).map(|n| line(5, n)).collect();
        let (_, tracker) = read(&file[..500], &Checkpoint::start(0)).unwrap();
        let (new, _) = read(&file, &tracker.checkpoint()).unwrap();
        assert_eq!((new.len(), new[0].0), (500, 501));
    }

    #[test]
    fn a_file_that_moved_on_is_noticed() {
        let file: Vec<Line> = (0..100).map(|n| line(n, n as usize)).collect();
        let (_, tracker) = read(&file[..50], &Checkpoint::start(0)).unwrap();
        assert!(read(&file[45..], &tracker.checkpoint()).is_err());
        assert!(read(&file[..47], &tracker.checkpoint()).is_err());
    }

    #[test]
    fn a_checkpoint_is_short() {
        let file: Vec<Line> = (0..100)
            .map(|n| line(1_790_000_000 + n, n as usize))
            .collect();
        let (_, tracker) = read(&file, &Checkpoint::start(0)).unwrap();
        assert!(tracker.checkpoint().encode().len() < 200);
    }
}
