//! Tests plans with arbitrary histories of a task, in which one clock at a time may be wrong:
//! what a plan does and cannot undo must be right by the time that really passed.
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    tests::{LIMITS, pod, task},
    *,
};
use crate::{ledger::Ledger, pod::PodPhase, victims};

/// A time by a right clock, in seconds.
const BEGIN: i64 = 1_000_000;
const HOUR: i64 = 3_600;

/// A pod, and the right times of what happened to it.
struct Real {
    pod: Pod,
    created: i64,
    /// Whether its node does not report now, and since when it first did not.
    is_lost: bool,
    lost: Option<i64>,
    deleted: Option<i64>,
    ended: Option<i64>,
}

/// A cluster in memory, which carries actions out, some of them late or never.
struct World {
    task: Task,
    pods: BTreeMap<Arc<str>, Real>,
    created: BTreeSet<Arc<str>>,
    late: usize,
    drained: BTreeSet<String>,
    /// The newest attempt at the time when ScaleDown ended the worker.
    taken: BTreeMap<u32, u32>,
    ledger: Ledger,
    now: i64,
    /// How far the clocks of this leader, the API server and the nodes are off.
    off: (i64, i64, i64),
    /// The time at which the task's end was stored.
    finished: Option<i64>,
    forgotten: bool,
}

impl World {
    fn new() -> Self {
        Self {
            task: Task {
                created: BEGIN,
                ..task(3)
            },
            pods: BTreeMap::new(),
            created: BTreeSet::new(),
            late: 0,
            drained: BTreeSet::new(),
            taken: BTreeMap::new(),
            ledger: Ledger::default(),
            now: BEGIN,
            off: (0, 0, 0),
            finished: None,
            forgotten: false,
        }
    }

    fn put(&mut self, pod: Pod) {
        let pod = Pod {
            created: Some(self.now + self.off.1),
            ..pod
        };
        let real = Real {
            created: self.now,
            is_lost: false,
            lost: None,
            deleted: None,
            ended: None,
            pod,
        };
        self.pods.insert(real.pod.name.clone(), real);
    }

    /// Creates again what was created and is gone.
    fn late_create(&mut self, index: u32) {
        let attempts = (1..20).rev().map(|n| pod(index, n, PodPhase::Pending));
        let late = attempts
            .into_iter()
            .find(|p| self.created.contains(&p.name) && !self.pods.contains_key(&p.name));
        if let Some(late) = late.filter(|_| !self.forgotten) {
            self.late += 1;
            let uid = format!("late-{}", self.late);
            self.put(Pod { uid, ..late });
        }
    }

    fn plan(&mut self) -> Plan {
        let pods: Vec<_> = self
            .pods
            .values()
            .map(|r| Arc::new(r.pod.clone()))
            .collect();
        let now = self.now + self.off.0;
        let times = self.ledger.observe(&self.task, &[&pods], now);
        let seen = Observed {
            pods: &pods,
            gone: &[],
            drained: &|pod| self.drained.contains(&pod.uid),
            since: &|pod, stage| times.since(pod, stage).unwrap_or(now),
            waited: &|index| times.waited(index),
            api_now: Some(self.now + self.off.1),
            notified: &|_| None,
            refused: &|_| None,
            first_line: &|_| None,
            wait_reason: &Default::default,
        };
        plan(&self.task, seen, LIMITS, now)
    }

    fn reconcile(&mut self, store: bool) {
        if self.forgotten {
            return;
        }
        let plan = self.plan();
        self.judge(&plan);
        self.act(&plan.actions, &plan.creates);
        if store {
            if plan.status.phase.is_finished() {
                self.finished.get_or_insert(self.now);
            }
            self.task.status = plan.status;
        }
    }

    /// Checks that a timeout ends a worker only when that time has really passed.
    fn judge(&self, plan: &Plan) {
        for new in &plan.status.workers {
            let old = view::record(&self.task, new.index);
            let Some(real) = self
                .pods
                .values()
                .find(|r| Some(&r.pod.uid) == new.uid.as_ref())
            else {
                continue;
            };
            if old.phase.is_final() || !new.phase.is_final() || real.pod.worker_has_ended() {
                continue;
            }
            let lost = real.lost.into_iter().chain(real.deleted).min();
            let waited = match new.reason.as_str() {
                "PendingTimeout" => self.now - real.created >= LIMITS.pending_timeout,
                _ => lost.is_some_and(|at| self.now - at >= LIMITS.node_lost_timeout),
            };
            assert!(waited, "{new:?} at {}, {:?}", self.now, real.pod);
            assert!(plan.unstored_ends.contains(&new.index));
        }
    }

    fn act(&mut self, actions: &[Action], creates: &[Attempt]) {
        for Attempt { index, attempt } in creates {
            let p = pod(*index, *attempt, PodPhase::Pending);
            let others = self.pods.values().filter(|r| r.pod.index == *index);
            let lives = others.filter(|r| !r.pod.worker_has_ended()).count();
            assert_eq!(lives, 0, "a second live pod for worker {index}");
            assert!(self.created.insert(p.name.clone()), "{} made twice", p.name);
            self.put(p);
        }
        for action in actions {
            match action {
                Action::Delete(pod) => self.delete(pod),
                Action::Forget => {
                    let passed = self.finished.map(|at| self.now - at);
                    assert!(
                        passed >= Some(LIMITS.task_ttl),
                        "forgotten after {passed:?}"
                    );
                    let held = self.pods.values().filter(|r| !r.pod.deleting).count();
                    assert_eq!(held, 0, "forgotten with pods");
                    self.forgotten = true;
                    // The garbage collector deletes such a pod, as all that come late.
                    self.pods.clear();
                }
            }
        }
    }

    fn delete(&mut self, pod: &Pod) {
        let (index, attempt) = (pod.index, pod.attempt);
        let Some(real) = self
            .pods
            .get_mut(&pod.name)
            .filter(|r| r.pod.uid == pod.uid)
        else {
            return;
        };
        if real.pod.worker_has_ended() {
            let passed = real.ended.map(|at| self.now - at);
            let done = !pod.has_logs()
                || self.drained.contains(&pod.uid)
                || passed >= Some(LIMITS.log_drain_timeout);
            assert!(
                done,
                "{} goes with its logs, {passed:?} after its end",
                pod.name
            );
            self.pods.remove(&pod.name);
            return;
        }
        // A live pod is deleted only if that was asked for, or if it came or stays too late.
        let record = view::record(&self.task, index);
        let over =
            record.attempt > attempt || (record.attempt == attempt && record.phase.is_final());
        let taken = self.taken.get(&index) >= Some(&attempt);
        assert!(over || taken, "{} is wanted, and deleted", pod.name);
        real.deleted = Some(self.now);
        real.pod.deleting = true;
        if real.pod.phase == PodPhase::Pending {
            self.pods.remove(&pod.name);
        }
    }

    fn change(&mut self, step: &Step) {
        match *step {
            Step::Reconcile => self.reconcile(true),
            Step::Crash => self.reconcile(false),
            Step::Pass(seconds) => self.now += seconds,
            Step::Lead(off) => {
                self.off.0 = off;
                self.ledger = Ledger::default();
                if off != 0 {
                    self.off.1 = 0;
                }
            }
            Step::SetApi(off) if self.off.0 == 0 => self.off.1 = off,
            Step::SetApi(_) => {}
            Step::SetNodes(off) => self.off.2 = off,
            Step::Move {
                index,
                phase,
                reason,
            } => self.move_on(index, phase, reason),
            Step::Silence { index, lost } => {
                let (now, node) = (self.now, self.off.2);
                let mut live = self.pods.values_mut().filter(|r| !r.pod.worker_has_ended());
                if let Some(r) = live.find(|r| r.pod.index == index && r.pod.started.is_some()) {
                    r.is_lost = lost;
                    r.lost = r.lost.or_else(|| lost.then_some(now));
                    r.pod.node_lost = lost.then_some(now + node);
                }
            }
            Step::Drain { index } => {
                let ended = self.pods.values().filter(|r| r.pod.worker_has_ended());
                let of = ended.filter(|r| r.pod.index == index);
                self.drained.extend(of.map(|r| r.pod.uid.clone()));
            }
            // Only what a stored status has seen counts: an unseen loss looks like
            // a pod that was never created.
            Step::Vanish { index } => {
                let workers = &self.task.status.workers;
                let seen: BTreeSet<_> = workers.iter().filter_map(|w| w.uid.clone()).collect();
                self.pods
                    .retain(|_, r| r.pod.index != index || !seen.contains(&r.pod.uid));
            }
            Step::Late { index } => self.late_create(index),
            Step::Scale { workers } => self.scale(workers),
        }
    }

    fn move_on(&mut self, index: u32, phase: PodPhase, reason: &str) {
        let (now, node) = (self.now, self.off.2);
        let ended = matches!(phase, PodPhase::Succeeded | PodPhase::Failed);
        let live = |r: &&mut Real| !r.pod.worker_has_ended() && !r.is_lost;
        let mut live = self.pods.values_mut().filter(live);
        if let Some(r) = live.find(|r| r.pod.index == index) {
            // A pod that a node refuses never starts.
            let started = if reason.starts_with("OutOf") {
                r.pod.started
            } else {
                r.pod.started.or(Some(now + node))
            };
            r.pod = Pod {
                phase,
                started,
                finished: ended.then_some(now + node),
                reason: reason.to_owned(),
                ..r.pod.clone()
            };
            r.ended = ended.then_some(now);
            if r.ended.is_some() && r.pod.deleting {
                let name = r.pod.name.clone();
                self.pods.remove(&name);
            }
        }
    }

    /// Changes the task as ScaleUp and ScaleDown do.
    fn scale(&mut self, workers: u32) {
        let task = &mut self.task;
        if task.status.phase.is_finished() {
            return;
        }
        if workers >= task.spec.workers {
            task.spec.ended = task.spec.ended_after_growth(workers);
            task.spec.workers = workers;
            return;
        }
        let ended = victims::victims(task, &view::workers(task, &[]), workers);
        for index in &ended {
            let newest = (1..20).rev().find(|n| {
                let name = crate::names::pod_name("t", *index, *n);
                self.created.contains(&*name)
            });
            self.taken.insert(*index, newest.unwrap_or(0));
        }
        task.spec.workers -= u32::try_from(ended.len()).unwrap_or(0);
        task.spec.ended.extend(ended);
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// The leader plans, stores and acts.
    Reconcile,
    /// The leader plans and acts, and crashes before the status is stored.
    Crash,
    Pass(i64),
    /// Another leader takes over, whose clock is off by this much; it may follow a crash.
    Lead(i64),
    /// Somebody sets the API server's clock.
    SetApi(i64),
    SetNodes(i64),
    Move {
        index: u32,
        phase: PodPhase,
        reason: &'static str,
    },
    /// The worker's node stops to report, or reports again.
    Silence {
        index: u32,
        lost: bool,
    },
    Drain {
        index: u32,
    },
    Vanish {
        index: u32,
    },
    /// A former leader's create takes effect.
    Late {
        index: u32,
    },
    Scale {
        workers: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let off = || prop::sample::select(vec![0, HOUR, -HOUR, 48 * HOUR, -48 * HOUR]);
    let ends = prop::sample::select(vec![
        (PodPhase::Running, ""),
        (PodPhase::Running, ""),
        (PodPhase::Succeeded, ""),
        (PodPhase::Failed, "Error"),
        (PodPhase::Failed, "Evicted"),
        (PodPhase::Failed, "OutOfcpu"),
    ]);
    let index = || 1_u32..5;
    prop_oneof![
        8 => Just(Step::Reconcile),
        1 => Just(Step::Crash),
        4 => prop::sample::select(vec![1, 5, 60, 299, 400, 901]).prop_map(Step::Pass),
        1 => off().prop_map(Step::Lead),
        1 => off().prop_map(Step::SetApi),
        1 => off().prop_map(Step::SetNodes),
        6 => (index(), ends)
            .prop_map(|(index, (phase, reason))| Step::Move { index, phase, reason }),
        2 => (index(), any::<bool>()).prop_map(|(index, lost)| Step::Silence { index, lost }),
        1 => index().prop_map(|index| Step::Drain { index }),
        1 => index().prop_map(|index| Step::Vanish { index }),
        1 => index().prop_map(|index| Step::Late { index }),
        3 => (1_u32..5).prop_map(|workers| Step::Scale { workers }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// From any history, planning goes on to a finished task whose pods are gone, but for
    /// those on nodes that are not heard of, which are told to go and hold no place; and it
    /// never made two pods for one attempt or two live ones for a worker, ended none before
    /// its time, deleted none that is wanted, and no log before its time.
    #[test]
    fn any_history_converges_and_nothing_ends_before_its_time(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World::new();
        for step in &steps {
            world.now += 1;
            world.change(step);
        }
        for _ in 0..80 {
            world.now += 20;
            world.reconcile(true);
            for index in 1..8 {
                world.move_on(index, PodPhase::Succeeded, "");
                world.change(&Step::Drain { index });
            }
        }
        // Workers that were seen late still have their time.
        for _ in 0..4 {
            world.now += LIMITS.pending_timeout.max(LIMITS.log_drain_timeout);
            world.reconcile(true);
        }
        prop_assert!(world.task.status.phase.is_finished(), "{:?}", world.task.status);
        let lost = world.pods.values().filter(|r| r.is_lost).count();
        let there: Vec<_> = world.pods.values().map(|r| &r.pod).collect();
        prop_assert_eq!(there.len(), lost, "{:?}", there);
        prop_assert!(there.iter().all(|p| p.deleting), "{:?}", there);
        if !world.forgotten {
            prop_assert_eq!(world.plan().absent, lost);
        }
    }
}
