//! The pages of GetWorkerStatus.
//!
//! Workers are in the order of (task name, index), which no change of a worker alters. A page
//! begins after the last worker of the page before it, so that a worker which exists all the while
//! is on exactly one page, whatever else comes and goes.
use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::page_token;
use crate::{
    domain::{request::Selection, task::Counts, view::ClientState},
    index::{Index, TaskView},
};

/// A `Position` is the place of a worker in the order of all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    task: Arc<str>,
    index: u32,
}

impl Position {
    /// Returns the token of the page after this position, for requests with this selection.
    pub(super) fn token(&self, selection: &Selection) -> String {
        let position = format!("{}/{}", self.index, self.task);
        page_token::encode(&filters(selection), &position)
    }

    /// Parses a token. Returns None for a text that is no token, and for the token of another
    /// selection.
    pub(super) fn parse(token: &str, selection: &Selection) -> Option<Self> {
        let text = page_token::decode(&filters(selection), token)?;
        let (index, task) = text.split_once('/')?;
        Some(Self {
            task: Arc::from(task),
            index: index.parse().ok()?,
        })
    }
}

fn filters(selection: &Selection) -> [&str; 3] {
    let Selection {
        task_id,
        pod_name,
        state,
    } = selection;
    [
        task_id.as_deref().unwrap_or_default(),
        pod_name.as_deref().unwrap_or_default(),
        state.map(ClientState::as_str).unwrap_or_default(),
    ]
}

/// What a page may hold at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageLimits {
    pub workers: usize,
    /// The sum of the encoded workers.
    pub bytes: usize,
}

/// A `Page` is a part of the selected workers, and the counts of all of them.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Pieces of encoded workers.
    pub workers: Vec<Bytes>,
    pub bytes: usize,
    /// The counts of all selected workers, on whatever page they are.
    pub counts: Counts,
    /// The position after which the next page begins; None on the last page.
    pub next: Option<Position>,
    /// The size of the first worker where it alone is larger than a page.
    pub oversized: Option<usize>,
    len: usize,
    last: Option<Position>,
}

impl Page {
    /// Returns the page of the selected workers that begins after a position, or the first one.
    pub(super) fn read(
        index: &Index,
        selection: &Selection,
        after: Option<&Position>,
        limits: PageLimits,
    ) -> Self {
        let mut page = Self::default();
        for name in index.candidates(selection) {
            let Some(view) = index.view(&name) else {
                continue;
            };
            for range in view.select(selection) {
                for row in &view.rows()[range.clone()] {
                    page.counts.add(row.state);
                }
                page.add_after(&name, &view, range, after, limits);
            }
        }
        page
    }

    /// Adds those of some neighbouring workers that come after a position, as many as fit.
    fn add_after(
        &mut self,
        name: &Arc<str>,
        view: &TaskView,
        mut range: Range<usize>,
        after: Option<&Position>,
        limits: PageLimits,
    ) {
        let rows = view.rows();
        if let Some(after) = after {
            if *name < after.task {
                return;
            }
            if *name == after.task {
                let skipped = rows[range.clone()].iter();
                range.start += skipped.take_while(|row| row.index <= after.index).count();
            }
        }
        if range.is_empty() || self.next.is_some() || self.oversized.is_some() {
            return;
        }
        let fitting = self.fitting(view, range.clone(), limits);
        let taken = range.start..range.start + fitting;
        if let Some(last) = rows[taken.clone()].last() {
            self.len += fitting;
            let elements = view.elements(taken.clone());
            self.bytes += elements.len();
            self.workers.push(elements);
            self.last = Some(Position {
                task: name.clone(),
                index: last.index,
            });
        } else if self.len == 0 {
            self.oversized = Some(view.elements(range.start..range.start + 1).len());
        }
        if taken.end < range.end {
            self.next = self.last.clone();
        }
    }

    /// Returns how many of some neighbouring workers fit.
    fn fitting(&self, view: &TaskView, range: Range<usize>, limits: PageLimits) -> usize {
        let free = limits.bytes.saturating_sub(self.bytes);
        let most = range.len().min(limits.workers.saturating_sub(self.len));
        let size = |count: usize| view.elements(range.start..range.start + count).len();
        if size(most) <= free {
            return most;
        }
        // The sizes ascend with the count.
        (1..=most).take_while(|count| size(*count) <= free).count()
    }
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
