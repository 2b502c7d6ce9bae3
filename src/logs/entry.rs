//! Lines and gaps as entries of the wire contract. No client required.
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    checkpoint::{Anchor, Checkpoint},
    gap::Gap,
    line::Line,
};
use crate::{
    cluster::ATTEMPT,
    domain::{names, pod::Pod, term::Term},
    proto::{WorkerLogEntry, WorkerMetadata},
};

/// What an entry weighs beside its text.
const OVERHEAD: i64 = 192;

/// An entry under way; a message is made of it each time that it is sent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    what: What,
    /// Where the log stands once it is acknowledged.
    pub(super) then: Checkpoint,
}

#[derive(Debug, Serialize, Deserialize)]
enum What {
    Line(Line),
    /// And when it was found.
    Gap(Gap, jiff::Timestamp),
}

impl Entry {
    /// The next line after `read`, which passes it.
    pub(super) fn line(read: &mut Checkpoint, line: Line, anchor: Anchor) -> Self {
        read.pass(anchor);
        Self {
            what: What::Line(line),
            then: read.clone(),
        }
    }

    /// The record of lines that the node no longer has.
    pub(super) fn gap(read: &mut Checkpoint, gap: Gap, term: &Term) -> Self {
        let transitions = u32::try_from(term.transitions).unwrap_or(0);
        read.pass_gap(gap.place.clone(), transitions);
        Self {
            what: What::Gap(gap, jiff::Timestamp::now()),
            then: read.clone(),
        }
    }

    pub(super) fn sequence(&self) -> u64 {
        self.then.next - 1
    }

    /// Of memory, about.
    pub(super) fn bytes(&self) -> i64 {
        let text = match &self.what {
            What::Line(line) => line.text.len(),
            What::Gap(..) => 0,
        };
        i64::try_from(text).unwrap_or(i64::MAX / 2) + OVERHEAD
    }

    /// When its line was printed, as the node has it.
    pub(super) fn printed(&self) -> Option<jiff::Timestamp> {
        match &self.what {
            What::Line(line) => line.time(),
            What::Gap(..) => None,
        }
    }
}

/// What a worker's pod is labelled with, as otto-handler is told.
pub(super) fn labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels =
        names::worker_labels(&pod.task_id, &pod.repository, &pod.commit_sha, pod.index);
    labels.insert(ATTEMPT.to_owned(), pod.attempt.to_string());
    labels.into_iter().collect()
}

/// Makes the messages of one worker.
#[derive(Debug)]
pub(super) struct Maker<'a> {
    pub(super) pod: &'a Pod,
    pub(super) labels: &'a HashMap<String, String>,
    pub(super) namespace: &'a str,
    pub(super) term: &'a Term,
}

impl Maker<'_> {
    pub(super) fn message(&self, entry: &Entry) -> WorkerLogEntry {
        match &entry.what {
            What::Line(line) => {
                let (message, original) = line.message();
                let mut wire = self.wire(entry, message);
                let cut_from = line.cut_from.map(|n| n.to_string());
                let more = [("original-base64", original), ("cut-from-bytes", cut_from)];
                add(&mut wire, more);
                line.level().clone_into(&mut wire.level);
                wire.timestamp.clone_from(&line.timestamp);
                wire
            }
            What::Gap(gap, found) => {
                let mut wire = self.wire(entry, gap.to_string());
                let known = [
                    ("kind", "gap"),
                    ("reason", gap.reason.as_str()),
                    ("missing", "unknown"),
                ];
                add(
                    &mut wire,
                    known.map(|(key, value)| (key, Some(value.to_owned()))),
                );
                let times = [("from", gap.from), ("to", gap.to)];
                add(
                    &mut wire,
                    times.map(|(key, time)| (key, time.map(|t| t.to_string()))),
                );
                wire.timestamp = found.to_string();
                "WARN".clone_into(&mut wire.level);
                "stderr".clone_into(&mut wire.source);
                wire
            }
        }
    }

    fn wire(&self, entry: &Entry, message: String) -> WorkerLogEntry {
        let pod = self.pod;
        let created = pod
            .created
            .and_then(|s| jiff::Timestamp::from_second(s).ok());
        WorkerLogEntry {
            worker_id: pod.name.to_string(),
            task_id: pod.task_id.to_string(),
            timestamp: String::new(),
            level: "INFO".to_owned(),
            source: "stdout".to_owned(),
            message,
            pod_metadata: Some(WorkerMetadata {
                pod_name: pod.name.to_string(),
                namespace: self.namespace.to_owned(),
                node_name: pod.node.clone(),
                created_at: created.map(|t| t.to_string()).unwrap_or_default(),
                labels: self.labels.clone(),
            }),
            metadata: HashMap::from([
                ("sequence".to_owned(), entry.sequence().to_string()),
                ("pod-uid".to_owned(), pod.uid.clone()),
                ("container".to_owned(), pod.container().to_owned()),
                ("restart".to_owned(), entry.then.restart.to_string()),
                ("epoch".to_owned(), entry.then.epoch.to_string()),
                ("leader-term".to_owned(), self.term.to_string()),
            ]),
        }
    }
}

fn add<const N: usize>(wire: &mut WorkerLogEntry, metadata: [(&str, Option<String>); N]) {
    let known = metadata
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    wire.metadata.extend(known);
}
