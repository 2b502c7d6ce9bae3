//! The resume core against a node in small: bytes in → entries out. Property tests and
//! the fuzz target (`tests/fuzz`) write its scripts.
//!
//! A container prints on two streams, in whole and partial records, any bytes, by a
//! clock that stands still and goes back; its file is rotated; readers start from what
//! was acknowledged, are cut off at any byte, and what they delivered is acknowledged up
//! to anywhere. Readers may have the same term (a session that reads again), and terms
//! begin anew where the Lease was made anew. What must hold is in [`Receiver::take`] and at the end of [`run`].
use std::collections::BTreeMap;

use super::checkpoint::Checkpoint;
use crate::logs::read::{
    line::{Line, Splitter},
    position::{Place, Resume, Step},
};

/// A second in nanoseconds, the unit of positions.
const SECOND: i64 = 1_000_000_000;
/// Further back a clock hides lines from who starts to read.
const BACK: i64 = 9;

/// What a runtime writes into a container's file.
struct Record {
    nanos: i64,
    /// It ends a line.
    full: bool,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Node {
    /// The newest file; older ones are served to nobody.
    records: Vec<Record>,
    /// Of each file, its lines as they are served from its start.
    files: Vec<Vec<Line>>,
}

impl Node {
    /// As the kubelet does it (cri-client, logs.go): by records, of which those stamped
    /// before are left out; a timestamp where the record before ended a line, whichever
    /// its stream, and whether it was served or not.
    fn serve(&self, since: Option<i64>) -> Vec<u8> {
        let (mut out, mut starts) = (Vec::new(), true);
        for record in &self.records {
            if since.is_none_or(|s| record.nanos >= s * SECOND) {
                if starts {
                    out.extend_from_slice(time(record.nanos).to_string().as_bytes());
                    out.push(b' ');
                }
                out.extend_from_slice(&record.bytes);
                if record.full {
                    out.push(b'\n');
                }
            }
            starts = record.full;
        }
        out
    }

    fn lines(&self) -> Vec<Line> {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        splitter.feed(&self.serve(None), |l| lines.push(l));
        lines.extend(splitter.finish());
        lines
    }
}

fn time(nanos: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(nanos.into()).unwrap_or_default()
}

/// What comes out of a reader.
#[derive(Clone, PartialEq)]
enum Out {
    Line(Line),
    /// Told where this file (the nth) was the newest.
    Gap(usize),
}

/// And where the reader stands then.
type Entry = (Out, Checkpoint);

/// Takes what is above the highest epoch and sequence, as the contract has it.
#[derive(Default)]
struct Receiver {
    newest: (u32, u64),
    taken: Vec<Out>,
    /// Every entry that came, by epoch and sequence.
    seen: BTreeMap<(u32, u64), Out>,
}

impl Receiver {
    fn take(&mut self, (out, then): &Entry) {
        let at = (then.epoch, then.next - 1);
        let before = self.seen.insert(at, out.clone());
        assert!(before.is_none_or(|b| b == *out), "{at:?} is two entries");
        if at > self.newest {
            self.newest = at;
            self.taken.push(out.clone());
        }
    }
}

/// How the epoch of a gap is chosen.
#[derive(Debug, Clone, Copy)]
enum Epochs {
    /// Above all that any reader stored before it used them. This one is stored.
    Stored(u32),
    /// By the reader's term and what was acknowledged alone: not enough.
    #[cfg(test)]
    ByTerm,
}

impl Epochs {
    fn next(&mut self, at: &Checkpoint, term: u32) -> u32 {
        match self {
            Self::Stored(reserved) => {
                *reserved = at.next_epoch(*reserved, term);
                *reserved
            }
            #[cfg(test)]
            Self::ByTerm => at.next_epoch(0, term),
        }
    }
}

/// A reader that begins after `acked`, in that term, and sees so many bytes.
fn read(
    node: &Node,
    acked: &Checkpoint,
    bytes: usize,
    over: bool,
    term: u32,
    epochs: &mut Epochs,
) -> Vec<Entry> {
    let (mut at, mut entries, mut lost) = (acked.clone(), Vec::new(), false);
    loop {
        let sought = at.place.clone().filter(|_| !lost);
        let mut served = node.serve(sought.as_ref().and_then(Place::since));
        let is_whole = bytes >= served.len();
        served.truncate(bytes);
        let (mut splitter, mut resume) = (Splitter::default(), Resume::new(sought));
        let mut lines = Vec::new();
        // In pieces of any size.
        for piece in served.chunks(1 + bytes % 7) {
            splitter.feed(piece, |l| lines.push(l));
        }
        lines.extend(splitter.finish().filter(|_| over && is_whole));
        for line in lines {
            if let Step::New(anchor) = resume.step(&line) {
                if std::mem::take(&mut lost) {
                    let epoch = epochs.next(&at, term);
                    at.pass_gap(Some(Place::Before(anchor.clone())), epoch);
                    entries.push((Out::Gap(node.files.len()), at.clone()));
                }
                at.pass(anchor);
                entries.push((Out::Line(line), at.clone()));
            }
        }
        if resume.is_flowing() || !is_whole {
            if lost && over {
                let epoch = epochs.next(&at, term);
                at.pass_gap(None, epoch);
                entries.push((Out::Gap(node.files.len()), at));
            }
            return entries;
        }
        lost = true;
    }
}

/// Runs a script; panics where something does not hold.
pub(super) fn run(script: &[u8]) {
    run_with(script, Epochs::Stored(0));
}

fn run_with(script: &[u8], mut epochs: Epochs) {
    let mut script = script.iter().copied();
    let mut node = Node::default();
    let mut now = 1_790_000_000 * SECOND;
    let mut peak = now;
    let (mut acked, mut acked_in, mut term) = (Checkpoint::start(0), 0, 0);
    let (mut receiver, mut ticks) = (Receiver::default(), 0);
    while let Some(op) = script.next() {
        let mut byte = || usize::from(script.next().unwrap_or(0));
        match op % 8 {
            0..=3 => {
                let full = op % 8 != 3;
                // Partial records come of full buffers, so none is empty.
                let length = byte() % 12 + usize::from(!full);
                let bytes = (0..length).map(|_| byte() as u8);
                let bytes = bytes.map(|b| if b == b'\n' { b'n' } else { b }).collect();
                node.records.push(Record {
                    nanos: now,
                    full,
                    bytes,
                });
            }
            4 => {
                // No moment comes again once it passed.
                // Set back within a line, it can hide the line's end from a later reader,
                // who gets it glued to the next one. Not looked for.
                let is_within = node.records.last().is_some_and(|r| !r.full);
                let step = (byte() as i64 - 100).max(if is_within { 0 } else { -100 });
                now = (now - now % (SECOND / 10) + step * SECOND / 10).max(peak - BACK * SECOND);
                ticks += 1;
                now += ticks;
                peak = peak.max(now);
            }
            5 => {
                // A file that begins within a line, or with lines of the moment of the
                // last one's end, hides it; and that one went before the first reader
                // came can nobody know.
                let last = node.records.last();
                if last.is_some_and(|r| r.full && r.nanos != now) && acked.place.is_some() {
                    let file = node.lines();
                    node.files.push(file);
                    node.records.clear();
                }
            }
            _ => {
                term = match byte() % 4 {
                    0 => term,
                    1 => 0,
                    _ => term + 1,
                };
                let bytes = if op % 8 == 6 { byte() * 4 } else { usize::MAX };
                let entries = read(&node, &acked, bytes, false, term, &mut epochs);
                let is_gap = entries.iter().any(|(out, _)| matches!(out, Out::Gap(_)));
                assert!(
                    !is_gap || node.files.len() > acked_in,
                    "a gap where nothing went"
                );
                entries.iter().for_each(|e| receiver.take(e));
                let upto = byte() % (entries.len() + 1);
                if let Some((_, then)) = entries[..upto].last() {
                    acked = then.clone();
                    acked_in = node.files.len();
                }
            }
        }
    }
    let entries = read(&node, &acked, usize::MAX, true, term, &mut epochs);
    entries.iter().for_each(|e| receiver.take(e));

    // What was taken are the files' lines in order, save that at a gap it goes on at the
    // start of the file that was the newest.
    let file = node.lines();
    node.files.push(file);
    let starts: Vec<usize> = node
        .files
        .iter()
        .scan(0, |at, f| {
            let start = *at;
            *at += f.len();
            Some(start)
        })
        .collect();
    let lines: Vec<Line> = node.files.into_iter().flatten().collect();
    let mut at = 0;
    for out in receiver.taken {
        match out {
            Out::Line(line) => {
                assert_eq!(Some(&line), lines.get(at), "the {at}th line is another");
                at += 1;
            }
            Out::Gap(file) => at = starts[file],
        }
    }
    assert_eq!(at, lines.len(), "lines are missing at the end");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn whatever_a_node_prints_and_however_it_is_read_no_line_is_missing_unsaid(
            script in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            super::run(&script);
        }
    }

    /// The model sees what it is for: where a gap's epoch follows from the reader's term,
    /// another reader of that term, or of a Lease made anew, uses it for other lines.
    #[test]
    fn an_epoch_that_is_not_stored_is_used_twice() {
        let mut random = 7_u64;
        let mut byte = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            u8::try_from(random >> 56).unwrap_or_default()
        };
        let finds = |script: &[u8]| {
            let run = || super::run_with(script, super::Epochs::ByTerm);
            std::panic::catch_unwind(run).is_err()
        };
        let scripts = (0..2_000).map(|_| (0..200).map(|_| byte()).collect());
        let found = scripts.filter(|script: &Vec<u8>| finds(script));
        assert!(
            found.take(3).count() == 3,
            "the model finds no epoch used twice"
        );
    }
}
