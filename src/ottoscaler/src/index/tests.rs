#![expect(clippy::unwrap_used, clippy::single_range_in_vec_init)]
use super::*;
use crate::domain::task::TaskSpec;

/// Returns two task ids with the same name.
fn colliding() -> (String, String) {
    let mut seen = HashMap::new();
    let ids = (0..).map(|n| format!("{}-{n}", "x".repeat(60)));
    for id in ids {
        if let Some(other) = seen.insert(names::task_name(&id), id.clone()) {
            return (other, id);
        }
    }
    unreachable!("names are finite")
}

#[test]
fn a_task_is_found_by_its_id_not_by_a_name_that_another_id_shares() {
    let (known, other) = colliding();
    assert_ne!(known, other);
    let index = Index::default();
    index.wrote_task(Task {
        name: names::task_name(&known),
        uid: "u".into(),
        resource_version: 1,
        spec: TaskSpec {
            task_id: known.clone(),
            workers: 2,
            ..TaskSpec::default()
        },
        ..Task::default()
    });
    let workers = |id: &String| {
        let task_id = Some(id.clone());
        let selection = Selection {
            task_id,
            ..Selection::default()
        };
        index.workers(&selection).len()
    };
    assert_eq!((workers(&known), workers(&other)), (2, 0));
}

#[test]
fn who_follows_a_task_hears_of_no_other_and_is_forgotten_when_gone() {
    let index = Index::default();
    let mut mine = index.follow("mine");
    let also = index.follow("mine");
    index.announce(Arc::from("other"), ChangeKind::Other);
    assert!(!mine.has_changed().unwrap_or(true));
    index.announce(Arc::from("mine"), ChangeKind::PodWaits);
    assert!(mine.has_changed().unwrap_or(false) && also.has_changed().unwrap_or(false));
    mine.mark_unchanged();
    assert!(!mine.has_changed().unwrap_or(true));
    drop((mine, also));
    assert_eq!(index.followed().len(), 1);
    index.announce(Arc::from("mine"), ChangeKind::Other);
    assert_eq!(index.followed().len(), 0);
}

/// A writer ends workers as they end in a cluster: the pod ends, the record is written, the
/// pod is deleted. A reader on another thread must not combine an old record with newer pods.
#[test]
fn a_worker_that_has_succeeded_never_shows_running_again() {
    use crate::{
        cluster::watch::WatchHandler as _,
        domain::{
            pod::PodPhase,
            task::{TaskSpec, TaskStatus, WorkerPhase, WorkerRecord},
            view::ClientState,
        },
    };
    const TASKS: u64 = 400;
    let task = |n: u64, version: u64, phase| Task {
        name: format!("t{n}"),
        uid: format!("u{n}"),
        resource_version: version,
        spec: TaskSpec {
            task_id: format!("t{n}"),
            workers: 1,
            ..TaskSpec::default()
        },
        status: TaskStatus {
            workers: vec![WorkerRecord {
                index: 1,
                attempt: 1,
                phase,
                ..WorkerRecord::default()
            }],
            ..TaskStatus::default()
        },
        ..Task::default()
    };
    let pod = |n: u64, version: u64, phase| Pod {
        name: Arc::from(format!("otto-agent-t{n}-1")),
        uid: format!("p{n}"),
        task: Arc::from(format!("t{n}")),
        task_uid: Arc::from(format!("u{n}")),
        index: 1,
        attempt: 1,
        resource_version: version,
        phase,
        ..Pod::default()
    };
    for _ in 0..20 {
        let index = Index::default();
        for n in 0..TASKS {
            index.wrote_task(task(n, 1, WorkerPhase::Running));
            index.wrote_pod(pod(n, 2, PodPhase::Succeeded));
        }
        PodFeed(index.clone()).synced_to(2);
        let over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for n in 0..TASKS {
                    index.wrote_task(task(n, 3, WorkerPhase::Succeeded));
                    index.change(|s| s.delete_pod(pod(n, 4, PodPhase::Succeeded)));
                }
                over.store(true, Ordering::Release);
            });
            while !over.load(Ordering::Acquire) {
                let workers = index.workers(&Selection::default());
                assert_eq!(workers.len(), 400);
                for worker in workers {
                    assert_eq!(worker.view.state(), ClientState::Succeeded, "{worker:?}");
                }
                for n in 0..TASKS {
                    let view = index.view(&format!("t{n}")).unwrap();
                    assert_eq!(view.rows()[0].state, ClientState::Succeeded);
                }
                let old = task(TASKS - 1, 1, WorkerPhase::Running);
                assert_eq!(index.workers_of(&old)[0].state(), ClientState::Succeeded);
            }
        });
    }
}

fn running_task(uid: &str, version: u64) -> Task {
    Task {
        name: "t".into(),
        uid: uid.into(),
        resource_version: version,
        spec: TaskSpec {
            task_id: "t".into(),
            workers: 3,
            ..TaskSpec::default()
        },
        ..Task::default()
    }
}

fn running_pod(version: u64) -> Pod {
    Pod {
        name: "otto-agent-t-1".into(),
        uid: "p".into(),
        task: "t".into(),
        task_uid: "u".into(),
        index: 1,
        attempt: 1,
        resource_version: version,
        phase: crate::domain::pod::PodPhase::Running,
        ..Pod::default()
    }
}

#[test]
fn a_view_is_built_once_and_again_after_each_change_of_the_task_or_its_pods() {
    use crate::cluster::watch::WatchHandler as _;
    let index = Index::default();
    assert!(index.view("t").is_none());
    index.wrote_task(running_task("u", 1));
    let states = |index: &Index| -> Vec<_> {
        let view = index.view("t").unwrap();
        view.rows().iter().map(|r| r.state.as_str()).collect()
    };
    assert_eq!(states(&index), ["Pending"; 3]);
    let first = index.view("t").unwrap();
    assert!(Arc::ptr_eq(&first, &index.view("t").unwrap()));
    // Another task changes nothing here.
    index.wrote_task(Task {
        name: "other".into(),
        ..running_task("v", 2)
    });
    assert!(Arc::ptr_eq(&first, &index.view("t").unwrap()));
    index.wrote_pod(running_pod(3));
    assert_eq!(states(&index), ["Running", "Pending", "Pending"]);
    // A list without the pod: nothing says how it ended.
    PodFeed(index.clone()).replace(Vec::new(), Vec::new(), 9);
    let version_before = index.view("t").unwrap();
    TaskFeed(index.clone()).replace(Vec::new(), Vec::new(), 10);
    assert!(index.view("t").is_none());
    assert!(!Arc::ptr_eq(&first, &version_before));
    assert_eq!(index.0.views.len(), 0);
}

#[test]
fn a_selection_by_pod_reads_its_task_alone_and_takes_its_newest_attempt() {
    let index = Index::default();
    let mut task = running_task("u", 1);
    task.status.workers = vec![crate::domain::task::WorkerRecord {
        index: 2,
        attempt: 3,
        ..Default::default()
    }];
    index.wrote_task(task);
    index.wrote_task(Task {
        name: "other".into(),
        ..running_task("v", 2)
    });
    let of = |pod: &str| Selection {
        pod_name: Some(pod.into()),
        ..Selection::default()
    };
    let found = |pod: &str| {
        let view = index.view("t").unwrap();
        view.select(&of(pod))
    };
    assert_eq!(index.candidates(&of("otto-agent-t-2-r2")), [Arc::from("t")]);
    assert_eq!(found("otto-agent-t-2-r2"), [1..2]);
    assert!(found("otto-agent-t-2").is_empty());
    assert_eq!(found("otto-agent-t-3"), [2..3]);
    assert!(index.candidates(&of("anything")).is_empty());
    let pending = Selection {
        state: Some(crate::domain::view::ClientState::Pending),
        ..Selection::default()
    };
    assert_eq!(index.view("t").unwrap().select(&pending), [0..3]);
    assert_eq!(index.workers(&of("otto-agent-t-2-r2")).len(), 1);
}
