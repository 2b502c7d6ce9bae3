//! Compares what was printed with what the handler recorded.
//!
//! Counts what it saw: a check of nothing is no check.
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;

use crate::{
    record::{Log, Notify, Record},
    truth::Truth,
};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub workers: usize,
    /// Lines printed, and of these recorded at least once.
    pub printed: usize,
    pub recorded: usize,
    /// Taken again with the same sequence and text.
    pub repeats: usize,
    /// Leaders that sent lines and then released the Lease, and repeats of what such a
    /// leader was the last to send, by another.
    pub released: usize,
    pub repeats_after_release: usize,
    /// The first of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_repeat_after_release: Option<String>,
    /// Leaders that sent lines and were then killed.
    pub killed: usize,
    /// Lines of all workers that a leader was the last to send, and another sent again
    /// because that leader was killed: of the leader with the most.
    pub repeats_after_kill: usize,
    /// The same of leaders that neither released the Lease nor were killed: their renewals
    /// came too late.
    pub repeats_after_loss: usize,
    /// Lines of each leader that did not release the Lease that another sent again.
    #[serde(skip)]
    pub repeats_of: BTreeMap<String, usize>,
    pub gaps: usize,
    /// Lines that are missing where a gap record says so.
    pub told: usize,
    /// Lines that are missing, each the last of a file that the node rotated.
    pub at_rotations: usize,
    pub notifications: usize,
    /// What is wrong, in words; empty when all agrees.
    pub faults: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Expect<'a> {
    pub workers: usize,
    pub min_lines: usize,
    /// Gap records are no fault, nor lines that are missing at one.
    pub allow_gaps: bool,
    /// So many gap records of each worker.
    pub gaps_each: Option<usize>,
    /// Printers that were killed leave no exit code.
    pub allow_unfinished: bool,
    /// Holders of the Lease that released it.
    pub released: Option<&'a BTreeSet<String>>,
    /// Holders of the Lease that were killed; without it, all that did not release it.
    pub killed: Option<&'a BTreeSet<String>>,
    /// The last lines of files that the node rotated. Who follows may miss one: the
    /// kubelet goes to the new file as soon as there is one, and the runtime may write
    /// another line to the old one.
    pub rotated: Option<&'a BTreeSet<String>>,
}

impl Expect<'_> {
    fn is_released(&self, holder: &str) -> bool {
        self.released.is_some_and(|all| all.contains(holder))
    }

    fn is_killed(&self, holder: &str) -> bool {
        !self.is_released(holder) && self.killed.is_none_or(|all| all.contains(holder))
    }
}

const SHOWN: usize = 5;

/// Holds the records of the truths' workers against them. Other workers'
/// records are left alone.
pub fn check(truths: &[Truth], records: &[Record], expect: Expect<'_>) -> Verdict {
    let mut v = Verdict {
        workers: truths.len(),
        ..Verdict::default()
    };
    let mut logs: HashMap<&str, Vec<&Log>> = HashMap::new();
    let mut notes: HashMap<&str, Vec<&Notify>> = HashMap::new();
    for record in records {
        match record {
            Record::Log(l) => logs.entry(&l.worker).or_default().push(l),
            Record::Notify(n) => notes.entry(&n.worker).or_default().push(n),
        }
    }
    let holders: HashSet<&str> = logs.values().flatten().map(|l| l.holder()).collect();
    v.released = holders.iter().filter(|h| expect.is_released(h)).count();
    v.killed = holders.iter().filter(|h| expect.is_killed(h)).count();
    for truth in truths {
        check_lines(
            truth,
            logs.get(truth.pod.as_str()).map_or(&[][..], |l| l),
            expect,
            &mut v,
        );
        check_notifications(
            truth,
            notes.get(truth.pod.as_str()).map_or(&[][..], |n| n),
            &mut v,
        );
        if truth.exit.is_none() && !expect.allow_unfinished {
            v.faults
                .push(format!("{}: the printer did not finish", truth.pod));
        }
    }
    for (holder, repeats) in &v.repeats_of {
        let most = match expect.is_killed(holder) {
            true => &mut v.repeats_after_kill,
            false => &mut v.repeats_after_loss,
        };
        *most = (*most).max(*repeats);
    }
    if v.workers == 0 || v.workers < expect.workers {
        v.faults.push(format!(
            "saw {} workers, expected at least {}",
            v.workers,
            expect.workers.max(1)
        ));
    }
    if v.printed == 0 || v.printed < expect.min_lines {
        v.faults.push(format!(
            "saw {} printed lines, expected at least {}",
            v.printed,
            expect.min_lines.max(1)
        ));
    }
    v
}

fn check_lines(truth: &Truth, logs: &[&Log], expect: Expect<'_>, v: &mut Verdict) {
    let pod = &truth.pod;
    v.printed += truth.lines.len();
    // Epoch and sequence → what came first. They are one line's for ever.
    let mut first: BTreeMap<(u64, u64), &Log> = BTreeMap::new();
    let mut sent_by: HashMap<(u64, u64), &str> = HashMap::new();
    let mut newest_in_stream: HashMap<u64, (u64, u64)> = HashMap::new();
    let mut uid: Option<&str> = None;
    let mut faults = Vec::new();
    for log in logs {
        if log.is_gap() && !expect.allow_gaps {
            faults.push(format!("a gap record: {:?}", log.metadata));
            continue;
        }
        if log.answer != "ack" {
            continue;
        }
        let Some(sequence) = log.sequence().filter(|s| *s > 0) else {
            faults.push(format!("no sequence on {:?}", log.message));
            continue;
        };
        let at = (log.epoch(), sequence);
        let pod_uid = log
            .metadata
            .get("pod-uid")
            .map(String::as_str)
            .unwrap_or_default();
        if pod_uid.is_empty() || uid.is_some_and(|u| u != pod_uid) {
            faults.push(format!("pod-uid {pod_uid:?} after {uid:?}"));
        }
        uid = Some(pod_uid);
        // A stream that began after an earlier one may start below its end, but
        // within a stream order holds.
        let newest = newest_in_stream.entry(log.stream).or_insert((0, 0));
        if at <= *newest && first.get(&at).is_none_or(|f| f.message != log.message) {
            faults.push(format!("sequence {at:?} after {newest:?} on one stream"));
        }
        *newest = at.max(*newest);
        let before = sent_by.insert(at, log.holder());
        let is_anew = before.is_some_and(|b| b != log.holder());
        if let Some(left) = before.filter(|b| is_anew && !expect.is_released(b)) {
            *v.repeats_of.entry(left.to_owned()).or_default() += 1;
        } else if is_anew {
            v.repeats_after_release += 1;
            let told = || format!("{pod}: {at:?} by {before:?} and then by {}", log.holder());
            v.first_repeat_after_release.get_or_insert_with(told);
        }
        match first.get(&at) {
            Some(f) if f.message == log.message => v.repeats += 1,
            Some(f) => faults.push(format!(
                "sequence {at:?} is {:?} and {:?}",
                f.message, log.message
            )),
            None => {
                // In order over all streams: a new line is the next one. An epoch
                // begins after the last line that was acknowledged.
                let last = first.keys().next_back();
                let follows = |last: &(u64, u64)| {
                    if at.0 == last.0 {
                        at.1 == last.1 + 1
                    } else {
                        at.0 > last.0 && at.1 <= last.1 + 1 && log.is_gap()
                    }
                };
                if !last.is_none_or(follows) {
                    faults.push(format!("sequence {at:?} came after {last:?}"));
                }
                v.gaps += usize::from(log.is_gap());
                first.insert(at, log);
            }
        }
    }
    let gaps = first.values().filter(|l| l.is_gap()).count();
    if expect.gaps_each.is_some_and(|n| n != gaps) {
        faults.push(format!(
            "{gaps} gap record(s), expected {:?}",
            expect.gaps_each
        ));
    }
    let got: Vec<&Log> = first.values().copied().collect();
    let followed = match expect.rotated {
        Some(rotated) => &without_the_missing(truth, &got, rotated),
        None => truth,
    };
    v.at_rotations += truth.lines.len() - followed.lines.len();
    let (found, told) = compare(followed, &got, &mut faults);
    v.recorded += found;
    v.told += told;
    let more = faults.len().saturating_sub(SHOWN);
    v.faults.extend(
        faults
            .into_iter()
            .take(SHOWN)
            .map(|f| format!("{pod}: {f}")),
    );
    if more > 0 {
        v.faults.push(format!("{pod}: … and {more} more"));
    }
}

/// What was printed, but for those of these lines that were not recorded.
fn without_the_missing(truth: &Truth, got: &[&Log], these: &BTreeSet<String>) -> Truth {
    let got: HashSet<&str> = got.iter().map(|l| l.message.as_str()).collect();
    let mut followed = truth.clone();
    followed
        .lines
        .retain(|l| got.contains(&*l.text) || !these.contains(&l.text));
    followed
}

/// Line by line; returns how many printed lines were recorded, and how many are missing
/// where a gap record says so. The kubelet may interleave the two streams of a container
/// as it likes, so each is compared on its own by its texts.
fn compare(truth: &Truth, got: &[&Log], faults: &mut Vec<String>) -> (usize, usize) {
    let both = truth.lines.iter().any(|l| l.stream == "stderr")
        && truth.lines.iter().any(|l| l.stream == "stdout");
    if !both {
        let printed: Vec<&str> = truth.lines.iter().map(|l| l.text.as_str()).collect();
        return compare_stream(&printed, got, faults);
    }
    let mut sum = (0, 0);
    for stream in ["stdout", "stderr"] {
        let of = truth.lines.iter().filter(|l| l.stream == stream);
        let printed: Vec<&str> = of.map(|l| l.text.as_str()).collect();
        let known: HashSet<&str> = printed.iter().copied().collect();
        let is_of = |l: &&&Log| {
            let text = l.message.as_str();
            l.is_gap()
                || known.contains(text)
                || (stream == "stdout" && !printed_anywhere(truth, text))
        };
        let got: Vec<&Log> = got.iter().filter(is_of).copied().collect();
        let (found, told) = compare_stream(&printed, &got, faults);
        sum = (sum.0 + found, sum.1 + told);
    }
    sum
}

fn compare_stream(printed: &[&str], got: &[&Log], faults: &mut Vec<String>) -> (usize, usize) {
    let (mut found, mut told) = (0, 0);
    let mut p = printed.iter().peekable();
    let mut is_told = false;
    for log in got {
        if log.is_gap() {
            is_told = true;
            continue;
        }
        let text = log.message.as_str();
        if p.peek() == Some(&&text) {
            p.next();
            found += 1;
        } else if printed.contains(&text) {
            // Skip the lost ones up to it.
            let mut lost = 0;
            while p.peek().is_some_and(|next| **next != text) {
                p.next();
                lost += 1;
            }
            if p.next().is_none() {
                faults.push(format!("out of order: {:?}", clip(text)));
                return (found, told);
            }
            found += 1;
            if is_told {
                told += lost;
            } else {
                faults.push(format!("{lost} line(s) lost before {:?}", clip(text)));
            }
        } else {
            faults.push(format!("recorded but not printed by it: {:?}", clip(text)));
        }
        is_told = false;
    }
    let rest = p.count();
    if is_told {
        told += rest;
    } else if rest > 0 {
        faults.push(format!("{rest} line(s) lost at the end"));
    }
    (found, told)
}

fn printed_anywhere(truth: &Truth, text: &str) -> bool {
    truth.lines.iter().any(|l| l.text == text)
}

fn clip(text: &str) -> String {
    text.chars().take(60).collect()
}

fn check_notifications(truth: &Truth, notes: &[&Notify], v: &mut Verdict) {
    v.notifications += notes.len();
    let mut order: Vec<&str> = Vec::new();
    for n in notes.iter().filter(|n| n.answer != "error") {
        if n.metadata.get("event-id").is_none_or(String::is_empty) {
            v.faults
                .push(format!("{}: {} without an event id", truth.pod, n.status));
        }
        if !order.contains(&n.status.as_str()) {
            order.push(&n.status);
        }
    }
    let end = match truth.exit {
        Some(0) => "COMPLETED",
        Some(_) => "FAILED",
        None => return,
    };
    if order != ["CREATED", "RUNNING", end] {
        v.faults.push(format!(
            "{}: notified {order:?}, expected CREATED, RUNNING, {end}",
            truth.pod
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truth::Line;

    fn truth(n: usize) -> Truth {
        let lines = (1..=n)
            .map(|i| Line {
                stream: "stdout".into(),
                text: format!("p {i}"),
            })
            .collect();
        Truth {
            pod: "p".into(),
            lines,
            exit: Some(0),
        }
    }

    fn log(stream: u64, sequence: u64, message: &str) -> Record {
        let metadata = [("sequence", sequence.to_string()), ("pod-uid", "u".into())];
        Record::Log(Log {
            stream,
            worker: "p".into(),
            message: message.into(),
            answer: "ack".into(),
            metadata: metadata.map(|(k, v)| (k.to_owned(), v)).into(),
            ..Log::default()
        })
    }

    fn good(n: u64) -> Vec<Record> {
        let notes = ["CREATED", "RUNNING", "COMPLETED"].map(|s| {
            Record::Notify(Notify {
                worker: "p".into(),
                status: s.into(),
                answer: "received".into(),
                metadata: [("event-id".to_owned(), s.to_owned())].into(),
                ..Notify::default()
            })
        });
        (1..=n)
            .map(|i| log(1, i, &format!("p {i}")))
            .chain(notes)
            .collect()
    }

    fn faults(records: &[Record]) -> Vec<String> {
        check(
            &[truth(4)],
            records,
            Expect {
                workers: 1,
                ..Expect::default()
            },
        )
        .faults
    }

    #[test]
    fn a_true_record_agrees() {
        assert_eq!(faults(&good(4)), Vec::<String>::new());
    }

    #[test]
    fn a_repeat_with_the_same_sequence_agrees_and_is_counted() {
        let mut r = good(4);
        r.insert(4, log(2, 4, "p 4"));
        let v = check(&[truth(4)], &r, Expect::default());
        assert_eq!((v.faults.len(), v.repeats, v.recorded), (0, 1, 4));
    }

    #[test]
    fn a_repeat_after_a_release_is_told_from_one_after_a_death() {
        let by = |holder: &str, mut record: Record| {
            if let Record::Log(log) = &mut record {
                let term = format!("uid/1/{holder}");
                log.metadata.insert("leader-term".into(), term);
            }
            record
        };
        let mut r: Vec<Record> = good(4).into_iter().map(|r| by("a", r)).collect();
        r.insert(4, by("a", log(2, 4, "p 4")));
        r.insert(5, by("b", log(3, 4, "p 4")));
        let judge = |released: &[&str], r: &[Record]| {
            let released = released.iter().map(|h| (*h).to_owned()).collect();
            let expect = Expect {
                released: Some(&released),
                ..Expect::default()
            };
            let v = check(&[truth(4)], r, expect);
            let after = (v.repeats_after_release, v.repeats_after_kill);
            (v.repeats, v.released, after)
        };
        assert_eq!(judge(&["a", "c"], &r), (2, 1, (1, 0)));
        assert_eq!(judge(&["b"], &r), (2, 1, (0, 1)));
        // The last to send it counts.
        r.insert(6, by("c", log(4, 4, "p 4")));
        assert_eq!(judge(&["b"], &r), (3, 1, (1, 1)));
    }

    #[test]
    fn a_repeat_counts_for_the_leader_whose_end_caused_it() {
        let by = |holder: &str, sequence: u64, stream: u64| {
            let mut record = log(stream, sequence, &format!("p {sequence}"));
            if let Record::Log(log) = &mut record {
                let term = format!("uid/1/{holder}");
                log.metadata.insert("leader-term".into(), term);
            }
            record
        };
        // `b` is killed before it comes to the lines of `a` that are not stored.
        let (of_a, of_b) = ((1..=3).map(|n| by("a", n, 1)), [by("b", 4, 2)]);
        let again = (1..=4).map(|n| by("c", n, 3));
        let r: Vec<Record> = of_a.chain(of_b).chain(again).collect();
        let judge = |killed: Option<&[&str]>| {
            let killed = killed.map(|all| all.iter().map(|h| (*h).to_owned()).collect());
            let expect = Expect {
                killed: killed.as_ref(),
                ..Expect::default()
            };
            let v = check(&[truth(4)], &r, expect);
            (v.killed, v.repeats_after_kill, v.repeats_after_loss)
        };
        assert_eq!(judge(None), (3, 3, 0));
        assert_eq!(judge(Some(&["a", "b"])), (2, 3, 0));
        // A term that ended for another reason is told from those.
        assert_eq!(judge(Some(&["b"])), (1, 1, 3));
    }

    #[test]
    fn each_break_is_a_fault() {
        type Break = fn(&mut Vec<Record>);
        let broken: [(&str, Break); 8] = [
            ("lost in the middle", |r| drop(r.remove(1))),
            ("lost at the end", |r| drop(r.remove(3))),
            ("swapped", |r| r.swap(1, 2)),
            ("another sequence", |r| r.insert(4, log(1, 5, "p 4"))),
            ("another text", |r| r.insert(4, log(2, 4, "p x"))),
            ("somebody else's line", |r| r.insert(4, log(1, 5, "q 1"))),
            ("a notification missing", |r| drop(r.remove(5))),
            ("no sequence", |r| r.insert(0, log(1, 0, "p 1"))),
        ];
        for (what, break_it) in broken {
            let mut r = good(4);
            break_it(&mut r);
            assert!(!faults(&r).is_empty(), "{what} was not seen");
        }
    }

    #[test]
    fn only_the_last_line_of_a_rotated_file_may_be_missing() {
        let rotated = ["p 2", "p 3"].map(str::to_owned).into();
        let without = |missing: usize| {
            let mut r = good(4);
            r.remove(missing - 1);
            for (record, n) in r.iter_mut().zip(1..4) {
                if let Record::Log(log) = record {
                    log.metadata.insert("sequence".into(), n.to_string());
                }
            }
            let expect = Expect {
                rotated: Some(&rotated),
                ..Expect::default()
            };
            let v = check(&[truth(4)], &r, expect);
            (v.faults.len(), v.recorded, v.at_rotations)
        };
        assert_eq!(without(2), (0, 3, 1));
        assert_eq!(without(4), (1, 3, 0));
        assert_eq!(without(1), (1, 3, 0));
    }

    #[test]
    fn seeing_nothing_is_a_fault() {
        assert!(!check(&[], &good(4), Expect::default()).faults.is_empty());
        assert!(!check(&[truth(0)], &[], Expect::default()).faults.is_empty());
    }

    #[test]
    fn a_gap_record_is_a_fault_unless_allowed() {
        let mut r = good(4);
        let Record::Log(mut gap) = log(1, 5, "") else {
            return;
        };
        gap.metadata.insert("kind".into(), "gap".into());
        r.push(Record::Log(gap));
        assert!(!faults(&r).is_empty());
        assert!(
            check(
                &[truth(4)],
                &r,
                Expect {
                    allow_gaps: true,
                    ..Expect::default()
                }
            )
            .faults
            .is_empty()
        );
    }
    #[test]
    fn lines_missing_at_a_gap_are_told_and_each_gap_counts() {
        let in_epoch = |epoch: u64, sequence, message: &str, is_gap: bool| {
            let mut record = log(2, sequence, message);
            if let Record::Log(log) = &mut record {
                log.metadata.insert("epoch".into(), epoch.to_string());
                if is_gap {
                    log.metadata.insert("kind".into(), "gap".into());
                }
            }
            record
        };
        // Four of eight came; the last of these was not acknowledged to its sender.
        let mut r = good(4);
        r.push(in_epoch(7, 4, "missing", true));
        r.push(in_epoch(7, 5, "p 7", false));
        r.push(in_epoch(7, 6, "p 8", false));
        let judge = |gaps| {
            let expect = Expect {
                allow_gaps: true,
                gaps_each: Some(gaps),
                ..Expect::default()
            };
            check(&[truth(8)], &r, expect)
        };
        let v = judge(1);
        assert_eq!((v.faults, v.recorded, v.told, v.gaps), (vec![], 6, 2, 1));
        assert!(!judge(2).faults.is_empty());
    }
}
