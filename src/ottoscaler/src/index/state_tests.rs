use super::*;
use crate::{
    domain::{
        pod::PodPhase,
        task::{TaskPhase, WorkerPhase, WorkerRecord},
    },
    index::StorageRoom,
};

fn pod(version: u64, phase: PodPhase) -> Pod {
    Pod {
        name: "p".into(),
        uid: "u".into(),
        task: "t".into(),
        index: 1,
        attempt: 1,
        resource_version: version,
        phase,
        ..Pod::default()
    }
}

#[test]
fn the_highest_version_wins_whatever_the_order() {
    let mut s = IndexState::default();
    assert!(s.apply_pod(pod(5, PodPhase::Running)).is_some());
    assert!(s.apply_pod(pod(4, PodPhase::Pending)).is_none());
    assert_eq!(s.pods["p"].phase, PodPhase::Running);
}

#[test]
fn a_pod_that_has_yet_to_start_and_one_that_went_as_told_can_wait() {
    let mut s = IndexState::default();
    let kind = |change: Option<TaskChanged>| change.map(|c| c.kind);
    let why = Pod {
        reason: "ImagePullBackOff".into(),
        ..pod(2, PodPhase::Pending)
    };
    assert_eq!(
        kind(s.apply_pod(pod(1, PodPhase::Pending))),
        Some(ChangeKind::PodWaits)
    );
    assert_eq!(kind(s.apply_pod(why)), Some(ChangeKind::Other));
    assert_eq!(
        kind(s.apply_pod(pod(3, PodPhase::Running))),
        Some(ChangeKind::Other)
    );
    assert_eq!(
        kind(s.apply_pod(pod(4, PodPhase::Succeeded))),
        Some(ChangeKind::Other)
    );
    assert_eq!(
        kind(s.delete_pod(pod(5, PodPhase::Succeeded))),
        Some(ChangeKind::EndedPodDeleted)
    );
    // The deletion itself reports the end.
    let mut s = IndexState::default();
    s.apply_pod(pod(3, PodPhase::Running));
    assert_eq!(
        kind(s.delete_pod(pod(5, PodPhase::Succeeded))),
        Some(ChangeKind::Other)
    );
}

#[test]
fn an_end_that_was_seen_does_not_change_with_what_the_pod_comes_to() {
    let end = Pod {
        others_run: true,
        own_end: true,
        reason: "Error".into(),
        exit_code: Some(7),
        finished: Some(5),
        ..pod(3, PodPhase::Failed)
    };
    let evicted = Pod {
        reason: "Evicted".into(),
        exit_code: Some(7),
        disruption: Some("EvictionByEvictionAPI".into()),
        deleting: true,
        ..pod(4, PodPhase::Failed)
    };
    let mut s = IndexState::default();
    s.apply_pod(end.clone());
    s.apply_pod(evicted);
    let now = &s.pods["p"];
    assert_eq!((now.reason.as_str(), now.exit_code), ("Error", Some(7)));
    assert_eq!(crate::domain::failure::end_reason(now), "Error");
    assert!(now.deleting && now.all_have_ended());
    // A kubelet that started anew may not know the container for a while.
    let mut s = IndexState::default();
    s.apply_pod(end);
    s.apply_pod(pod(4, PodPhase::Pending));
    let now = &s.pods["p"];
    assert_eq!((now.phase, now.exit_code), (PodPhase::Failed, Some(7)));
    assert!(now.others_run);
}

#[test]
fn a_worker_whose_start_was_seen_has_logs_whatever_its_kubelet_forgot() {
    let mut s = IndexState::default();
    s.apply_pod(Pod {
        started: Some(3),
        ..pod(3, PodPhase::Running)
    });
    s.apply_pod(Pod {
        reason: "Evicted".into(),
        ..pod(4, PodPhase::Failed)
    });
    assert_eq!(s.pods["p"].started, Some(3));
    assert!(s.pods["p"].has_logs());
}

#[test]
fn what_a_tasks_pods_have_in_common_is_held_once() {
    let named = |name: &str, repository: &str| Pod {
        name: name.into(),
        uid: name.into(),
        repository: repository.into(),
        traceparent: Some("00-1-2-01".into()),
        ..pod(1, PodPhase::Running)
    };
    let mut s = IndexState::default();
    s.apply_pod(named("p", "r"));
    s.apply_pod(named("q", "r"));
    s.apply_pod(named("other", "s"));
    let (p, q) = (&s.pods["p"], &s.pods["q"]);
    assert!(Arc::ptr_eq(&p.task, &q.task) && Arc::ptr_eq(&p.repository, &q.repository));
    let trace = |pod: &Pod| pod.traceparent.clone().map(|t| Arc::as_ptr(&t));
    assert_eq!(trace(p), trace(q));
    assert_eq!(&*s.pods["other"].repository, "s");
}

#[test]
fn a_pod_that_went_leaves_a_tombstone_until_its_record_is_final() {
    let mut s = IndexState::default();
    s.apply_pod(pod(5, PodPhase::Succeeded));
    s.delete_pod(pod(6, PodPhase::Succeeded));
    assert_eq!((s.pods_of("t").len(), s.tombstones_of("t").len()), (0, 1));
    // A late event does not restore the pod.
    assert!(s.apply_pod(pod(4, PodPhase::Running)).is_none());
    let mut task = Task {
        name: "t".into(),
        resource_version: 7,
        ..Task::default()
    };
    task.status.workers = vec![WorkerRecord {
        index: 1,
        attempt: 1,
        phase: WorkerPhase::Succeeded,
        ..Default::default()
    }];
    s.apply_task(task);
    assert!(s.tombstones_of("t").is_empty());
}

#[test]
fn a_list_may_overtake_the_watch_that_tells_how_a_pod_ended() {
    let mut s = IndexState::default();
    s.apply_pod(pod(5, PodPhase::Running));
    s.retain_pods(&BTreeSet::new(), 9);
    assert!(s.apply_pod(pod(6, PodPhase::Succeeded)).is_some());
    assert!(s.delete_pod(pod(7, PodPhase::Failed)).is_none());
    let tombstones = s.tombstones_of("t");
    assert_eq!(
        (tombstones.len(), tombstones[0].phase),
        (1, PodPhase::Succeeded)
    );
}

#[test]
fn a_tombstone_whose_task_is_gone_too_is_not_kept() {
    let mut s = IndexState::default();
    s.apply_pod(pod(5, PodPhase::Running));
    s.delete_pod(pod(6, PodPhase::Running));
    // The watch of tasks may lag behind.
    s.prune_unclaimed_tombstones(5);
    assert_eq!(s.tombstones_of("t").len(), 1);
    s.prune_unclaimed_tombstones(6);
    assert!(s == IndexState::default());
}

#[test]
fn tombstones_go_with_a_task_that_another_of_its_name_replaced() {
    let task = |uid: &str, version| Task {
        name: "t".into(),
        uid: uid.into(),
        resource_version: version,
        ..Task::default()
    };
    let of_first = |version| Pod {
        task_uid: "first".into(),
        ..pod(version, PodPhase::Running)
    };
    let mut s = IndexState::default();
    s.apply_task(task("first", 1));
    s.apply_pod(of_first(5));
    // The pods' watch is ahead of the tasks' list.
    s.delete_pod(of_first(9));
    s.apply_task(task("second", 7));
    s.delete_task("t", "second");
    assert!(s == IndexState::default(), "{:?}", s.describe_tombstones());
}

#[test]
fn a_list_older_than_a_write_does_not_remove_it() {
    let mut s = IndexState::default();
    s.apply_pod(pod(9, PodPhase::Pending));
    assert!(s.retain_pods(&BTreeSet::new(), 8).is_empty());
    assert_eq!(s.retain_pods(&BTreeSet::new(), 9).len(), 1);
}

/// The counts follow the pods when a name is used again, at a relist and at a deletion.
#[test]
fn a_repositorys_pods_are_counted_as_they_are() {
    let of = |name: &str, uid: &str, version, repository: &str| Pod {
        name: name.into(),
        uid: uid.into(),
        repository: repository.into(),
        ..pod(version, PodPhase::Running)
    };
    let mut s = IndexState::default();
    s.apply_pod(of("p", "1", 1, "a"));
    s.apply_pod(of("p", "1", 2, "a"));
    s.apply_pod(of("q", "2", 3, "a"));
    s.apply_pod(of("p", "3", 4, "b"));
    assert_eq!(
        (s.pods_of_repository("a"), s.pods_of_repository("b")),
        (1, 1)
    );
    s.delete_pod(of("q", "2", 5, "a"));
    s.retain_pods(&BTreeSet::new(), 9);
    assert_eq!(
        (s.pods_of_repository("a"), s.pods_of_repository("b")),
        (0, 0)
    );
}

fn known_task(version: u64) -> Task {
    Task {
        name: "t".into(),
        uid: "tu".into(),
        resource_version: version,
        ..Task::default()
    }
}

fn unread(name: &str, uid: &str, version: u64) -> Unread {
    Unread {
        name: name.into(),
        uid: uid.into(),
        version,
        ..Unread::default()
    }
}

#[test]
fn a_task_that_cannot_be_decoded_keeps_its_last_picture_until_it_can_be_or_goes() {
    let mut s = IndexState::default();
    s.apply_task(known_task(5));
    assert!(
        s.apply_unread_task(unread("t", "tu", 4)).is_none(),
        "an old version"
    );
    assert!(s.apply_unread_task(unread("t", "tu", 6)).is_some());
    assert!(
        s.apply_unread_task(unread("t", "tu", 6)).is_none(),
        "a repetition"
    );
    assert_eq!(s.tasks["t"].resource_version, 5);
    assert_eq!(s.unread_of("t").map(|u| u.version), Some(6));
    // A version that was in flight says nothing of the newer one.
    s.apply_task(known_task(5));
    assert!(s.unread_of("t").is_some());
    s.apply_task(known_task(7));
    assert!(s.unread_of("t").is_none());

    s.apply_unread_task(unread("t", "tu", 8));
    assert!(s.delete_task("t", "another").is_none());
    assert!(s.delete_task("t", "tu").is_some());
    // The task could never be decoded.
    assert!(s.apply_unread_task(unread("t", "tv", 10)).is_some());
    s.retain_tasks(&BTreeSet::new(), 9);
    assert!(s.unread_of("t").is_some());
    assert_eq!(s.retain_tasks(&BTreeSet::new(), 10).len(), 1);
    assert!(s == IndexState::default());
}

/// Their ends are reported when the task can be decoded again.
#[test]
fn pods_that_go_while_their_task_cannot_be_decoded_leave_tombstones() {
    let mut s = IndexState::default();
    let of_task = |version, phase| Pod {
        task_uid: "tu".into(),
        ..pod(version, phase)
    };
    s.apply_unread_task(unread("t", "tu", 3));
    s.apply_pod(of_task(4, PodPhase::Running));
    s.delete_pod(of_task(5, PodPhase::Succeeded));
    s.prune_unclaimed_tombstones(99);
    assert_eq!(s.tombstones_of("t").len(), 1);
    s.delete_task("t", "tu");
    assert!(s == IndexState::default());
}

#[test]
fn a_pod_that_cannot_be_decoded_stays_and_holds_its_task() {
    let mut s = IndexState::default();
    let of_task = |version| Pod {
        task_uid: "tu".into(),
        ..pod(version, PodPhase::Running)
    };
    s.apply_task(known_task(1));
    assert!(s.apply_unread_pod(unread("foreign", "f", 9)).is_none());
    s.apply_pod(of_task(5));
    let told = s.apply_unread_pod(unread("p", "u", 6));
    assert_eq!(told.map(|c| c.task), Some("t".into()));
    assert_eq!(s.pods["p"].resource_version, 5);
    assert_eq!(s.unread_of("t").map(|u| &*u.name), Some("p"));
    s.apply_pod(of_task(7));
    assert!(s.unread_of("t").is_none());

    s.apply_unread_pod(unread("p", "u", 8));
    s.delete_unread_pod(&unread("p", "u", 9));
    assert!(s.unread_of("t").is_none() && s.pods.is_empty());
    assert_eq!(s.tombstones_of("t").len(), 1);
    // A pod that was not known before belongs to its owner.
    let owned = |version| Unread {
        task: Some(("t".into(), "tu".into())),
        ..unread("q", "v", version)
    };
    assert!(s.apply_unread_pod(owned(10)).is_some());
    assert!(s.unread_of("t").is_some());
    s.retain_pods(&BTreeSet::new(), 10);
    assert!(s.unread_of("t").is_none());
}

#[test]
fn maps_that_nobody_asks_an_index_for_are_not_held_and_what_all_tasks_take_is_known() {
    let task = |version, phase| {
        let mut task = known_task(version);
        let long = |key: &str| [(key.to_owned(), "v".repeat(10_000))].into();
        task.spec.workers = 10;
        (task.spec.build_config, task.spec.metadata) = (long("K"), long("m"));
        task.spec.reason = "r".repeat(1_000);
        task.status.phase = phase;
        task
    };
    let mut s = IndexState::default();
    s.apply_task(task(1, TaskPhase::Running));
    let spec = |s: &IndexState| s.tasks["t"].spec.clone();
    assert!(spec(&s).metadata.is_empty() && spec(&s).build_config.len() == 1);
    assert!(spec(&s).reason.is_empty());
    // A running task counts with the size that it may grow to.
    let taken = s.bytes;
    assert!((23_500..30_000).contains(&taken.unfinished), "{taken:?}");
    s.apply_task(task(2, TaskPhase::Running));
    assert_eq!(s.bytes, taken);
    s.apply_task(task(3, TaskPhase::Succeeded));
    assert!(spec(&s).build_config.is_empty());
    assert!(s.bytes.unfinished == 0 && s.bytes.finished > 20_000);
    s.delete_task("t", "tu");
    assert!(s == IndexState::default());
}

#[test]
fn history_makes_room_before_a_request_is_refused() {
    let held = StoredBytes {
        unfinished: 60,
        finished: 30,
    };
    assert_eq!(held.room(10, 100), StorageRoom::Available);
    assert_eq!(held.room(11, 100), StorageRoom::AfterCleanup);
    assert_eq!(held.room(40, 100), StorageRoom::AfterCleanup);
    assert_eq!(held.room(41, 100), StorageRoom::Exhausted);
    // A change that takes no more bytes is never refused.
    assert_eq!(held.room(0, 10), StorageRoom::Available);
}

#[test]
fn whose_a_pod_is_its_task_says_whatever_its_annotations_do() {
    let told = |version, repository: &str| Pod {
        task_uid: "tu".into(),
        task_id: "t".into(),
        repository: repository.into(),
        traceparent: Some("nonsense".into()),
        ..pod(version, PodPhase::Running)
    };
    let mut task = known_task(1);
    task.spec.task_id = "T_1".into();
    task.spec.repository = "org/r".into();
    let of_task = |s: &IndexState| {
        let pod = &s.pods["p"];
        assert!(Arc::ptr_eq(pod, &s.pods_of("t")[0]));
        let held = (&*pod.task_id == "T_1", &*pod.repository == "org/r");
        held == (true, true) && pod.traceparent.is_none() && s.pods_of_repository("org/r") == 1
    };
    // The order of the two watches does not matter.
    let mut s = IndexState::default();
    s.apply_pod(told(5, "forged"));
    s.apply_task(task.clone());
    assert!(of_task(&s) && s.pods_of_repository("forged") == 0);
    s.apply_pod(told(6, "forged again"));
    assert!(of_task(&s) && s.pods_of_repository("forged again") == 0);
}

#[test]
fn what_the_pods_of_an_unread_task_left_goes_when_another_task_has_its_name() {
    let of_first = |version| Pod {
        task_uid: "first".into(),
        ..pod(version, PodPhase::Running)
    };
    for is_unread in [false, true] {
        let mut s = IndexState::default();
        s.apply_unread_task(unread("t", "first", 1));
        s.apply_pod(of_first(5));
        // The pods' watch is ahead of the tasks' list.
        s.delete_pod(of_first(9));
        assert_eq!(s.tombstones_of("t").len(), 1);
        if is_unread {
            s.apply_unread_task(unread("t", "tu", 7));
        } else {
            s.apply_task(known_task(7));
        }
        s.delete_task("t", "tu");
        assert!(s == IndexState::default(), "{:?}", s.describe_tombstones());
    }
}
