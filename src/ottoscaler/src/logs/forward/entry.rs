//! Lines and gaps as entries of the wire contract (no client required).
use std::{collections::HashMap, sync::Arc};

use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut, Bytes},
    encoding::{DecodeContext, WireType},
};
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use crate::{
    cluster::ATTEMPT,
    domain::{names, pod::Pod},
    election::Term,
    logs::read::{gap::Gap, line::Line, position::Anchor},
    proto::{WorkerLogEntry, WorkerMetadata},
};

/// The memory of an entry in addition to its text, in bytes: its fields, its place in the window
/// and what the allocator rounds up.
const OVERHEAD: i64 = 192;

/// An entry that is not acknowledged. It is encoded each time that it is sent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    what: What,
    /// The checkpoint once this entry is acknowledged.
    pub(super) then: Checkpoint,
}

#[derive(Debug, Serialize, Deserialize)]
enum What {
    Line(Line),
    /// A gap, and when it was found.
    Gap(Gap, jiff::Timestamp),
}

impl Entry {
    /// Returns the entry of the line after `read`, and moves `read` past it.
    pub(super) fn line(read: &mut Checkpoint, line: Line, anchor: Anchor) -> Self {
        read.pass(anchor);
        Self {
            what: What::Line(line),
            then: read.clone(),
        }
    }

    /// Returns the entry of a gap, which begins that epoch, and moves `read` past it.
    pub(super) fn gap(read: &mut Checkpoint, gap: Gap, epoch: u32) -> Self {
        read.pass_gap(gap.place.clone(), epoch);
        Self {
            what: What::Gap(gap, jiff::Timestamp::now()),
            then: read.clone(),
        }
    }

    pub(super) fn sequence(&self) -> u64 {
        self.then.next - 1
    }

    /// Returns the memory that it takes, approximately.
    pub(super) fn bytes(&self) -> i64 {
        let text = match &self.what {
            What::Line(line) => line.text.len(),
            What::Gap(..) => 0,
        };
        i64::try_from(text).unwrap_or(i64::MAX / 2) + OVERHEAD
    }

    /// Returns when its line was printed, by the node's clock.
    pub(super) fn printed(&self) -> Option<jiff::Timestamp> {
        match &self.what {
            What::Line(line) => line.time(),
            What::Gap(..) => None,
        }
    }
}

/// Returns the labels of a worker's pod for otto-handler.
fn labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels =
        names::worker_labels(&pod.task_id, &pod.repository, &pod.commit_sha, pod.index);
    labels.insert(ATTEMPT.to_owned(), pod.attempt.to_string());
    labels.into_iter().collect()
}

/// A `WorkerLogEntry` in two parts: what a worker's entries have in common, encoded once, and
/// what differs. Protobuf decodes the concatenation as one message.
#[derive(Debug, Clone, Default)]
pub(super) struct Outgoing {
    common: Bytes,
    own: Own,
}

/// The fields of `WorkerLogEntry` that differ, with its field numbers.
#[derive(Clone, PartialEq, prost::Message)]
struct Own {
    #[prost(string, tag = "3")]
    timestamp: String,
    #[prost(string, tag = "4")]
    level: String,
    #[prost(string, tag = "5")]
    source: String,
    #[prost(string, tag = "6")]
    message: String,
    /// The entries of the map `metadata`.
    #[prost(message, repeated, tag = "8")]
    metadata: Vec<Pair>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

impl Message for Outgoing {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.common);
        self.own.encode_raw(buf);
    }

    fn encoded_len(&self) -> usize {
        self.common.len() + self.own.encoded_len()
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.own.merge_field(tag, wire, buf, context)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Encodes the entries of one worker.
#[derive(Debug)]
pub(super) struct Maker {
    pod: Arc<Pod>,
    namespace: String,
    term: String,
    /// The common part, and the instance of the container and the epoch that it is for.
    common: Option<(i32, u32, Bytes)>,
}

impl Maker {
    pub(super) fn new(pod: Arc<Pod>, namespace: &str, term: &Term) -> Self {
        Self {
            pod,
            namespace: namespace.to_owned(),
            term: term.to_string(),
            common: None,
        }
    }

    pub(super) fn message(&mut self, entry: &Entry) -> Outgoing {
        let mut own = Own {
            metadata: vec![pair("sequence", entry.sequence().to_string())],
            ..Own::default()
        };
        match &entry.what {
            What::Line(line) => {
                let (message, original) = line.message();
                let cut_from = line.cut_from.map(|n| n.to_string());
                let more = [("original-base64", original), ("cut-from-bytes", cut_from)];
                own.metadata.extend(known(more));
                own.message = message;
                line.level().clone_into(&mut own.level);
                "stdout".clone_into(&mut own.source);
                own.timestamp.clone_from(&line.timestamp);
            }
            What::Gap(gap, found) => {
                own.metadata.extend(known([
                    ("kind", Some("gap".to_owned())),
                    ("reason", Some(gap.reason.as_str().to_owned())),
                    ("missing", Some("unknown".to_owned())),
                    ("from", gap.from.map(|t| t.to_string())),
                    ("to", gap.to.map(|t| t.to_string())),
                ]));
                own.message = gap.to_string();
                "WARN".clone_into(&mut own.level);
                "stderr".clone_into(&mut own.source);
                own.timestamp = found.to_string();
            }
        }
        Outgoing {
            common: self.common(entry),
            own,
        }
    }

    fn common(&mut self, entry: &Entry) -> Bytes {
        let (restart, epoch) = (entry.then.restart, entry.then.epoch);
        match &self.common {
            Some((r, e, common)) if (*r, *e) == (restart, epoch) => common.clone(),
            _ => {
                let common = Bytes::from(self.in_common(restart, epoch).encode_to_vec());
                self.common = Some((restart, epoch, common.clone()));
                common
            }
        }
    }

    fn in_common(&self, restart: i32, epoch: u32) -> WorkerLogEntry {
        let pod = &self.pod;
        let created = pod
            .created
            .and_then(|s| jiff::Timestamp::from_second(s).ok());
        WorkerLogEntry {
            worker_id: pod.name.to_string(),
            task_id: pod.task_id.to_string(),
            pod_metadata: Some(WorkerMetadata {
                pod_name: pod.name.to_string(),
                namespace: self.namespace.clone(),
                node_name: pod.node.clone(),
                created_at: created.map(|t| t.to_string()).unwrap_or_default(),
                labels: labels(pod),
            }),
            metadata: HashMap::from([
                ("pod-uid".to_owned(), pod.uid.clone()),
                ("container".to_owned(), pod.container().to_owned()),
                ("restart".to_owned(), restart.to_string()),
                ("epoch".to_owned(), epoch.to_string()),
                ("leader-term".to_owned(), self.term.clone()),
            ]),
            ..WorkerLogEntry::default()
        }
    }
}

fn pair(key: &str, value: String) -> Pair {
    Pair {
        key: key.to_owned(),
        value,
    }
}

fn known<const N: usize>(pairs: [(&'static str, Option<String>); N]) -> impl Iterator<Item = Pair> {
    let all = pairs.into_iter();
    all.filter_map(|(key, value)| Some(pair(key, value?)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;
    use crate::logs::read::gap::Reason;

    #[test]
    fn the_parts_of_a_message_are_one_entry() {
        let pod = Pod {
            name: "otto-agent-t-1".into(),
            uid: "u".into(),
            task_id: "t".into(),
            node: "n".into(),
            created: Some(1_790_000_000),
            ..Pod::default()
        };
        let term: Term = "lease/3/holder".parse().unwrap();
        let mut maker = Maker::new(Arc::new(pod), "ns", &term);
        let mut read = Checkpoint::start(0);
        let line = Line {
            timestamp: "2026-01-02T03:04:05.000000006Z".to_owned(),
            text: b"ERROR \xff".to_vec(),
            ..Line::default()
        };
        let anchor = Anchor::of(&line, None);
        let gap = Gap {
            reason: Reason::Rotated,
            from: None,
            to: None,
            place: None,
        };
        let entries = [
            Entry::line(&mut read, line.clone(), anchor.clone()),
            Entry::gap(&mut read, gap, 3),
            Entry::line(&mut read, line, anchor),
        ];
        let decoded = entries.map(|e| {
            let bytes = maker.message(&e).encode_to_vec();
            WorkerLogEntry::decode(bytes.as_slice()).unwrap()
        });
        let [first, gap, last] = &decoded;
        assert_eq!(first.worker_id, "otto-agent-t-1");
        assert_eq!(first.pod_metadata.as_ref().unwrap().node_name, "n");
        assert_eq!(
            (&*first.level, &*first.source, &*first.message),
            ("ERROR", "stdout", "ERROR \u{fffd}")
        );
        assert_eq!(first.timestamp, "2026-01-02T03:04:05.000000006Z");
        let of = |e: &WorkerLogEntry, key: &str| e.metadata.get(key).cloned().unwrap_or_default();
        assert_eq!(of(first, "original-base64"), "RVJST1Ig/w==");
        assert_eq!((&*of(gap, "kind"), &*gap.level), ("gap", "WARN"));
        let place = |e| (of(e, "epoch"), of(e, "sequence"), of(e, "leader-term"));
        let places = decoded.each_ref().map(place);
        let expected = [("0", "1"), ("3", "2"), ("3", "3")];
        assert_eq!(
            places,
            expected.map(|(e, s)| (e.into(), s.into(), "lease/3/holder".into()))
        );
        assert_eq!(of(last, "pod-uid"), "u");
    }
}
