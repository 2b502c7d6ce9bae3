#![expect(clippy::unwrap_used)]
use futures::FutureExt as _;

use super::*;
use crate::{
    domain::task::{Task, TaskPhase},
    grpc::{test_tasks, undelivered::UndeliveredResponses},
    index::TaskFeed,
};

fn task(name: &str, version: u64, repository: &str) -> Task {
    let mut task = test_tasks::task(name, version, 1);
    task.spec.repository = repository.into();
    task
}

fn watch_of(index: &Index, filter: TaskFilter, drain: &CancellationToken) -> TaskWatch {
    let slot = UndeliveredResponses::new(1).reserve(1, None).unwrap();
    TaskWatch::new(index.clone(), filter, drain.clone(), slot)
}

/// Reads every event that is available now: its type, and the id and phase of its task.
fn read(watch: &mut TaskWatch) -> Vec<(Type, String, String)> {
    let mut events = Vec::new();
    // The stream yields now and then.
    let mut turns = 0;
    while turns < 200 {
        match watch.next().now_or_never() {
            Some(Ok(event)) => {
                let task = event.task.clone().unwrap_or_default();
                events.push((event.r#type(), task.task_id, task.phase));
            }
            Some(Err(_)) => break,
            None => turns += 1,
        }
    }
    events
}

fn event(kind: Type, id: &str, phase: &str) -> (Type, String, String) {
    (kind, id.to_owned(), phase.to_owned())
}

#[test]
fn a_watch_of_tasks_tells_a_snapshot_then_each_visible_change() {
    let (index, drain) = (Index::default(), CancellationToken::new());
    index.wrote_task(task("a", 1, "r"));
    index.wrote_task(task("b", 1, "r"));
    let mut watch = watch_of(&index, TaskFilter::default(), &drain);
    let expected = [
        event(Type::Updated, "a", "Pending"),
        event(Type::Updated, "b", "Pending"),
        event(Type::Synced, "", ""),
    ];
    assert_eq!(read(&mut watch), expected);
    // A client does not see this change.
    let mut same = task("a", 2, "r");
    same.spec.request_ids = vec!["again".into()];
    index.wrote_task(same);
    assert_eq!(read(&mut watch), []);
    let mut ended = task("b", 3, "r");
    ended.status.phase = TaskPhase::Failed;
    index.wrote_task(ended);
    assert_eq!(read(&mut watch), [event(Type::Updated, "b", "Failed")]);
    crate::cluster::watch::WatchHandler::reset(&TaskFeed(index), vec![task("b", 3, "r")], 9);
    assert_eq!(read(&mut watch), [event(Type::Removed, "a", "")]);
}

#[test]
fn a_task_that_leaves_the_filters_is_removed() {
    let (index, drain) = (Index::default(), CancellationToken::new());
    index.wrote_task(task("a", 1, "r"));
    index.wrote_task(task("other", 1, "q"));
    let filter = TaskFilter {
        phase: Some(TaskPhase::Pending),
        repository: Some("r".into()),
        since: None,
    };
    let mut watch = watch_of(&index, filter, &drain);
    assert_eq!(read(&mut watch).len(), 2);
    let mut ended = task("a", 2, "r");
    ended.status.phase = TaskPhase::Succeeded;
    index.wrote_task(ended);
    assert_eq!(read(&mut watch), [event(Type::Removed, "a", "")]);
}

#[test]
fn a_drain_ends_a_watch_of_tasks_with_its_reason() {
    use tonic_types::StatusExt as _;
    let (index, drain) = (Index::default(), CancellationToken::new());
    let mut watch = watch_of(&index, TaskFilter::default(), &drain);
    assert_eq!(read(&mut watch).len(), 1);
    drain.cancel();
    let status = watch.next().now_or_never().unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
}
