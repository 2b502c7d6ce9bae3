//! What a newer version stored of a task's workers, and this one does not understand.
//!
//! What holds: it goes back as it came, whatever this version writes beside it; what it
//! may refer to, in the tables of reasons and nodes, keeps its place.
use std::collections::{BTreeMap, BTreeSet};

/// Rows of a newer version, and more words of rows that are understood otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Whole rows, by the index of their worker.
    pub(super) rows: BTreeMap<u32, String>,
    /// What follows in a row that is understood, by the index of its worker.
    pub(super) words: BTreeMap<u32, String>,
    /// Rows of no worker that this version can have.
    pub(super) strays: Vec<String>,
    /// The tables as they were stored.
    pub(super) reasons: Vec<super::stored::Reason>,
    pub(super) nodes: Vec<String>,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.words.is_empty() && self.strays.is_empty()
    }

    /// Places in the tables that something here may refer to: any number that a word has
    /// for its value.
    pub(super) fn places(&self) -> BTreeSet<usize> {
        let rows = self.rows.values().chain(self.words.values());
        let words = rows.chain(&self.strays).flat_map(|row| row.split(' '));
        let values = words
            .filter_map(|word| word.split_once('='))
            .map(|(_, value)| value);
        values.filter_map(|value| value.parse().ok()).collect()
    }
}
