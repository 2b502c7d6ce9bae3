#![expect(clippy::unwrap_used)]
use futures::FutureExt as _;

use super::*;
use crate::{
    domain::task::{Task, WorkerPhase},
    grpc::{test_tasks, undelivered::UndeliveredResponses},
    proto::WorkerEvent,
};

/// Returns a task of so many workers, all in one phase.
fn task(name: &str, version: u64, workers: u32, phase: WorkerPhase) -> Task {
    test_tasks::recorded(name, version, workers, |_| phase)
}

fn watch_of(index: &Index, selection: Selection) -> WorkerWatch {
    let slot = UndeliveredResponses::new(1).reserve(1, None).unwrap();
    WorkerWatch::new(index.clone(), selection, CancellationToken::new(), slot)
}

/// Reads every event that is available now.
fn read(watch: &mut WorkerWatch) -> Vec<WorkerEvent> {
    let mut events = Vec::new();
    // The stream yields now and then.
    let mut turns = 0;
    while turns < 2_000 {
        match watch.next().now_or_never() {
            Some(Ok(event)) => events.push(WorkerEvent {
                r#type: event.r#type,
                worker: event.decode_worker().unwrap(),
            }),
            Some(Err(_)) => break,
            None => turns += 1,
        }
    }
    events
}

/// Applies events to what the client knows.
fn take(picture: &mut BTreeMap<String, String>, events: &[WorkerEvent]) {
    for event in events {
        let worker = event.worker.clone().unwrap_or_default();
        match event.r#type() {
            Type::Updated => drop(picture.insert(worker.pod_name, worker.status)),
            Type::Removed => drop(picture.remove(&worker.pod_name)),
            Type::Synced => {}
        }
    }
}

#[test]
fn a_stream_that_is_not_read_holds_little_of_ten_thousand_workers() {
    let index = Index::default();
    for n in 0..10 {
        index.wrote_task(task(&format!("t{n}"), 1, 1_000, WorkerPhase::Pending));
    }
    let mut unread: Vec<WorkerWatch> = (0..20)
        .map(|_| watch_of(&index, Selection::default()))
        .collect();
    let mut version = 1;
    for phase in [WorkerPhase::Running, WorkerPhase::Succeeded] {
        // The client's window takes one event; then the client reads no more.
        for watch in &mut unread {
            assert!(
                watch
                    .next()
                    .now_or_never()
                    .is_some_and(|event| event.is_ok())
            );
            let (events, known) = watch.held();
            // Only a part of the first of ten tasks with a thousand workers was converted.
            assert!(events <= 300 && known <= 300, "{events} {known}");
            assert!(watch.changed.len() <= 10);
        }
        version += 1;
        for n in 0..10 {
            index.wrote_task(task(&format!("t{n}"), version, 1_000, phase));
        }
    }
    // Once the client reads, it gets the current state.
    let (mut watch, mut picture) = (unread.pop().unwrap(), BTreeMap::new());
    take(&mut picture, &read(&mut watch));
    assert_eq!(picture.len(), 10_000);
    assert!(picture.values().all(|status| status == "Succeeded"));
    let (events, known) = watch.held();
    assert_eq!((events, known), (0, 10_000));
    assert!(std::mem::size_of::<(WorkerKey, KnownWorker)>() <= 64);
}

#[test]
fn a_snapshot_comes_first_then_each_change_once() {
    let index = Index::default();
    index.wrote_task(task("t", 1, 2, WorkerPhase::Pending));
    let mut watch = watch_of(&index, Selection::default());
    let kinds = |events: &[WorkerEvent]| {
        let kind = |e: &WorkerEvent| {
            let worker = e.worker.clone().unwrap_or_default();
            (e.r#type(), worker.worker_index, worker.labels.len())
        };
        events.iter().map(kind).collect::<Vec<_>>()
    };
    let snapshot = read(&mut watch);
    let [first, second] = [(Type::Updated, 1, 6), (Type::Updated, 2, 6)];
    assert_eq!(kinds(&snapshot), [first, second, (Type::Synced, 0, 0)]);
    // These changes are invisible to a client.
    index.announce("t".into(), crate::index::ChangeKind::Other);
    let mut same = task("t", 2, 2, WorkerPhase::Pending);
    same.status.workers[0].failures = 1;
    index.wrote_task(same);
    assert_eq!(read(&mut watch), []);
    let mut next = task("t", 3, 2, WorkerPhase::Pending);
    next.status.workers[1].reason = "ImagePullBackOff".into();
    index.wrote_task(next);
    assert_eq!(kinds(&read(&mut watch)), [second]);
    // The task is deleted and created again.
    let mut again = task("t", 9, 1, WorkerPhase::Running);
    again.uid = "other".into();
    index.wrote_task(again);
    let events = read(&mut watch);
    assert_eq!(kinds(&events), [first, (Type::Removed, 2, 0)]);
    let gone = events[1].worker.clone().unwrap();
    assert_eq!(
        (
            gone.pod_name.as_str(),
            gone.task_id.as_str(),
            gone.status.as_str(),
            gone.attempt
        ),
        ("otto-agent-t-2", "t", "Pending", 1)
    );
}

#[test]
fn a_retry_takes_the_place_of_the_pod_before_it() {
    let index = Index::default();
    index.wrote_task(task("t", 1, 1, WorkerPhase::Running));
    let mut watch = watch_of(&index, Selection::default());
    read(&mut watch);
    let mut retried = task("t", 2, 1, WorkerPhase::Pending);
    retried.status.workers[0].attempt = 2;
    index.wrote_task(retried);
    let events = read(&mut watch);
    let names: Vec<_> = events
        .iter()
        .map(|e| (e.r#type(), e.worker.clone().unwrap().pod_name))
        .collect();
    assert_eq!(
        names,
        [
            (Type::Updated, "otto-agent-t-1-r1".to_owned()),
            (Type::Removed, "otto-agent-t-1".to_owned()),
        ]
    );
}

#[test]
fn a_worker_that_leaves_the_selection_is_told_as_it_is_now() {
    let index = Index::default();
    index.wrote_task(task("t", 1, 1, WorkerPhase::Running));
    let running = Selection {
        state: Some(ClientState::Running),
        ..Selection::default()
    };
    let mut watch = watch_of(&index, running);
    assert_eq!(read(&mut watch).len(), 2);
    index.wrote_task(task("t", 2, 1, WorkerPhase::Succeeded));
    let events = read(&mut watch);
    let left = events[0].worker.clone().unwrap();
    assert_eq!(
        (
            events[0].r#type(),
            left.status.as_str(),
            left.node_name.as_str()
        ),
        (Type::Removed, "Succeeded", "a-node")
    );
}

#[test]
fn a_watch_of_one_task_looks_at_no_other_and_may_come_first() {
    let index = Index::default();
    let of_one = Selection {
        task_id: Some("t".into()),
        ..Selection::default()
    };
    let mut watch = watch_of(&index, of_one);
    assert_eq!(read(&mut watch).len(), 1);
    index.wrote_task(task("other", 1, 3, WorkerPhase::Running));
    index.wrote_task(task("t", 2, 3, WorkerPhase::Running));
    let events = read(&mut watch);
    assert_eq!(events.len(), 3);
    assert!(
        events
            .iter()
            .all(|e| e.worker.clone().unwrap().task_id == "t")
    );
}

/// There are more changes than the index keeps for a subscriber.
#[test]
fn a_reader_that_fell_behind_comes_to_what_is() {
    let index = Index::default();
    let mut watch = watch_of(&index, Selection::default());
    let mut picture = BTreeMap::new();
    index.wrote_task(task("gone", 1, 1, WorkerPhase::Running));
    take(&mut picture, &read(&mut watch));
    assert_eq!(picture.len(), 1);
    for n in 0..6_000 {
        let name = format!("t{}", n % 100);
        index.wrote_task(task(&name, 2 + n, 1, WorkerPhase::Running));
    }
    let feed = crate::index::TaskFeed(index.clone());
    let left = index
        .tasks()
        .iter()
        .filter(|t| t.name != "gone")
        .map(|t| Task::clone(t))
        .collect();
    crate::cluster::watch::WatchHandler::reset(&feed, left, 10_000);
    take(&mut picture, &read(&mut watch));
    assert_eq!(picture.len(), 100);
    assert!(!picture.contains_key("otto-agent-gone-1"));
}
