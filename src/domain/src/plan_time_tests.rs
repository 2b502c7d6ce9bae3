//! Tests plans over time: growth after shrinking, and ends that the leader decides.
use super::{
    tests::{LIMITS, pod, task},
    *,
};
use crate::{ledger::Ledger, pod::PodPhase};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// A leader, its task, and what it sees.
struct Leader {
    task: Task,
    ledger: Ledger,
    pods: Vec<Pod>,
    drained: bool,
    /// The time by a right clock, and how far the clocks of this leader and the API server are off.
    now: i64,
    off: i64,
    api_off: i64,
}

impl Leader {
    fn new(workers: u32) -> Self {
        Self {
            task: task(workers),
            ledger: Ledger::default(),
            pods: Vec::new(),
            drained: false,
            now: 30 * DAY,
            off: 0,
            api_off: 0,
        }
    }

    /// Another leader takes over, with a clock of its own.
    fn change(&mut self, off: i64) {
        self.ledger = Ledger::default();
        self.off = off;
    }

    fn look(&mut self) -> Plan {
        let pods: Vec<_> = self.pods.iter().cloned().map(Arc::new).collect();
        let now = self.now + self.off;
        let times = self.ledger.observe(&self.task, &[&pods], now);
        let seen = Observed {
            pods: &pods,
            gone: &[],
            drained: &|_| self.drained,
            since: &|pod, stage| times.since(pod, stage).unwrap_or(now),
            waited: &|index| times.waited(index),
            api_now: Some(self.now + self.api_off),
            notified: &|_| None,
            refused: &|_| None,
            first_line: &|_| None,
            wait_reason: &Default::default,
        };
        plan(&self.task, seen, LIMITS, now)
    }

    fn look_after(&mut self, seconds: i64) -> Plan {
        self.now += seconds;
        self.look()
    }

    fn store(&mut self, seconds: i64) -> Plan {
        let plan = self.look_after(seconds);
        self.task.status = plan.status.clone();
        plan
    }

    fn worker(&mut self, index: u32) -> WorkerRecord {
        view::record(&self.task, index).into_owned()
    }

    fn end(&mut self, n: usize, phase: PodPhase) {
        self.pods[n].phase = phase;
    }
}

/// Returns the attempts whose pods are deleted.
fn deletes(plan: &Plan) -> Vec<u32> {
    let attempt = |a: &Action| match a {
        Action::Delete(pod) => Some(pod.attempt),
        Action::Forget => None,
    };
    plan.actions.iter().filter_map(attempt).collect()
}

/// Two workers run, one is ended by ScaleDown, and two more are wanted again.
fn grown_after_shrinking() -> Leader {
    let mut leader = Leader::new(2);
    leader.pods = [1, 2].map(|n| pod(n, 1, PodPhase::Running)).into();
    leader.store(1);
    leader.task.spec.workers = 1;
    leader.task.spec.ended = [2].into();
    leader.store(1);
    assert_eq!(deletes(&leader.look()), [1]);
    leader.pods.pop();
    leader.task.spec.ended.clear();
    leader.task.spec.workers = 2;
    leader
}

#[test]
fn growth_after_shrinking_makes_one_attempt_and_it_lives_stored_or_not() {
    for stored in [true, false] {
        let mut leader = grown_after_shrinking();
        let plan = leader.look_after(1);
        let next = Attempt {
            index: 2,
            attempt: 2,
        };
        assert_eq!(plan.creates, [next]);
        if stored {
            leader.task.status = plan.status;
        } else {
            // The pod is created at once, and the leader dies before it stores that.
            leader.change(0);
        }
        leader.pods.push(pod(2, 2, PodPhase::Running));
        for _ in 0..3 {
            let plan = leader.store(1);
            assert_eq!((deletes(&plan), plan.creates), (vec![], vec![]));
            let worker = leader.worker(2);
            assert_eq!((worker.attempt, worker.stopping), (2, false));
        }
    }
}

/// The reader of its logs may be away for long.
#[test]
fn growth_does_not_wait_for_the_logs_of_the_attempt_that_was_stopped() {
    let mut leader = grown_after_shrinking();
    leader.pods.push(pod(2, 1, PodPhase::Failed));
    let plan = leader.store(1);
    assert_eq!((plan.creates.len(), deletes(&plan)), (1, vec![]));
    assert_eq!(deletes(&leader.look()), [0; 0], "its logs wait");
    leader.drained = true;
    assert_eq!(deletes(&leader.look()), [1]);
}

#[test]
fn logs_that_were_cut_are_told_for_good_and_cut_no_other_attempts() {
    let mut leader = Leader::new(1);
    leader.pods = vec![pod(1, 1, PodPhase::Running)];
    leader.store(1);
    leader.pods[0].phase = PodPhase::Failed;
    leader.pods[0].reason = "Evicted".into();
    leader.store(1);
    let plan = leader.store(LIMITS.log_drain_timeout);
    assert_eq!((leader.worker(1).cut, deletes(&plan)), (Some(1), vec![]));
    assert_eq!(deletes(&leader.store(1)), [1]);
    leader.pods = vec![pod(1, 2, PodPhase::Succeeded)];
    let plan = leader.store(1);
    assert_eq!(leader.worker(1).cut, Some(1));
    assert_eq!(
        plan.status.conditions.last().map(|c| &*c.kind),
        Some("LogsDelivered")
    );
    let plan = leader.store(LIMITS.log_drain_timeout);
    assert_eq!((leader.worker(1).cut, deletes(&plan)), (Some(2), vec![]));
    assert_eq!(deletes(&leader.store(1)), [2]);
}

#[test]
fn a_worker_that_ended_by_itself_keeps_its_logs_though_scale_down_took_it() {
    let mut leader = Leader::new(1);
    leader.pods = vec![pod(1, 1, PodPhase::Running)];
    leader.store(1);
    leader.task.spec.workers = 0;
    leader.store(1);
    leader.end(0, PodPhase::Succeeded);
    assert_eq!(deletes(&leader.look()), [0; 0]);
    leader.store(1);
    assert_eq!(leader.worker(1).phase, WorkerPhase::Terminated);
    assert_eq!(deletes(&leader.look()), [0; 0]);
    leader.drained = true;
    assert_eq!(deletes(&leader.look()), [1]);
}

#[test]
fn an_end_that_the_leader_decides_is_told_once_it_is_stored_and_its_pod_goes_at_once() {
    let pending = pod(1, 1, PodPhase::Pending);
    let silent = Pod {
        node_lost: Some(0),
        ..pod(1, 1, PodPhase::Running)
    };
    for (stuck, reason) in [(pending, "PendingTimeout"), (silent, "NodeLost")] {
        let mut leader = Leader::new(1);
        leader.pods = vec![stuck];
        leader.store(1);
        let plan = leader.look_after(LIMITS.pending_timeout);
        assert_eq!(plan.status.workers[0].reason, reason);
        assert_eq!(plan.unstored_ends, [1].into());
        // The pod runs after all, and succeeds before the end is stored: that is a success.
        let mut lucky = pod(1, 1, PodPhase::Succeeded);
        std::mem::swap(&mut leader.pods[0], &mut lucky);
        let truth = leader.look();
        assert_eq!(truth.status.workers[0].phase, WorkerPhase::Succeeded);
        assert!(truth.unstored_ends.is_empty(), "its pod tells it");
        // The end is stored, and the pod runs after all.
        leader.task.status = plan.status;
        leader.pods[0] = pod(1, 1, PodPhase::Running);
        let plan = leader.look();
        assert_eq!((deletes(&plan), plan.unstored_ends), (vec![1], [].into()));
        assert_eq!(plan.status.workers[0].reason, reason);
    }
}

#[test]
fn what_nobody_saw_end_is_told_once_that_is_stored() {
    let mut leader = Leader::new(2);
    leader.pods = [1, 2].map(|n| pod(n, 1, PodPhase::Running)).into();
    leader.store(1);
    leader.task.spec.workers = 0;
    leader.store(1);
    leader.pods.clear();
    let plan = leader.store(1);
    assert_eq!(plan.status.phase, TaskPhase::Cancelled);
    assert_eq!(plan.unstored_ends, [1, 2].into());
    assert!(leader.look().unstored_ends.is_empty());
}

/// The clock of the leader, and those by which the API server and the nodes stamp.
fn clocks() -> Vec<(i64, i64, i64)> {
    let off = [HOUR, -HOUR, 15 * 60, 3 * DAY, -3 * DAY];
    let each = |n: i64| [(n, 0, 0), (0, n, 0), (0, 0, n)];
    off.into_iter().flat_map(each).collect()
}

#[test]
fn a_pod_has_its_time_to_start_whatever_any_clock_says() {
    for (leader_off, api_off, _) in clocks() {
        let mut leader = Leader::new(1);
        let created = Some(leader.now + api_off);
        leader.pods = vec![Pod {
            created,
            ..pod(1, 1, PodPhase::Pending)
        }];
        leader.store(1);
        leader.change(leader_off);
        leader.api_off = api_off;
        let first = leader.store(10);
        assert_eq!(leader.worker(1).phase, WorkerPhase::Pending);
        assert_eq!(
            first.wake_at,
            Some(leader.now + leader.off + LIMITS.pending_timeout)
        );
        leader.store(LIMITS.pending_timeout - 1);
        assert_eq!(leader.worker(1).phase, WorkerPhase::Pending);
        leader.store(1);
        assert_eq!(leader.worker(1).reason, "PendingTimeout");
    }
}

/// The row without a time of the end is that of an evicted pod whose containers never ran, or
/// of one whose node's clock nobody knows.
#[test]
fn logs_are_cut_after_the_leader_saw_the_end_for_their_time_whatever_any_clock_says() {
    for (off, api_off, node) in clocks() {
        for finished in [None, Some(30 * DAY + node)] {
            let mut leader = Leader::new(1);
            leader.pods = vec![Pod {
                started: Some(30 * DAY + node),
                finished,
                ..pod(1, 1, PodPhase::Failed)
            }];
            (leader.off, leader.api_off) = (off, api_off);
            leader.store(1);
            leader.store(LIMITS.log_drain_timeout - 1);
            assert_eq!(leader.worker(1).cut, None);
            let plan = leader.store(1);
            assert_eq!((leader.worker(1).cut, deletes(&plan)), (Some(1), vec![]));
            assert_eq!(deletes(&leader.look()), [1]);
        }
    }
}

#[test]
fn a_finished_task_is_forgotten_when_both_clocks_say_so_and_no_step_of_one_takes_it_early() {
    let finished = |off, api_off| {
        let mut leader = Leader::new(1);
        leader.task.created = leader.now - 60;
        (leader.off, leader.api_off) = (off, api_off);
        leader.pods = vec![pod(1, 1, PodPhase::Succeeded)];
        leader.store(0);
        leader.pods.clear();
        leader
    };
    for step in [HOUR, -HOUR, 3 * DAY, -3 * DAY, 400 * DAY] {
        for api in [false, true] {
            let (off, api_off) = if api { (0, step) } else { (step, 0) };
            // The clock steps after the end, and the leader goes on with it.
            let mut leader = finished(0, 0);
            leader.change(off);
            leader.api_off = api_off;
            let plan = leader.look_after(LIMITS.task_ttl - 1);
            assert_eq!(plan.actions, [], "{off} {api_off}");
            assert!(plan.wake_at.is_some());
            leader.change(0);
            leader.api_off = 0;
            assert_eq!(leader.look_after(1).actions, [Action::Forget]);
            // The clock was off when the end was stored.
            let mut leader = finished(off, api_off);
            leader.change(0);
            leader.api_off = 0;
            assert_eq!(leader.look_after(LIMITS.task_ttl - 1).actions, []);
            if step < 0 {
                assert_eq!(leader.look_after(1).actions, [Action::Forget]);
            }
        }
    }
    // What a person stored does not end the worker.
    for end in [i64::MIN, i64::MAX] {
        let mut leader = finished(0, 0);
        leader.task.status.finished_at = Some(end);
        let plan = leader.look_after(LIMITS.task_ttl - 61);
        assert_eq!((plan.actions, plan.wake_at.is_some()), (vec![], true));
    }
}

#[test]
fn a_task_stays_until_the_logs_of_its_pods_are_drained_or_cut() {
    let mut leader = Leader::new(1);
    leader.pods = vec![pod(1, 1, PodPhase::Succeeded)];
    leader.store(1);
    let ttl = LIMITS.task_ttl;
    let limits = Limits {
        task_ttl: 10,
        ..LIMITS
    };
    assert!(limits.task_ttl < limits.log_drain_timeout && ttl > 10);
    leader.task.status.finished_at = leader.task.status.finished_at.map(|at| at - ttl);
    assert_eq!(leader.look_after(60).actions, []);
    leader.drained = true;
    assert_eq!(deletes(&leader.look()), [1]);
    leader.pods.clear();
    assert_eq!(leader.look().actions, [Action::Forget]);
}

#[test]
fn a_worker_that_waits_for_another_try_waits_no_longer_than_that_by_any_clock() {
    for (off, ..) in clocks() {
        let mut leader = Leader::new(1);
        leader.pods = vec![Pod {
            reason: "Evicted".into(),
            ..pod(1, 1, PodPhase::Failed)
        }];
        leader.change(off);
        leader.store(1);
        assert_eq!(leader.worker(1).attempt, 2);
        leader.change(0);
        leader.look();
        assert_eq!(leader.look_after(1).creates.len(), 1, "{off}");
    }
}

/// A node refuses each pod at once. Returns when the pods were created, and the worker in the
/// end.
fn refused(leader: &mut Leader, seconds: i64) -> (Vec<i64>, WorkerRecord) {
    let (begin, mut created) = (leader.now, Vec::new());
    for _ in 0..seconds {
        leader.pods.clear();
        for which in leader.store(1).creates {
            created.push(leader.now - begin);
            leader.pods.push(Pod {
                reason: "OutOfcpu".into(),
                message: "Node didn't have enough resource: cpu".into(),
                started: None,
                ..pod(which.index, which.attempt, PodPhase::Failed)
            });
            leader.store(0);
        }
    }
    let worker = leader.worker(1);
    (created, worker)
}

#[test]
fn a_node_that_refuses_every_try_is_asked_ever_less_often_until_the_pending_timeout() {
    let mut leader = Leader::new(1);
    let (created, worker) = refused(&mut leader, 1_000);
    let between: Vec<i64> = created.windows(2).map(|w| w[1] - w[0]).collect();
    assert_eq!(between[..7], [1, 2, 4, 8, 16, 32, 60]);
    assert!(
        between[7..].iter().all(|s| *s <= 60) && created.len() < 25,
        "{created:?}"
    );
    let last = created.last().copied().unwrap_or(0);
    assert!((900..=902).contains(&last), "{last}");
    let end = (worker.phase, worker.reason.as_str(), worker.failures);
    assert_eq!(end, (WorkerPhase::Failed, "OutOfcpu", 0));
    assert!(worker.message.contains("enough resource"));
}

#[test]
fn a_new_leader_goes_on_with_the_backoff_and_ends_the_tries_too() {
    for off in [0, HOUR, -HOUR] {
        let mut leader = Leader::new(1);
        refused(&mut leader, 200);
        leader.change(off);
        let (created, worker) = refused(&mut leader, 1_100);
        assert!(created.len() <= 900 / 60 + 2, "{created:?}");
        assert_eq!(worker.reason, "OutOfcpu");
        assert_eq!(worker.phase, WorkerPhase::Failed);
    }
}

#[test]
fn a_start_ends_a_row_of_tries_and_growth_begins_another() {
    let mut leader = Leader::new(1);
    refused(&mut leader, 100);
    assert!(leader.worker(1).tries > 5);
    let attempt = leader.worker(1).attempt;
    leader.pods = vec![pod(1, attempt, PodPhase::Failed)];
    leader.pods[0].reason = "Evicted".into();
    leader.store(60);
    let worker = leader.worker(1);
    assert_eq!((worker.tries, worker.failures), (0, 1));
    let mut leader = grown_after_shrinking();
    leader.task.status.workers[1].tries = 9;
    leader.store(1);
    let worker = leader.worker(2);
    assert_eq!(
        (worker.attempt, worker.tries, worker.not_before),
        (2, 0, None)
    );
}

#[test]
fn a_deleted_worker_on_a_lost_node_is_lost_in_time_and_so_is_one_that_scale_down_took() {
    for wanted in [true, false] {
        // Only the node controller reports a lost node: kubelets write `Ready` themselves.
        for node_lost in [Some(3), None] {
            let mut leader = Leader::new(1);
            leader.pods = vec![pod(1, 1, PodPhase::Running)];
            leader.store(1);
            leader.task.spec.workers = u32::from(wanted);
            leader.store(1);
            leader.pods[0].deleting = true;
            leader.pods[0].node_lost = node_lost;
            let begun = leader.store(1);
            let due = leader.now + LIMITS.node_lost_timeout;
            assert_eq!((begun.wake_at, begun.absent), (Some(due), 0));
            assert!(!leader.worker(1).phase.is_final());
            let plan = leader.store(LIMITS.node_lost_timeout);
            assert_eq!(plan.unstored_ends, [1].into());
            let worker = leader.worker(1);
            let end = match wanted {
                true => (WorkerPhase::Failed, "NodeLost"),
                false => (WorkerPhase::Terminated, "ScaledDown"),
            };
            assert_eq!((worker.phase, worker.reason.as_str()), end);
            assert_eq!(worker.message, attempts::LOST);
            // Nobody knows when the pod will be gone: it holds no place, and its task is over.
            assert_eq!(leader.look().absent, 1);
            assert!(leader.task.status.phase.is_finished());
        }
    }
}

/// The pod may still run: no other is created beside it, and nobody knows when it will be gone.
#[test]
fn growth_behind_a_pod_on_a_lost_node_fails_in_time() {
    let mut leader = grown_after_shrinking();
    leader.store(1);
    assert_eq!(leader.worker(2).attempt, 2);
    leader.pods.push(Pod {
        node_lost: Some(3),
        deleting: true,
        ..pod(2, 1, PodPhase::Running)
    });
    let plan = leader.store(1);
    assert_eq!(
        (plan.creates, leader.worker(2).phase),
        (vec![], WorkerPhase::Queued)
    );
    let plan = leader.store(LIMITS.node_lost_timeout);
    assert_eq!((plan.creates, plan.unstored_ends), (vec![], [2].into()));
    assert_eq!(leader.worker(2).reason, "NodeLost");
}

#[test]
fn a_pull_error_counts_from_the_first_one_and_the_kubelets_next_try_cures_it() {
    let mut leader = Leader::new(1);
    leader.pods = vec![pod(1, 1, PodPhase::Pending)];
    leader.store(1);
    let mut phase_after = |reason: &str, seconds| {
        leader.pods[0].reason = reason.into();
        leader.store(0);
        let plan = leader.store(seconds);
        (
            leader.worker(1).phase,
            plan.wake_at.map(|at| at - leader.now),
        )
    };
    let pending = |left| (WorkerPhase::Pending, Some(left));
    // A slow init container comes first.
    phase_after("", 50);
    assert_eq!(phase_after("ErrImagePull", 15), pending(30));
    assert_eq!(phase_after("ImagePullBackOff", 29), pending(1));
    // The pull succeeds, and another image cannot be pulled later.
    phase_after("PodInitializing", 100);
    assert_eq!(phase_after("ErrImagePull", 44), pending(1));
    // The image is there, and its container cannot be created.
    assert_eq!(phase_after("CreateContainerError", 44), pending(1));
    let (phase, _) = phase_after("CreateContainerConfigError", 1);
    assert_eq!(phase, WorkerPhase::Failed);
}
