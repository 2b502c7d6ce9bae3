//! A task's status as etcd holds it: compact, for 1,000 workers are one object.
//!
//! What holds: what [`fit`] has passed comes back as it was, so a plan that stores
//! nothing new finds nothing new. Reasons, messages and nodes, which many workers
//! share, are kept once; times are seconds after the first of them.
use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{
    Condition, Counts, Notified, NotifiedState, TaskPhase, TaskStatus, WorkerPhase, WorkerRecord,
};

/// Messages that differ within one task; a worker beyond keeps its reason only.
const MAX_MESSAGES: usize = 64;
/// The same of reasons: beyond it they are told as [`OTHER`].
const MAX_REASONS: usize = 64;
const OTHER: &str = "Other";
/// otto-handler took the end of this very attempt.
const ALL: &str = "all";

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored {
    /// Term of the leader that wrote this.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    term: String,
    #[serde(default)]
    phase: TaskPhase,
    #[serde(default)]
    counts: Counts,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<Condition>,
    /// One per worker that was ever wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    workers: Vec<Worker>,
    /// What `workers[].why` counts in, from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<Reason>,
    /// What `workers[].node` counts in, from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<String>,
    /// Workers of which a pod went before otto-handler had all of its logs, by index:
    /// `1-3,7`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    cut: String,
    /// When the last worker was final (Unix seconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished_at: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
struct Reason {
    reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    message: String,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Worker {
    index: u32,
    attempt: u32,
    phase: WorkerPhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    ip: String,
    /// Unix seconds of the first of: queued, created, scheduled, prepared, started,
    /// first line, finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<i64>,
    /// Each of them in seconds after `since`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    times: Vec<Option<i64>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stopping: bool,
    /// What otto-handler took last: `<attempt>/<state>`, or `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failures: Option<u32>,
}

/// Leaves out what would not be kept.
pub(in crate::domain) fn fit(workers: &mut [WorkerRecord]) {
    let (mut messages, mut reasons) = (HashSet::new(), HashSet::new());
    let (mut untold, mut other) = (Vec::new(), Vec::new());
    for (n, worker) in workers.iter().enumerate() {
        let (reason, message) = (worker.reason.as_str(), worker.message.as_str());
        if !message.is_empty() {
            if keeps(&mut messages, MAX_MESSAGES, (reason, message)) {
                continue;
            }
            untold.push(n);
        }
        if !reason.is_empty() && !keeps(&mut reasons, MAX_REASONS, reason) {
            other.push(n);
        }
    }
    for n in untold {
        workers[n].message.clear();
    }
    for n in other {
        OTHER.clone_into(&mut workers[n].reason);
    }
}

/// Whether there is room for it beside those seen before.
fn keeps<T: Eq + std::hash::Hash>(seen: &mut HashSet<T>, most: usize, value: T) -> bool {
    seen.contains(&value) || (seen.len() < most && seen.insert(value))
}

/// Gives each different value a number.
#[derive(Debug)]
struct Table<T> {
    values: Vec<T>,
    numbers: HashMap<T, u32>,
}

impl<T: Clone + Eq + std::hash::Hash> Table<T> {
    fn new() -> Self {
        Self {
            values: Vec::new(),
            numbers: HashMap::new(),
        }
    }

    fn number(&mut self, value: T) -> u32 {
        let next = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(value).or_insert_with_key(|value| {
            self.values.push(value.clone());
            next
        })
    }
}

impl From<TaskStatus> for Stored {
    fn from(status: TaskStatus) -> Self {
        let (mut reasons, mut nodes) = (Table::new(), Table::new());
        let cut = status.workers.iter().filter(|w| w.cut).map(|w| w.index);
        let cut = ranges(cut);
        let workers = status.workers.into_iter();
        let workers = workers.map(|w| Worker::new(w, &mut reasons, &mut nodes));
        Self {
            term: status.term,
            phase: status.phase,
            counts: status.counts,
            conditions: status.conditions,
            workers: workers.collect(),
            reasons: reasons.values,
            nodes: nodes.values,
            cut,
            finished_at: status.finished_at,
        }
    }
}

impl From<Stored> for TaskStatus {
    fn from(stored: Stored) -> Self {
        let (reasons, nodes) = (stored.reasons, stored.nodes);
        let workers = stored.workers.into_iter();
        let mut workers: Vec<_> = workers.map(|w| w.record(&reasons, &nodes)).collect();
        // As they are written; a person may have changed it.
        workers.sort_by_key(|w| w.index);
        for (first, last) in stored.cut.split(',').filter_map(range) {
            let from = workers.partition_point(|w| w.index < first);
            let all = workers[from..].iter_mut().take_while(|w| w.index <= last);
            all.for_each(|w| w.cut = true);
        }
        Self {
            term: stored.term,
            phase: stored.phase,
            counts: stored.counts,
            conditions: stored.conditions,
            workers,
            finished_at: stored.finished_at,
        }
    }
}

impl Worker {
    fn new(w: WorkerRecord, reasons: &mut Table<Reason>, nodes: &mut Table<String>) -> Self {
        let times = [
            w.queued,
            w.created,
            w.scheduled,
            w.prepared,
            w.started,
            w.first_line,
            w.finished,
        ];
        let since = times.iter().flatten().min().copied();
        let mut times: Vec<Option<i64>> = times
            .iter()
            .map(|at| at.zip(since).map(|(at, since)| at - since))
            .collect();
        while times.pop_if(|last| last.is_none()).is_some() {}
        let why = !w.reason.is_empty() || !w.message.is_empty();
        Self {
            told: w.notified.map(|told| told_as(told, w.attempt, w.phase)),
            why: why.then(|| {
                reasons.number(Reason {
                    reason: w.reason,
                    message: w.message,
                })
            }),
            node: (!w.node.is_empty()).then(|| nodes.number(w.node)),
            since,
            times,
            index: w.index,
            attempt: w.attempt,
            phase: w.phase,
            uid: w.uid,
            exit_code: w.exit_code,
            ip: w.ip,
            stopping: w.stopping,
            not_before: w.not_before,
            failures: (w.failures > 0).then_some(w.failures),
        }
    }

    fn record(self, reasons: &[Reason], nodes: &[String]) -> WorkerRecord {
        let why = self.why.and_then(|n| reasons.get(n as usize));
        let why = why.cloned().unwrap_or_default();
        let node = self.node.and_then(|n| nodes.get(n as usize));
        let time = |n: usize| self.times.get(n).copied().flatten().zip(self.since);
        let time = |n: usize| time(n).map(|(after, since)| since + after);
        let [
            queued,
            created,
            scheduled,
            prepared,
            started,
            first_line,
            finished,
        ] = std::array::from_fn(time);
        let told = self.told.as_deref();
        WorkerRecord {
            notified: told.and_then(|told| told_from(told, self.attempt, self.phase)),
            index: self.index,
            attempt: self.attempt,
            phase: self.phase,
            uid: self.uid,
            reason: why.reason,
            message: why.message,
            exit_code: self.exit_code,
            node: node.cloned().unwrap_or_default(),
            ip: self.ip,
            queued,
            created,
            scheduled,
            prepared,
            started,
            first_line,
            finished,
            stopping: self.stopping,
            not_before: self.not_before,
            failures: self.failures.unwrap_or(0),
            cut: false,
        }
    }
}

/// `1-3,7` of 1, 2, 3, 7.
fn ranges(sorted: impl Iterator<Item = u32>) -> String {
    let mut all: Vec<(u32, u32)> = Vec::new();
    for index in sorted {
        match all.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => all.push((index, index)),
        }
    }
    let text = |(first, last): (u32, u32)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    all.into_iter().map(text).collect::<Vec<_>>().join(",")
}

fn range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
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
    let state = NotifiedState::ALL
        .into_iter()
        .find(|s| format!("{s:?}") == state)?;
    Some(Notified {
        attempt: attempt.parse().ok()?,
        state,
    })
}

impl JsonSchema for TaskStatus {
    fn schema_name() -> Cow<'static, str> {
        "TaskStatus".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Stored::json_schema(generator)
    }
}

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
