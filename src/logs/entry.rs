//! Lines and gaps as entries of the wire contract. No client required.
use std::collections::HashMap;

use super::{checkpoint::Tracker, line::Line};
use crate::{
    cluster::ATTEMPT,
    domain::{names, pod::Pod},
    proto::{WorkerLogEntry, WorkerMetadata},
};

/// What an entry weighs beside its text.
const OVERHEAD: usize = 256;

/// An entry under way.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) wire: WorkerLogEntry,
    pub(super) bytes: usize,
    pub(super) sequence: u64,
    /// Second and hash of the line; None for a gap record.
    pub(super) line: Option<(Option<i64>, u64)>,
}

/// What a worker's pod is labelled with, as otto-handler is told.
pub(super) fn labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels =
        names::worker_labels(&pod.task_id, &pod.repository, &pod.commit_sha, pod.index);
    labels.insert(ATTEMPT.to_owned(), pod.attempt.to_string());
    labels.into_iter().collect()
}

/// Makes the entries of one worker.
#[derive(Debug)]
pub(super) struct Maker<'a> {
    pub(super) pod: &'a Pod,
    pub(super) labels: &'a HashMap<String, String>,
    pub(super) namespace: &'a str,
    pub(super) term: &'a str,
}

impl Maker<'_> {
    /// The next line that `read` has not passed.
    pub(super) fn line(&self, read: &Tracker, line: Line) -> Entry {
        let (message, original) = line.message();
        let mut wire = self.wire(read, message);
        wire.metadata
            .extend(original.map(|o| ("original-base64".to_owned(), o)));
        wire.metadata.extend(
            line.cut_from
                .map(|n| ("cut-from-bytes".to_owned(), n.to_string())),
        );
        line.level().clone_into(&mut wire.level);
        let of = (line.second, line.hash());
        wire.timestamp = line.timestamp;
        Entry {
            bytes: wire.message.len() + OVERHEAD,
            wire,
            sequence: read.next(),
            line: Some(of),
        }
    }

    /// The record of lines that the node no longer has.
    pub(super) fn gap(&self, read: &Tracker, reason: &str) -> Entry {
        let mut wire = self.wire(read, format!("log lines are missing here ({reason})"));
        wire.metadata.extend([
            ("kind".to_owned(), "gap".to_owned()),
            ("reason".to_owned(), reason.to_owned()),
            ("missing".to_owned(), "unknown".to_owned()),
        ]);
        wire.timestamp = jiff::Timestamp::now().to_string();
        "WARN".clone_into(&mut wire.level);
        "stderr".clone_into(&mut wire.source);
        Entry {
            wire,
            bytes: OVERHEAD,
            sequence: read.next(),
            line: None,
        }
    }

    fn wire(&self, read: &Tracker, message: String) -> WorkerLogEntry {
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
                ("sequence".to_owned(), read.next().to_string()),
                ("pod-uid".to_owned(), pod.uid.clone()),
                ("container".to_owned(), "worker".to_owned()),
                ("restart".to_owned(), read.restart().to_string()),
                ("epoch".to_owned(), read.epoch().to_string()),
                ("leader-term".to_owned(), self.term.to_owned()),
            ]),
        }
    }
}
