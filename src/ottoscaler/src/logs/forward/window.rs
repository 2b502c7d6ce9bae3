//! The entries that are sent to otto-handler or are next to be sent; pure.
//!
//! The nth answer of a stream belongs to the nth entry sent on it, including those that were
//! sent again.
//!
//! Invariants: entries leave the front only when they are answered with ACK or DROP. After a
//! RETRY, or on a new stream, everything from that entry on is sent again in order, and answers
//! to what was sent before do not count.
use std::collections::VecDeque;

/// How otto-handler answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Ack,
    Retry,
    Drop,
}

/// A sliding window of entries.
#[derive(Debug)]
pub(super) struct Window<T> {
    /// The entries that are not settled, in order.
    entries: VecDeque<T>,
    /// How many of `entries` were sent in this generation.
    sent: usize,
    /// The generation of each entry in flight.
    in_flight: VecDeque<u64>,
    generation: u64,
    /// How many entries may be in flight. A RETRY halves it, and each ACK adds one.
    limit: usize,
    max: usize,
}

impl<T> Window<T> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            sent: 0,
            in_flight: VecDeque::new(),
            generation: 0,
            limit: max,
            max,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.max
    }

    pub(super) fn is_half_free(&self) -> bool {
        self.entries.len() * 2 <= self.max
    }

    /// Returns the newest entry.
    pub(super) fn last(&self) -> Option<&T> {
        self.entries.back()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn awaits_answers(&self) -> bool {
        !self.in_flight.is_empty()
    }

    pub(super) fn push(&mut self, entry: T) {
        self.entries.push_back(entry);
    }

    /// Returns the next entry to send, if one may be sent.
    pub(super) fn next(&self) -> Option<&T> {
        if self.in_flight.len() >= self.limit {
            None
        } else {
            self.entries.get(self.sent)
        }
    }

    /// Notes that the entry of [`Self::next`] was sent.
    pub(super) fn sent(&mut self) {
        self.sent += 1;
        self.in_flight.push_back(self.generation);
    }

    /// Handles the next answer of the stream. Returns the entry that it settles.
    pub(super) fn answer(&mut self, answer: Answer) -> Option<T> {
        let generation = self.in_flight.pop_front()?;
        if generation != self.generation {
            return None;
        }
        match answer {
            Answer::Ack | Answer::Drop => {
                self.limit = (self.limit + 1).min(self.max);
                self.sent -= 1;
                self.entries.pop_front()
            }
            Answer::Retry => {
                self.limit = (self.limit / 2).max(1);
                self.generation += 1;
                self.sent = 0;
                None
            }
        }
    }

    /// Settles every entry from the front that `is_covered` (cumulative answers).
    pub(super) fn answer_up_to(&mut self, mut is_covered: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut settled = Vec::new();
        while self.sent > 0 && self.entries.front().is_some_and(&mut is_covered) {
            self.in_flight.pop_front();
            self.sent -= 1;
            settled.extend(self.entries.pop_front());
        }
        settled
    }

    /// Begins a new stream, on which everything that is not settled is sent again.
    pub(super) fn restart(&mut self) {
        self.in_flight.clear();
        self.sent = 0;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a handler that answers as it likes and streams that break,
        /// every entry is taken, and the taken ones are in order.
        #[test]
        fn every_entry_is_taken_in_order(
            count in 1u32..40,
            max in 1usize..8,
            moods in prop::collection::vec(0u8..10, 0..200),
        ) {
            let mut w = Window::new(max);
            let (mut next, mut settled) = (0, Vec::new());
            let mut wire: VecDeque<u32> = VecDeque::new();
            let mut moods = moods.into_iter();
            while settled.len() < count as usize {
                while next < count && !w.is_full() {
                    w.push(next);
                    next += 1;
                }
                while let Some(entry) = w.next() {
                    wire.push_back(*entry);
                    w.sent();
                }
                prop_assert!(wire.len() <= max);
                match moods.next() {
                    Some(0) => {
                        wire.clear();
                        w.restart();
                    }
                    Some(1 | 2) => {
                        wire.pop_front();
                        w.answer(Answer::Retry);
                    }
                    _ => {
                        let entry = wire.pop_front();
                        if let Some(done) = w.answer(Answer::Ack) {
                            prop_assert_eq!(Some(done), entry);
                            settled.push(done);
                        }
                    }
                }
            }
            prop_assert_eq!(settled, (0..count).collect::<Vec<_>>());
            prop_assert!(w.is_empty());
        }
    }

    #[test]
    fn answers_to_sends_before_a_retry_are_not_counted() {
        let mut w = Window::new(8);
        (0..3).for_each(|n| w.push(n));
        for _ in 0..3 {
            w.sent();
        }
        assert_eq!(w.answer(Answer::Retry), None);
        assert_eq!(w.answer(Answer::Ack), None);
        assert_eq!(w.next(), Some(&0));
    }
}
