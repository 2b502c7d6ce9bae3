#![expect(clippy::unwrap_used)]
use std::collections::BTreeMap;

use prost::Message as _;

use super::*;
use crate::{
    domain::task::{Task, WorkerPhase},
    grpc::test_tasks,
    proto::{WorkerStatusResponse, encoded},
};

const ALL: PageLimits = PageLimits {
    workers: usize::MAX,
    bytes: usize::MAX,
};

/// Returns a task whose workers with an odd index run.
fn task(name: &str, version: u64, workers: u32) -> Task {
    test_tasks::recorded(name, version, workers, |index| match index % 2 {
        1 => WorkerPhase::Running,
        _ => WorkerPhase::Failed,
    })
}

fn index_of(tasks: &[(&str, u32)]) -> Index {
    let index = Index::default();
    for (name, workers) in tasks {
        index.wrote_task(task(name, 1, *workers));
    }
    index
}

fn names(page: &Page) -> Vec<String> {
    let response = encoded::WorkerStatusResponse {
        workers: page.workers.clone(),
        ..Default::default()
    };
    assert_eq!(response.encoded_len(), page.bytes);
    let decoded = WorkerStatusResponse::decode(response.encode_to_vec().as_slice()).unwrap();
    decoded.workers.into_iter().map(|w| w.pod_name).collect()
}

/// Reads all pages; `between` happens after each of them.
fn read_all(
    index: &Index,
    selection: &Selection,
    limits: PageLimits,
    mut between: impl FnMut(usize),
) -> Vec<Vec<String>> {
    let (mut pages, mut token) = (Vec::new(), None::<String>);
    loop {
        let after = token.map(|t| Position::parse(&t, selection).unwrap());
        let page = Page::read(index, selection, after.as_ref(), limits);
        pages.push(names(&page));
        let Some(next) = page.next else {
            return pages;
        };
        token = Some(next.token(selection));
        between(pages.len());
        assert!(pages.len() < 1_000);
    }
}

#[test]
fn every_worker_is_on_one_page_whatever_the_page_size() {
    let index = index_of(&[("a", 3), ("a-b", 1), ("b", 7), ("c", 12)]);
    for state in [None, Some(ClientState::Running), Some(ClientState::Failed)] {
        let selection = Selection {
            state,
            ..Selection::default()
        };
        let all = read_all(&index, &selection, ALL, |_| {});
        assert_eq!(all.len(), 1);
        let expected = [(None, 23), (Some(ClientState::Running), 13)];
        let expected: BTreeMap<_, _> = expected
            .map(|(s, n)| (s.map(ClientState::as_str), n))
            .into();
        let count = expected.get(&state.map(ClientState::as_str));
        assert_eq!(all[0].len(), *count.unwrap_or(&10));
        for workers in 1..=25 {
            let pages = read_all(&index, &selection, PageLimits { workers, ..ALL }, |_| {});
            assert!(pages.iter().all(|p| !p.is_empty() && p.len() <= workers));
            assert_eq!(pages.concat(), all[0], "pages of {workers}");
        }
        let sizes = Page::read(&index, &selection, None, ALL);
        for parts in 1..=9 {
            let bytes = sizes.bytes / parts;
            let pages = read_all(&index, &selection, PageLimits { bytes, ..ALL }, |_| {});
            assert!(pages.len() >= parts);
            assert_eq!(pages.concat(), all[0], "pages of {bytes} bytes");
        }
    }
}

#[test]
fn the_counts_are_of_all_selected_workers_on_every_page() {
    let index = index_of(&[("a", 4), ("b", 3)]);
    let limits = PageLimits { workers: 2, ..ALL };
    let first = Page::read(&index, &Selection::default(), None, limits);
    let second = Page::read(&index, &Selection::default(), first.next.as_ref(), limits);
    let expected = Counts {
        total: 7,
        running: 4,
        failed: 3,
        ..Counts::default()
    };
    assert_eq!((first.counts, second.counts), (expected, expected));
}

#[test]
fn a_worker_that_stays_is_on_one_page_while_others_come_and_go() {
    let index = index_of(&[("b", 4), ("d", 4), ("f", 4)]);
    let limits = PageLimits { workers: 3, ..ALL };
    let pages = read_all(&index, &Selection::default(), limits, |page| match page {
        // Before the position, after it, and the task of the position itself.
        1 => {
            index.wrote_task(task("a", 2, 5));
            index.wrote_task(task("e", 2, 1));
        }
        2 => {
            let left: Vec<Task> = index
                .tasks()
                .iter()
                .filter(|t| t.name != "d")
                .map(|t| Task::clone(t))
                .collect();
            let feed = crate::index::TaskFeed(index.clone());
            crate::cluster::watch::WatchHandler::reset(&feed, left, 99);
        }
        _ => {}
    });
    let names = pages.concat();
    for stays in ["b", "f"] {
        for worker in 1..=4 {
            let name = format!("otto-agent-{stays}-{worker}");
            assert_eq!(names.iter().filter(|n| **n == name).count(), 1, "{name}");
        }
    }
    assert!(!names.contains(&"otto-agent-a-1".to_owned()), "{names:?}");
    assert!(names.contains(&"otto-agent-e-1".to_owned()), "{names:?}");
}

#[test]
fn a_worker_larger_than_a_page_is_told_and_not_passed_over() {
    let index = index_of(&[("a", 2)]);
    let limits = PageLimits { bytes: 10, ..ALL };
    let page = Page::read(&index, &Selection::default(), None, limits);
    assert!(page.workers.is_empty() && page.oversized.is_some_and(|bytes| bytes > 10));
}

#[test]
fn a_token_gives_its_position_back_for_the_same_filters_alone() {
    let position = Position {
        task: "a-task".into(),
        index: 42,
    };
    let of = |id: &str, pod: &str, state: &str| Selection::parse(id, pod, state).unwrap();
    let own = of("", "", "running");
    let token = position.token(&own);
    assert_eq!(Position::parse(&token, &own), Some(position.clone()));
    for other in [
        of("", "", ""),
        of("a", "", "running"),
        of("", "a", "running"),
    ] {
        assert_eq!(Position::parse(&token, &other), None);
    }
}
