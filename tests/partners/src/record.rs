//! What the recording handler got: JSON lines, in the order of arrival.
use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::tail;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    Log(Log),
    Notify(Notify),
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// When it came (RFC 3339).
    pub at: String,
    /// Streams of this handler, from 1.
    pub stream: u64,
    pub worker: String,
    pub task: String,
    pub timestamp: String,
    pub level: String,
    pub source: String,
    pub message: String,
    pub metadata: BTreeMap<String, String>,
    pub answer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

impl Log {
    pub fn sequence(&self) -> Option<u64> {
        self.metadata.get("sequence")?.parse().ok()
    }

    pub fn epoch(&self) -> u64 {
        let epoch = self.metadata.get("epoch");
        epoch.and_then(|e| e.parse().ok()).unwrap_or(0)
    }

    /// The leader that sent it, as the Lease names it.
    pub fn holder(&self) -> &str {
        let term = self.metadata.get("leader-term");
        let holder = term.and_then(|term| term.splitn(3, '/').nth(2));
        holder.unwrap_or_default()
    }

    pub fn is_gap(&self) -> bool {
        self.metadata.get("kind").is_some_and(|k| k == "gap")
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Notify {
    pub at: String,
    pub worker: String,
    pub task: String,
    pub status: String,
    pub timestamp: String,
    pub reason: String,
    pub metadata: BTreeMap<String, String>,
    pub answer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Reads a record file from a byte on, of its lines those that have `part`; a last line
/// that is still being written is left out.
///
/// # Errors
/// The file cannot be read, or a whole line is no record.
pub fn read(path: &Path, from: u64, part: &str) -> io::Result<Vec<Record>> {
    let text = tail::read_from(path, from)?;
    let ours = |line: &&str| line.contains(part);
    text.lines()
        .filter(ours)
        .map(|line| {
            serde_json::from_str(line).map_err(|e| io::Error::other(format!("{e}: {line}")))
        })
        .collect()
}
