//! Remembers which requests a task has applied, so that a repeated one changes nothing.
//!
//! An entry of `requestIds` is a request id with the verb and the count of its request, as in
//! `7f3a→up:3`. The arrow cannot be part of an id, which is ASCII (gRPC metadata). Entries of
//! older versions are an id alone, which stands for any request.
use super::{REMEMBERED_REQUESTS, TaskSpec};

const ARROW: char = '→';

/// A `Verb` is the kind of a scale request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// ScaleUp.
    Up,
    /// ScaleDown.
    Down,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

fn id_of(entry: &str) -> &str {
    entry.split(ARROW).next().unwrap_or(entry)
}

fn entry(id: &str, verb: Verb, workers: u32) -> String {
    format!("{id}{ARROW}{}:{workers}", verb.as_str())
}

impl TaskSpec {
    /// Reports whether this request was applied. An id stands for the request that it was last
    /// applied for: with another verb or count it is a new request.
    pub fn has_applied(&self, id: &str, verb: Verb, workers: u32) -> bool {
        let known = self.request_ids.iter().rev().find(|e| id_of(e) == id);
        known.is_some_and(|known| known == id || *known == entry(id, verb, workers))
    }

    /// Returns the remembered requests with this one as the newest.
    pub fn with_applied(&self, id: &str, verb: Verb, workers: u32) -> Vec<String> {
        let others = self.request_ids.iter().filter(|e| id_of(e) != id).cloned();
        let mut all: Vec<String> = others.chain([entry(id, verb, workers)]).collect();
        let surplus = all.len().saturating_sub(REMEMBERED_REQUESTS);
        all.drain(..surplus);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(requests: &[(&str, Verb, u32)]) -> TaskSpec {
        let mut spec = TaskSpec::default();
        for (id, verb, workers) in requests {
            spec.request_ids = spec.with_applied(id, *verb, *workers);
        }
        spec
    }

    #[test]
    fn a_request_is_its_id_its_verb_and_its_count() {
        let spec = after(&[("a", Verb::Up, 3)]);
        assert_eq!(spec.request_ids, ["a→up:3"]);
        assert!(spec.has_applied("a", Verb::Up, 3));
        assert!(!spec.has_applied("a", Verb::Up, 5));
        assert!(!spec.has_applied("a", Verb::Down, 3));
        assert!(!spec.has_applied("b", Verb::Up, 3));
    }

    #[test]
    fn an_id_that_is_used_again_stands_for_its_last_request() {
        let spec = after(&[("a", Verb::Up, 3), ("a", Verb::Down, 1)]);
        assert_eq!(spec.request_ids, ["a→down:1"]);
        assert!(!spec.has_applied("a", Verb::Up, 3));
    }

    #[test]
    fn an_id_that_a_version_before_stored_stands_for_any_request() {
        let spec = TaskSpec {
            request_ids: vec!["a".into()],
            ..TaskSpec::default()
        };
        assert!(spec.has_applied("a", Verb::Up, 3));
        assert!(spec.has_applied("a", Verb::Down, 0));
        assert!(!spec.has_applied("ab", Verb::Up, 3));
    }

    #[test]
    fn the_oldest_requests_are_forgotten() {
        let ids: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let all: Vec<_> = ids.iter().map(|id| (id.as_str(), Verb::Up, 1)).collect();
        let spec = after(&all);
        assert_eq!(spec.request_ids.len(), REMEMBERED_REQUESTS);
        assert!(!spec.has_applied("3", Verb::Up, 1) && spec.has_applied("4", Verb::Up, 1));
    }
}
