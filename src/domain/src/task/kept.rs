//! Holds what a newer version stored of a task's workers and this one does not understand.
//!
//! Invariants: it is written back as it was read, whatever this version writes beside it;
//! the entries of the tables of reasons and nodes that it may refer to keep their places.
use std::collections::{BTreeMap, BTreeSet};

/// A `Kept` holds the rows of a newer version, and the unknown words of rows that are
/// understood otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// The whole rows, by the index of their worker.
    pub(super) rows: BTreeMap<u32, String>,
    /// The words that follow in a row that is understood, by the index of its worker.
    pub(super) words: BTreeMap<u32, String>,
    /// The rows whose worker this version cannot have.
    pub(super) strays: Vec<String>,
    /// The table of reasons as it was stored.
    pub(super) reasons: Vec<super::table::Reason>,
    /// The table of nodes as it was stored.
    pub(super) nodes: Vec<String>,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.words.is_empty() && self.strays.is_empty()
    }

    /// Returns the places in the tables that something here may refer to: every number that
    /// is the value of a word.
    pub(super) fn places(&self) -> BTreeSet<usize> {
        let rows = self.rows.values().chain(self.words.values());
        let words = rows.chain(&self.strays).flat_map(|row| row.split(' '));
        let values = words
            .filter_map(|word| word.split_once('='))
            .map(|(_, value)| value);
        values.filter_map(|value| value.parse().ok()).collect()
    }
}
