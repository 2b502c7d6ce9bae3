#![expect(clippy::unwrap_used)]
use super::*;
use crate::{
    domain::{
        pod::{Pod, PodPhase},
        task::{Condition, Task, TaskSpec},
    },
    index::Index,
};

#[test]
fn a_token_is_a_place_between_two_tasks() {
    let filters = ["running", "", ""];
    let at = (Reverse(1_769_857_200), Arc::from("build-7"));
    assert_eq!(parse_token(filters, &token(filters, &at)), Some(at.clone()));
    assert_eq!(parse_token(["", "", ""], &token(filters, &at)), None);
    // Newest first, and of the same second by name.
    let older = (Reverse(1_769_857_199), Arc::from("a"));
    let same = (Reverse(1_769_857_200), Arc::from("build-8"));
    assert!(at < same && same < older);
}

#[test]
fn a_task_is_told_as_its_pods_bring_it_up_to_date() {
    let index = Index::default();
    let condition = Condition {
        kind: "Created".into(),
        status: "False".into(),
        message: "1 of 2 workers wait for a place".into(),
        ..Condition::default()
    };
    let mut task = Task {
        name: "t".into(),
        uid: "u".into(),
        resource_version: 1,
        created: 1_769_857_200,
        spec: TaskSpec {
            task_id: "t".into(),
            repository: "r".into(),
            triggered_by: "ci".into(),
            workers: 2,
            ..TaskSpec::default()
        },
        ..Task::default()
    };
    task.status.conditions = vec![condition];
    index.wrote_task(task);
    let told = |index: &Index| summary(&index.view("t").unwrap());
    let first = told(&index);
    assert_eq!((first.phase.as_str(), first.pending_count), ("Pending", 2));
    assert_eq!(first.created_at, "2026-01-31T11:00:00Z");
    assert_eq!(first.message, "1 of 2 workers wait for a place");
    for (n, phase) in [(1, PodPhase::Running), (2, PodPhase::Succeeded)] {
        index.wrote_pod(Pod {
            name: format!("otto-agent-t-{n}").into(),
            uid: format!("p{n}"),
            task: "t".into(),
            task_uid: "u".into(),
            index: n,
            attempt: 1,
            resource_version: u64::from(n) + 1,
            phase,
            ..Pod::default()
        });
    }
    let second = told(&index);
    assert_eq!(second.phase, "Running");
    let counts = (
        second.pending_count,
        second.running_count,
        second.succeeded_count,
    );
    assert_eq!(counts, (0, 1, 1));
    assert_eq!(
        (second.message.as_str(), second.finished_at.as_str()),
        ("", "")
    );
}
