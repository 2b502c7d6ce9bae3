//! A task's status as etcd holds it: compact, for 1,000 workers are one object.
//!
//! What holds: what [`fit`] has passed comes back as it was, so a plan that stores
//! nothing new finds nothing new. Reasons, messages and nodes, which many workers
//! share, are kept once.
use std::{borrow::Cow, cmp::Reverse, collections::HashSet};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{
    Condition, Counts, Kept, MAX_PAST, TaskPhase, TaskStatus, WorkerPhase, WorkerRecord,
    row::{self, Row},
    schema,
    table::{Reason, Table},
};

/// Messages that differ within one task; a worker beyond keeps its reason only. Workers of a task
/// fail for few different reasons, and so many messages stay within the size of a task.
const MAX_MESSAGES: usize = 64;
/// Reasons that differ within one task: beyond it they are told as [`OTHER`]. Workers of a task end
/// for few different reasons.
const MAX_REASONS: usize = 64;
const OTHER: &str = "Other";
/// Bytes of a reason that are kept. Kubernetes' own are one word, none longer than 40 bytes.
const REASON: usize = 128;

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub(super) struct Stored {
    /// Term of the leader that wrote this.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    term: String,
    #[serde(default)]
    #[schemars(schema_with = "schema::phase")]
    phase: TaskPhase,
    #[serde(default)]
    counts: Counts,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    conditions: Vec<Condition>,
    /// One per worker that was ever wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>", length(max = schema::TABLE))]
    workers: Vec<String>,
    /// What `why=` of a worker counts in, from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = schema::TABLE))]
    reasons: Vec<Reason>,
    /// What `node=` of a worker counts in, from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::nodes")]
    nodes: Vec<String>,
    /// Workers of which a pod went before otto-handler had all of its logs, by index:
    /// `1-3,7`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 16384))]
    cut: String,
    /// When the last worker was final (Unix seconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished_at: Option<i64>,
}

/// Attempts before the newest ones, of all workers of a task; of those beyond it only the newest
/// attempt is told. They fit into the size of a task of 1,000 workers.
const MAX_ALL_PAST: usize = 800;

/// Leaves out what would not be kept.
pub(crate) fn fit(workers: &mut [WorkerRecord]) {
    for worker in workers.iter_mut().filter(|w| w.reason.len() > REASON) {
        let end = worker.reason.floor_char_boundary(REASON);
        worker.reason.truncate(end);
    }
    let mut past = 0;
    for worker in workers.iter_mut() {
        let surplus = worker.past.len().saturating_sub(MAX_PAST);
        worker.past.drain(..surplus);
        worker.past.truncate(MAX_ALL_PAST - past);
        past += worker.past.len();
    }
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

impl From<TaskStatus> for Stored {
    fn from(status: TaskStatus) -> Self {
        let kept = status.kept.map(|kept| *kept).unwrap_or_default();
        let places = kept.places();
        let mut reasons = Table::new(&kept.reasons, &places);
        let mut nodes = Table::new(&kept.nodes, &places);
        let is_cut = |w: &&WorkerRecord| w.cut.is_some();
        let cut = status.workers.iter().filter(is_cut).map(|w| w.index);
        let cut = ranges(cut);
        let workers = status.workers.into_iter();
        let workers = workers.map(|w| {
            let index = w.index;
            match kept.rows.get(&index) {
                Some(row) if w.phase == WorkerPhase::Unknown => row.clone(),
                _ => {
                    let row = Row::new(w, &mut reasons, &mut nodes).to_string();
                    match kept.words.get(&index) {
                        Some(words) => row::with(row, words),
                        None => row,
                    }
                }
            }
        });
        let workers: Vec<String> = workers.collect();
        let workers = workers.into_iter().chain(kept.strays);
        Self {
            term: status.term,
            phase: status.phase,
            counts: status.counts,
            conditions: status.conditions,
            workers: workers.collect(),
            reasons: reasons.into_values(),
            nodes: nodes.into_values(),
            cut,
            finished_at: status.finished_at,
        }
    }
}

impl From<Stored> for TaskStatus {
    fn from(stored: Stored) -> Self {
        let (reasons, nodes) = (stored.reasons, stored.nodes);
        let mut kept = Kept::default();
        let mut workers = Vec::with_capacity(stored.workers.len());
        for text in stored.workers {
            let Some((row, words)) = row::parse(&text) else {
                kept.strays.push(text);
                continue;
            };
            let index = row.index;
            if row.is_unknown() {
                kept.rows.insert(index, text);
            } else if !words.is_empty() {
                kept.words.insert(index, words);
            }
            workers.push(row.record(&reasons, &nodes));
        }
        // As they are written; a person may have changed it.
        workers.sort_by_key(|w| (w.index, Reverse(w.attempt)));
        workers.dedup_by_key(|w| w.index);
        let kept = (!kept.is_empty()).then(|| {
            Box::new(Kept {
                reasons,
                nodes,
                ..kept
            })
        });
        for (first, last) in stored.cut.split(',').filter_map(range) {
            let from = workers.partition_point(|w| w.index < first);
            let all = workers[from..].iter_mut().take_while(|w| w.index <= last);
            // The row names the attempt where it is not the newest.
            all.for_each(|w| w.cut = w.cut.or(Some(w.attempt)));
        }
        Self {
            term: stored.term,
            phase: stored.phase,
            counts: stored.counts,
            conditions: stored.conditions,
            workers,
            finished_at: stored.finished_at,
            kept,
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
