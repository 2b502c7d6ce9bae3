use super::*;
use crate::{names, pod::PodPhase, task::TaskSpec};

pub(super) const LIMITS: Limits = Limits {
    pending_timeout: 900,
    node_lost_timeout: 300,
    log_drain_timeout: 900,
    task_ttl: 3_600,
};

pub(super) fn task(workers: u32) -> Task {
    Task {
        name: "t".into(),
        spec: TaskSpec {
            task_id: "t".into(),
            workers,
            ..Default::default()
        },
        ..Default::default()
    }
}

pub(super) fn pod(index: u32, attempt: u32, phase: PodPhase) -> Pod {
    Pod {
        name: names::pod_name("t", index, attempt).into(),
        uid: format!("u{index}-{attempt}"),
        index,
        attempt,
        phase,
        created: Some(0),
        started: (phase != PodPhase::Pending).then_some(1),
        finished: matches!(phase, PodPhase::Succeeded | PodPhase::Failed).then_some(2),
        ..Default::default()
    }
}

fn plan_with(task: &Task, pods: &[Arc<Pod>], gone: &[Arc<Pod>], drained: bool, now: i64) -> Plan {
    let drained = |_: &Pod| drained;
    let seen = Observed {
        api_now: Some(now),
        ..seen(pods, gone, &drained)
    };
    plan(task, seen, LIMITS, now)
}

fn seen<'a>(
    pods: &'a [Arc<Pod>],
    gone: &'a [Arc<Pod>],
    drained: &'a dyn Fn(&Pod) -> bool,
) -> Observed<'a> {
    Observed {
        pods,
        gone,
        drained,
        since: &seen_in_time,
        waited: &|_| None,
        api_now: None,
        notified: &|_| None,
        refused: &|_| None,
        first_line: &|_| None,
        wait_reason: &Default::default,
    }
}

/// Plans as a leader that was there all the time, whose clock agrees with all others.
fn seen_in_time(pod: &Pod, stage: Stage) -> i64 {
    let at = match stage {
        Stage::Waiting | Stage::PullFails | Stage::CreateFails => pod.created,
        Stage::Lost => pod.node_lost,
        Stage::Deleting => None,
        Stage::Ended => pod.finished,
    };
    at.unwrap_or(0)
}

#[test]
fn a_new_task_gets_all_its_pods_at_once() {
    let p = plan_with(&task(3), &[], &[], false, 10);
    let wanted: Vec<_> = (1..=3).map(|index| Attempt { index, attempt: 1 }).collect();
    assert_eq!(p.creates, wanted);
    assert_eq!(p.actions, []);
}

/// This holds too if the pod came before the first status was stored.
#[test]
fn it_is_told_since_when_a_worker_waited() {
    let mut t = task(1);
    t.created = 990;
    let waited = |t: &Task, pods: &[Arc<Pod>]| {
        let planned = plan_with(t, pods, &[], false, 1_000);
        let queued = planned.status.workers.iter().map(|w| w.queued);
        queued.collect::<Vec<_>>()
    };
    let seen = |index, attempt| {
        let created = Some(995);
        Arc::new(Pod {
            created,
            ..pod(index, attempt, PodPhase::Running)
        })
    };
    assert_eq!(waited(&t, &[seen(1, 1)]), [Some(990)]);
    // The task has grown after the first status was stored.
    t.status = plan_with(&t, &[seen(1, 1)], &[], false, 1_000).status;
    t.spec.workers = 2;
    assert_eq!(
        waited(&t, &[seen(1, 1), seen(2, 1)]),
        [Some(990), Some(995)]
    );
    assert_eq!(waited(&t, &[seen(1, 1)]), [Some(990), Some(1_000)]);
}

/// The next leader could not read it again.
#[test]
fn the_end_of_a_pod_that_somebody_deleted_is_stored_soon() {
    let mut t = task(2);
    let run = [1, 2].map(|n| Arc::new(pod(n, 1, PodPhase::Running)));
    t.status = plan_with(&t, &run, &[], false, 10).status;
    let done = Arc::new(pod(1, 1, PodPhase::Succeeded));
    let there = plan_with(&t, &[done.clone(), run[1].clone()], &[], false, 11);
    assert_ne!(there.status, t.status);
    assert_eq!(there.urgency, WriteUrgency::Relaxed, "it can be read again");
    let gone = plan_with(&t, &run[1..], &[done], false, 11);
    assert_eq!(gone.status, there.status);
    assert_eq!(gone.urgency, WriteUrgency::Urgent);
}

#[test]
fn a_pod_is_deleted_only_after_its_end_is_stored_and_its_logs_drained() {
    let mut t = task(1);
    let pods = [Arc::new(pod(1, 1, PodPhase::Succeeded))];
    let first = plan_with(&t, &pods, &[], true, 10);
    assert_eq!(first.actions, []);
    assert_eq!(first.status.phase, TaskPhase::Succeeded);
    t.status = first.status;
    assert_eq!(plan_with(&t, &pods, &[], false, 11).actions, []);
    let delete = Action::Delete(pods[0].clone());
    assert_eq!(plan_with(&t, &pods, &[], true, 12).actions, [delete]);
}

#[test]
fn a_worker_that_ended_beside_an_injected_container_is_done_with_at_once() {
    let mut t = task(1);
    let lives = Arc::new(Pod {
        others_run: true,
        own_end: true,
        exit_code: Some(0),
        ..pod(1, 1, PodPhase::Succeeded)
    });
    let first = plan_with(&t, std::slice::from_ref(&lives), &[], false, 10);
    assert_eq!(first.status.phase, TaskPhase::Succeeded);
    t.status = first.status;
    let pods = [lives.clone()];
    assert_eq!(plan_with(&t, &pods, &[], false, 11).actions, []);
    let delete = Action::Delete(lives.clone());
    assert_eq!(plan_with(&t, &pods, &[], true, 12).actions, [delete]);
    // The deletion of the pod, and what it does to other containers, change nothing.
    let going = Arc::new(Pod {
        deleting: true,
        disruption: Some("EvictionByEvictionAPI".into()),
        ..Pod::clone(&lives)
    });
    let later = plan_with(&t, std::slice::from_ref(&going), &[], true, 13);
    assert_eq!((&later.status, later.actions), (&t.status, vec![]));
    assert_eq!(later.absent, 1, "it holds no place");
    assert_eq!(plan_with(&t, &[], &[going], true, 14).status, t.status);
}

#[test]
fn a_retry_does_not_wait_for_containers_of_others_to_end() {
    let t = task(1);
    let pods = [Arc::new(Pod {
        others_run: true,
        reason: "ContainerStatusUnknown".into(),
        exit_code: Some(137),
        ..pod(1, 1, PodPhase::Failed)
    })];
    let first = plan_with(&t, &pods, &[], false, 10);
    let record = &first.status.workers[0];
    assert_eq!((record.attempt, record.phase), (2, WorkerPhase::Queued));
    let mut t = t;
    t.status = first.status;
    let again = plan_with(&t, &pods, &[], false, 100);
    let second = Attempt {
        index: 1,
        attempt: 2,
    };
    assert_eq!(again.creates, [second]);
}

#[test]
fn a_new_leader_has_all_the_time_for_what_ended_while_nobody_led() {
    let mut t = task(1);
    let pods = [Arc::new(pod(1, 1, PodPhase::Succeeded))];
    t.status = plan_with(&t, &pods, &[], false, 10).status;
    let at = |now| {
        let mut seen = seen(&pods, &[], &|_| false);
        seen.since = &|_, _| 5_000;
        seen.api_now = Some(now);
        plan(&t, seen, LIMITS, now)
    };
    let first = at(5_001);
    assert_eq!((first.wake_at, &first.status), (Some(5_900), &t.status));
    assert_eq!(at(5_899).status.workers[0].cut, None);
    assert_eq!(at(5_900).status.workers[0].cut, Some(1));
}

#[test]
fn a_pod_whose_logs_were_not_taken_in_time_goes_once_that_is_stored() {
    let mut t = task(1);
    let pods = [Arc::new(pod(1, 1, PodPhase::Succeeded))];
    t.status = plan_with(&t, &pods, &[], false, 10).status;
    let waits = plan_with(&t, &pods, &[], false, 2 + 899);
    assert_eq!((waits.wake_at, &waits.status), (Some(902), &t.status));
    let late = plan_with(&t, &pods, &[], false, 902);
    assert_eq!(late.actions, []);
    let told = late
        .status
        .conditions
        .last()
        .map(|c| (&*c.kind, &*c.status, &*c.message));
    let message = "otto-handler did not take the last lines of 1 worker(s) in time: 1";
    assert_eq!(told, Some(("LogsDelivered", "False", message)));
    t.status = late.status;
    assert_eq!(plan_with(&t, &pods, &[], false, 903).actions.len(), 1);
    // A pod that came too late is treated otherwise.
    let mut late = pod(1, 1, PodPhase::Running);
    late.uid = "late".into();
    let mut done = t.clone();
    done.status.workers[0].cut = None;
    let plan = plan_with(&done, &[Arc::new(late)], &[], false, 2_000);
    assert_eq!((plan.actions.len(), plan.status.workers[0].cut), (1, None));
    // It stays acknowledged, for this and later attempts.
    assert_eq!(plan_with(&t, &[], &pods, false, 904).status, t.status);
}

#[test]
fn an_end_that_was_seen_but_not_stored_deletes_nothing() {
    let mut t = task(1);
    let running = [Arc::new(pod(1, 1, PodPhase::Running))];
    t.status = plan_with(&t, &running, &[], true, 5).status;
    let ended = [Arc::new(pod(1, 1, PodPhase::Succeeded))];
    assert_eq!(plan_with(&t, &ended, &[], true, 10).actions, []);
}

#[test]
fn a_vanished_pod_is_tried_again_and_never_a_success() {
    let mut t = task(1);
    t.status = plan_with(&t, &[Arc::new(pod(1, 1, PodPhase::Running))], &[], false, 5).status;
    let p = plan_with(&t, &[], &[], false, 10);
    assert_eq!(
        (p.status.workers[0].attempt, p.status.workers[0].phase),
        (2, WorkerPhase::Queued)
    );
    assert_eq!(p.creates, []);
    t.status = p.status;
    assert_eq!(
        plan_with(&t, &[], &[], false, 11).creates,
        [Attempt {
            index: 1,
            attempt: 2
        }]
    );
}

#[test]
fn a_tombstone_tells_how_a_pod_ended() {
    let mut t = task(1);
    t.status = plan_with(&t, &[Arc::new(pod(1, 1, PodPhase::Running))], &[], false, 5).status;
    let p = plan_with(
        &t,
        &[],
        &[Arc::new(pod(1, 1, PodPhase::Succeeded))],
        false,
        10,
    );
    assert_eq!(p.status.workers[0].phase, WorkerPhase::Succeeded);
}

#[test]
fn scale_down_ends_the_last_workers_and_zero_is_final() {
    let mut t = task(2);
    let pods = [1, 2].map(|i| Arc::new(pod(i, 1, PodPhase::Running)));
    t.status = plan_with(&t, &pods, &[], false, 5).status;
    t.spec.workers = 0;
    let p = plan_with(&t, &pods, &[], false, 6);
    // The pod is not deleted before the intent is stored.
    assert_eq!(p.actions, []);
    t.status = p.status;
    assert_eq!(plan_with(&t, &pods, &[], false, 7).actions.len(), 2);
    let p = plan_with(&t, &[], &[], false, 8);
    assert_eq!(p.status.phase, TaskPhase::Cancelled);
    t.status = p.status;
    t.spec.workers = 2;
    assert_eq!(plan_with(&t, &[], &[], false, 9).creates, []);
}

#[test]
fn a_pod_made_when_its_attempt_was_over_is_deleted_and_changes_nothing() {
    let late = |attempt, phase| {
        let late = pod(1, attempt, phase);
        [Arc::new(Pod {
            uid: "late".into(),
            ..late
        })]
    };
    let deleted = |attempt, phase| {
        let [late] = late(attempt, phase);
        [Action::Delete(late)]
    };
    // The pod is one of a finished task, whose worker had another pod.
    let mut t = task(1);
    let ended = [Arc::new(pod(1, 1, PodPhase::Succeeded))];
    t.status = plan_with(&t, &ended, &[], true, 10).status;
    let p = plan_with(&t, &late(1, PodPhase::Pending), &[], false, 11);
    let delete = deleted(1, PodPhase::Pending).to_vec();
    assert_eq!((p.actions, &p.status), (delete, &t.status));
    // The pod is one of a cancelled task, whose worker had none.
    let mut t = task(1);
    t.status = plan_with(&t, &[], &[], false, 5).status;
    t.spec.workers = 0;
    t.status = plan_with(&t, &[], &[], false, 6).status;
    let p = plan_with(&t, &late(1, PodPhase::Running), &[], false, 7);
    let delete = deleted(1, PodPhase::Running).to_vec();
    assert_eq!((p.actions, &p.status), (delete, &t.status));
    // The pod is one of a former attempt: the next attempt waits until it is gone.
    let mut t = task(1);
    t.status = plan_with(&t, &[Arc::new(pod(1, 1, PodPhase::Running))], &[], false, 5).status;
    t.status = plan_with(&t, &[], &[], false, 6).status;
    t.status = plan_with(&t, &[], &[], false, 7).status;
    assert_eq!(t.status.workers[0].attempt, 2);
    let p = plan_with(&t, &late(1, PodPhase::Pending), &[], false, 8);
    let delete = deleted(1, PodPhase::Pending).to_vec();
    assert_eq!((p.actions, &p.status), (delete, &t.status));
}

#[test]
fn a_pod_of_an_attempt_that_is_over_keeps_its_logs_until_they_are_drained() {
    // The pod of attempt 2 was created, and the leader died before it stored that.
    let mut t = task(1);
    t.status = plan_with(&t, &[Arc::new(pod(1, 1, PodPhase::Running))], &[], false, 5).status;
    let pods = [
        Arc::new(pod(1, 1, PodPhase::Failed)),
        Arc::new(pod(1, 2, PodPhase::Running)),
    ];
    t.status = plan_with(&t, &pods, &[], false, 6).status;
    assert_eq!(plan_with(&t, &pods, &[], false, 7).actions, []);
    assert_eq!(
        plan_with(&t, &pods, &[], true, 7).actions,
        [Action::Delete(pods[0].clone())]
    );
}

#[test]
fn growth_after_scale_down_uses_the_next_attempt() {
    let mut t = task(2);
    let both = [1, 2].map(|i| Arc::new(pod(i, 1, PodPhase::Running)));
    t.status = plan_with(&t, &both, &[], false, 5).status;
    t.spec.workers = 1;
    t.spec.ended = [1].into();
    t.status = plan_with(&t, &both, &[], false, 6).status;
    t.status = plan_with(&t, &both[1..], &[], false, 7).status;
    assert_eq!(t.status.workers[0].phase, WorkerPhase::Terminated);
    t.spec.ended = t.spec.ended_after_growth(2);
    t.spec.workers = 2;
    assert_eq!(
        plan_with(&t, &both[1..], &[], false, 8).creates,
        [Attempt {
            index: 1,
            attempt: 2
        }]
    );
}

#[test]
fn a_finished_task_is_forgotten_after_its_ttl() {
    let mut t = task(1);
    t.status = plan_with(
        &t,
        &[Arc::new(pod(1, 1, PodPhase::Succeeded))],
        &[],
        true,
        10,
    )
    .status;
    assert_eq!(
        plan_with(&t, &[], &[], true, 10 + 3_599).wake_at,
        Some(10 + 3_600)
    );
    assert_eq!(
        plan_with(&t, &[], &[], true, 10 + 3_600).actions,
        [Action::Forget]
    );
}

#[test]
fn a_worker_of_a_lost_node_fails_in_the_end_and_is_not_tried_again() {
    let mut t = task(1);
    let silent = [Arc::new(Pod {
        node_lost: Some(50),
        ..pod(1, 1, PodPhase::Running)
    })];
    t.status = plan_with(&t, &silent, &[], false, 60).status;
    assert_eq!(t.status.workers[0].phase, WorkerPhase::Running);
    let p = plan_with(&t, &silent, &[], false, 350);
    assert_eq!(p.creates, []);
    let failed = &p.status.workers[0];
    assert_eq!(
        (failed.phase, failed.reason.as_str(), failed.attempt),
        (WorkerPhase::Failed, "NodeLost", 1)
    );
}

#[test]
fn a_worker_that_somebody_else_ended_is_tried_again() {
    let mut t = task(1);
    t.status = plan_with(&t, &[Arc::new(pod(1, 1, PodPhase::Running))], &[], false, 1).status;
    for (reason, phase) in [
        ("Deleted", PodPhase::Succeeded),
        ("Preempted", PodPhase::Failed),
    ] {
        let ended = Pod {
            deleting: reason == "Deleted",
            disruption: (reason == "Preempted").then(|| "PreemptionByScheduler".to_owned()),
            exit_code: Some(143),
            ..pod(1, 1, phase)
        };
        let p = plan_with(&t, &[Arc::new(ended)], &[], false, 3);
        let worker = &p.status.workers[0];
        assert_eq!(
            (worker.phase, worker.attempt, worker.failures),
            (WorkerPhase::Queued, 2, 1),
            "{reason}"
        );
    }
}

#[test]
fn a_pod_that_cannot_start_fails_in_the_end() {
    let t = task(1);
    let pods = [Arc::new(pod(1, 1, PodPhase::Pending))];
    assert_eq!(
        plan_with(&t, &pods, &[], false, 899).status.workers[0].phase,
        WorkerPhase::Pending
    );
    let p = plan_with(&t, &pods, &[], false, 900);
    assert_eq!(
        (
            p.status.workers[0].phase,
            p.status.workers[0].reason.as_str()
        ),
        (WorkerPhase::Failed, "PendingTimeout")
    );
}
