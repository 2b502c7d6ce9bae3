//! A worker's record as a row of text: `1 Running attempt=1 uid=… node=0 since=… times=0,0,1`.
//!
//! The API server looks at each field of an object, on each write and for each watch: a
//! thousand workers in fields of their own took it 200 ms of a processor for a write, as
//! text 30.
use std::{
    borrow::Cow,
    fmt::{self, Display},
    str::FromStr,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    MAX_ATTEMPT, MAX_TASK_WORKERS, Notified, NotifiedState, PastAttempt, WorkerPhase, WorkerRecord,
    table::{Reason, Table},
};

/// otto-handler took the end of this very attempt.
const ALL: &str = "all";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) index: u32,
    phase: WorkerPhase,
    attempt: u32,
    uid: Option<String>,
    why: Option<u32>,
    exit: Option<i32>,
    node: Option<u32>,
    ip: Option<String>,
    since: Option<i64>,
    times: Option<Times>,
    stopping: Option<bool>,
    told: Option<String>,
    after: Option<i64>,
    failures: Option<u32>,
    tries: Option<u32>,
    /// Which attempt's logs were cut, if not this one's; [`super::stored::Stored`] tells
    /// whose.
    cut: Option<u32>,
    past: Option<Attempts>,
}

/// How many times a row has at most: a worker has so many transitions that are dated.
const TIMES: usize = 7;

/// Attempts before, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempts(Vec<PastAttempt>);

/// Seconds after `since`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Times(Vec<Option<i64>>);

impl Row {
    pub(super) fn is_unknown(&self) -> bool {
        self.phase == WorkerPhase::Unknown
    }

    pub(super) fn new(
        mut w: WorkerRecord,
        reasons: &mut Table<Reason>,
        nodes: &mut Table<String>,
    ) -> Self {
        let times = times(&mut w).map(|at| *at);
        let since = times.iter().flatten().min().copied();
        let times = since.map(|since| {
            let mut after: Vec<_> = times
                .iter()
                .map(|at| at.map(|at| at.saturating_sub(since)))
                .collect();
            while after.pop_if(|last| last.is_none()).is_some() {}
            Times(after)
        });
        let why = !w.reason.is_empty() || !w.message.is_empty();
        Self {
            told: w.notified.map(|told| told_as(told, w.attempt, w.phase)),
            why: why.then(|| {
                reasons.number(Reason {
                    reason: w.reason,
                    message: w.message,
                    ..Reason::default()
                })
            }),
            node: (!w.node.is_empty()).then(|| nodes.number(w.node)),
            since,
            times,
            index: w.index,
            attempt: w.attempt,
            phase: w.phase,
            uid: w.uid,
            exit: w.exit_code,
            ip: Some(w.ip).filter(|ip| !ip.is_empty()),
            stopping: w.stopping.then_some(true),
            after: w.not_before,
            failures: (w.failures > 0).then_some(w.failures),
            tries: (w.tries > 0).then_some(w.tries),
            cut: w.cut.filter(|cut| *cut != w.attempt),
            past: (!w.past.is_empty()).then_some(Attempts(w.past)),
        }
    }

    pub(super) fn record(self, reasons: &[Reason], nodes: &[String]) -> WorkerRecord {
        let why = self.why.and_then(|n| reasons.get(n as usize));
        let why = why.cloned().unwrap_or_default();
        let node = self.node.and_then(|n| nodes.get(n as usize));
        let after = self.times.map_or(Vec::new(), |times| times.0);
        let time = |n: usize| Some(self.since?.saturating_add((*after.get(n)?)?));
        let told = self.told.as_deref();
        let mut record = WorkerRecord {
            notified: told.and_then(|told| told_from(told, self.attempt, self.phase)),
            index: self.index,
            attempt: self.attempt,
            phase: self.phase,
            uid: self.uid,
            reason: why.reason,
            message: why.message,
            exit_code: self.exit,
            node: node.cloned().unwrap_or_default(),
            ip: self.ip.unwrap_or_default(),
            stopping: self.stopping.unwrap_or(false),
            not_before: self.after,
            failures: self.failures.unwrap_or(0),
            tries: self.tries.unwrap_or(0),
            cut: self.cut,
            past: self.past.map_or(Vec::new(), |past| past.0),
            ..WorkerRecord::default()
        };
        for (n, at) in times(&mut record).into_iter().enumerate() {
            *at = time(n);
        }
        record
    }
}

/// In the order in which they are stored.
fn times(w: &mut WorkerRecord) -> [&mut Option<i64>; TIMES] {
    [
        &mut w.queued,
        &mut w.created,
        &mut w.scheduled,
        &mut w.prepared,
        &mut w.started,
        &mut w.first_line,
        &mut w.finished,
    ]
}

impl Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?} attempt={}",
            self.index, self.phase, self.attempt
        )?;
        put(f, "uid", self.uid.as_ref())?;
        put(f, "why", self.why)?;
        put(f, "exit", self.exit)?;
        put(f, "node", self.node)?;
        put(f, "ip", self.ip.as_ref())?;
        put(f, "since", self.since)?;
        put(f, "times", self.times.as_ref())?;
        put(f, "stopping", self.stopping)?;
        put(f, "told", self.told.as_ref())?;
        put(f, "after", self.after)?;
        put(f, "failures", self.failures)?;
        put(f, "tries", self.tries)?;
        put(f, "cut", self.cut)?;
        put(f, "past", self.past.as_ref())
    }
}

fn put<T: Display>(f: &mut fmt::Formatter<'_>, key: &str, value: Option<T>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {key}={value}"))
}

/// A row, and the words of it that are not understood and change nothing. None: it is no
/// row of a worker that this version can have.
///
/// A row is [`WorkerPhase::Unknown`] where it has a phase, or a value that decides what
/// becomes of its worker, that this version does not know: a newer one wrote it.
pub(super) fn parse(text: &str) -> Option<(Row, String)> {
    let mut words = text.split(' ');
    let index = words.next().and_then(value)?;
    if !(1..=MAX_TASK_WORKERS).contains(&index) {
        return None;
    }
    let phase = words.next().and_then(|text| named(WorkerPhase::ALL, text));
    let mut row = Row {
        index,
        phase: phase.unwrap_or(WorkerPhase::Unknown),
        attempt: 1,
        ..Row::default()
    };
    let (mut is_known, mut rest) = (true, Vec::new());
    for word in words {
        let Some((key, text)) = word.split_once('=') else {
            rest.push(word);
            continue;
        };
        let mut decides = |is_understood: bool| is_known &= is_understood;
        match key {
            "attempt" => match value(text).filter(|n| (1..=MAX_ATTEMPT).contains(n)) {
                Some(attempt) => row.attempt = attempt,
                None => decides(false),
            },
            "uid" => row.uid = value(text),
            "exit" => decides(take(&mut row.exit, text)),
            "since" => decides(take(&mut row.since, text)),
            "stopping" => decides(take(&mut row.stopping, text)),
            "after" => decides(take(&mut row.after, text)),
            "failures" => decides(take(&mut row.failures, text)),
            "tries" => decides(take(&mut row.tries, text)),
            "cut" => decides(take(&mut row.cut, text)),
            // Told again at worst.
            "past" => row.past = value(text),
            "times" => {
                row.times = value(text);
                decides(row.times.as_ref().is_some_and(Times::is_understood));
            }
            "told" => {
                row.told = value(text);
                decides(told_from(text, row.attempt, row.phase).is_some() || text == ALL);
            }
            // For people: the worker goes on without them.
            "why" if take(&mut row.why, text) => {}
            "node" if take(&mut row.node, text) => {}
            "ip" => row.ip = value(text),
            _ => rest.push(word),
        }
    }
    if !is_known {
        row.phase = WorkerPhase::Unknown;
    }
    Some((row, rest.join(" ")))
}

/// A row with more words, save those whose key the row has by now.
pub(super) fn with(row: String, words: &str) -> String {
    let is_more = |word: &&str| {
        let key = word.split_once('=').map(|(key, _)| format!(" {key}="));
        key.is_none_or(|key| !row.contains(&key))
    };
    let words = words.split(' ').filter(is_more);
    std::iter::once(row.as_str())
        .chain(words)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether the text is a value of that kind.
fn take<T: FromStr>(into: &mut Option<T>, text: &str) -> bool {
    *into = value(text);
    into.is_some()
}

fn value<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn named<T: fmt::Debug, const N: usize>(all: [T; N], text: &str) -> Option<T> {
    all.into_iter().find(|one| format!("{one:?}") == text)
}

impl Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, after) in self.0.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            match after {
                Some(after) => write!(f, "{comma}{after}")?,
                None => write!(f, "{comma}")?,
            }
        }
        Ok(())
    }
}

impl Times {
    /// A newer version may have more of them.
    fn is_understood(&self) -> bool {
        self.0.len() <= TIMES
    }
}

impl FromStr for Times {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = |text: &str| match text {
            "" => Ok(None),
            text => text.parse().map(Some),
        };
        text.split(',')
            .map(time)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, past) in self.0.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            write!(f, "{comma}{past}")?;
        }
        Ok(())
    }
}

impl FromStr for Attempts {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.split(',').filter_map(value).collect()))
    }
}

fn told_as(told: Notified, attempt: u32, phase: WorkerPhase) -> String {
    if told.attempt == attempt && phase.end() == Some(told.state) {
        return ALL.to_owned();
    }
    format!("{}/{:?}", told.attempt, told.state)
}

fn told_from(text: &str, attempt: u32, phase: WorkerPhase) -> Option<Notified> {
    if text == ALL {
        let state = phase.end()?;
        return Some(Notified { attempt, state });
    }
    let (attempt, state) = text.split_once('/')?;
    Some(Notified {
        attempt: value(attempt)?,
        state: named(NotifiedState::ALL, state)?,
    })
}

impl JsonSchema for Row {
    fn schema_name() -> Cow<'static, str> {
        "Worker".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Index and phase; attempt; uid of its pod; why: its reason, in reasons; exit: \
                the code of its container; node, in nodes; ip; since: Unix seconds of the first of \
                queued, created, scheduled, prepared, started, first line, finished; times: each of \
                them in seconds after that; stopping: ScaleDown took it; told: what otto-handler took \
                last, attempt and state, or all; after: no pod before then; failures counted so far; tries that never started \
                since; cut: the attempt whose logs were; past: attempts before, of which otto-handler \
                has not heard all.",
            "maxLength": 1024,
            // The form only: a newer version may have more phases and keys.
            "pattern": "^[0-9]{1,9} [A-Z][A-Za-z]{0,31}( [^ ]+)*$",
        })
    }
}
