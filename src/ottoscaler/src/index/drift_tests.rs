//! A property test of the index and the planning core, against a simulated API server.
//!
//! Random events: three replicas whose watches lag, break and relist independently, a leader
//! that changes, and calls and answers that are late.
//!
//! Properties:
//! - When everything in flight has arrived, each index equals a new list, and exactly the
//!   wanted pods exist.
//! - No worker is reported as lost whose end a watch has reported.
//!
//! `OTTO_TEST_SEED` repeats a history.
#![expect(clippy::unwrap_used, clippy::panic)]
mod checks;
mod leader;
mod replica;
mod server;

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
};

use self::{
    leader::{Answer, Call, Leader, carry_out},
    replica::{Replica, listed, projected},
    server::{Server, is_broken, is_terminal, uid},
};
use super::{Index, PodFeed, TaskFeed};
use crate::{
    cluster::{
        convert::{self, PodView},
        watch::WatchHandler as _,
    },
    domain::{
        names,
        pod::Pod,
        task::{MAX_PAST, Notified, Task, TaskSpec},
        unread::Unread,
        victims,
    },
};

const REPLICAS: usize = 3;
/// The number of task ids in use. Those of deleted tasks are used again.
const TASKS: usize = 10;

/// A random number generator (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.below(all.len())].clone())
    }
}

/// Counts of what happened, taken where it takes effect.
#[derive(Debug, Default)]
struct Counts {
    events: usize,
    told: usize,
    tombstones: usize,
    gone_410: usize,
    relists: usize,
    leaders: usize,
    quiet: usize,
    pods: usize,
    /// Attempts that were judged after their pod had ended and been deleted.
    ends_of_gone: usize,
    lost: usize,
    /// Attempts that ended because their node had sent no heartbeats.
    silent: usize,
    /// Workers that ScaleDown had removed and that became wanted again.
    grown: usize,
    /// Events whose objects could not be decoded.
    unread: usize,
    /// Pods whose labels and annotations somebody changed.
    relabelled: usize,
    /// Tasks that were deleted and created again at once.
    remade: usize,
    /// Transitions of second and later attempts that otto-handler received.
    retries: usize,
}

/// The lists that a new leader takes beside its watches, while they are in flight.
struct Listed {
    tasks: Vec<Task>,
    pods: Vec<Pod>,
    unread: Vec<Unread>,
    version: u64,
}

struct World {
    dice: Dice,
    seen: Counts,
    server: Server,
    replicas: Vec<Replica>,
    leader: Leader,
    listed: Option<Listed>,
    /// Calls of former leaders that are still in flight.
    stale: Vec<(leader::Work, String)>,
    /// The transitions of each worker that otto-handler received, each once.
    heard: BTreeMap<(String, u32), Vec<Notified>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            dice: Dice(seed),
            seen: Counts::default(),
            server: Server::new(),
            replicas: (0..REPLICAS).map(|_| Replica::new()).collect(),
            leader: Leader::new(0, String::new()),
            listed: None,
            stale: Vec::new(),
            heard: BTreeMap::new(),
        };
        world.change_leader();
        world
    }

    fn event(&mut self) {
        self.seen.events += 1;
        match self.dice.below(1_000) {
            0..380 => self.tell(),
            380..540 => self.pods_go_on(),
            540..680 => self.plan(),
            680..850 => (0..self.dice.below(12)).for_each(|_| self.call()),
            850..880 => self.list(),
            880..892 => self.change_leader(),
            892..915 => self.compact(),
            915..920 => self.restart(),
            920..972 => self.scale(),
            972..976 => self.remove_task(),
            976..978 => self.remake_task(),
            978..981 => self.late_call(),
            981..983 => self.break_task(),
            983..985 => self.relabel(),
            _ => self.server.now += 1 + i64::try_from(self.dice.below(5)).unwrap(),
        }
    }

    fn tell(&mut self) {
        let replica = self.dice.below(REPLICAS);
        let (tasks, burst) = (self.dice.chance(50), self.dice.chance(10));
        let replica = &mut self.replicas[replica];
        while replica.step(tasks, &self.server, &mut self.seen) && burst {}
    }

    fn pods_go_on(&mut self) {
        let names: Vec<String> = self.server.pods.objects.keys().cloned().collect();
        let Some(name) = self.dice.pick(&names) else {
            return;
        };
        let pod = &self.server.pods.objects[&name];
        let recorded = self.server.is_recorded(pod);
        let deleting = pod.metadata.deletion_timestamp.is_some();
        let runs = !pod.spec.node_name.is_empty();
        let fate = self.dice.below(100);
        if self.server.lost.contains(uid(&pod.metadata)) {
            // The node reports nothing until it is back.
            if fate < 5 {
                self.server.set_lost(&name, false);
            }
            return;
        }
        match (is_terminal(pod), runs) {
            (true, _) => {
                let uid = uid(&pod.metadata).to_owned();
                match fate {
                    0..20 if recorded || deleting => self.server.remove_pod(&name),
                    20..60 => {
                        self.server.acked.insert(uid.clone());
                        self.leader.drained.insert(uid);
                    }
                    _ => {}
                }
            }
            (false, _) if deleting => match fate {
                75.. if runs => self.server.set_lost(&name, true),
                0..40 => self.server.remove_pod(&name),
                _ => self.server.terminate(&name, 143, false),
            },
            (false, false) => match fate {
                0..80 => self.server.run(&name),
                80..90 => self.server.terminate(&name, 0, true),
                _ if recorded => self.server.remove_pod(&name),
                _ => {}
            },
            (false, true) => match fate {
                0..40 => self.server.terminate(&name, 0, false),
                40..55 => self.server.terminate(&name, 1, false),
                55..75 => self.server.terminate(&name, 137, true),
                // A user deletes the pod, with a grace period and without.
                75..85 if recorded => self.server.end(&name),
                85..95 if recorded => self.server.remove_pod(&name),
                95.. => self.server.set_lost(&name, true),
                _ => {}
            },
        }
        if self.dice.chance(10) {
            self.server.collect();
        }
    }

    fn index(&self) -> Index {
        self.replicas[self.leader.replica].index.clone()
    }

    fn plan(&mut self) {
        let index = self.index();
        let names: Vec<String> = index.tasks().iter().map(|t| t.name.clone()).collect();
        let tell = self.dice.chance(50);
        if self.leader.caught_up && self.dice.chance(5) {
            self.leader.sweep(&index);
        }
        let all = self.dice.chance(20);
        let some = if all {
            names
        } else {
            self.dice.pick(&names).into_iter().collect()
        };
        for name in some {
            self.judge(&index, &name, tell);
        }
    }

    fn judge(&mut self, index: &Index, name: &str, tell: bool) {
        let ends = self.leader.plan(index, name, self.server.now, tell);
        for (worker, transition) in std::mem::take(&mut self.leader.heard) {
            self.hear(worker, transition);
        }
        let ended = &self.replicas[self.leader.replica].ended;
        for uid in &ends.lost {
            assert!(
                !ended.contains(uid),
                "{uid} of {name} ended, and is told as lost"
            );
        }
        for uid in &ends.silent {
            let waited = self.server.silent_for(uid);
            assert!(
                waited >= leader::LIMITS.node_lost_timeout,
                "{uid}: {waited} s"
            );
        }
        self.seen.silent += ends.silent.len();
        let (_, gone) = index.pods_of(name);
        let is_gone = |uid: &&String| ended.contains(*uid) && gone.iter().any(|p| p.uid == **uid);
        self.seen.ends_of_gone += ends.known.iter().filter(is_gone).count();
        self.seen.lost += ends.lost.len();
    }

    /// Checks that otto-handler receives each attempt after the one before it, from whichever
    /// leader. Ends are exempt: a leader may decide one and lose the Lease before it is stored.
    fn hear(&mut self, worker: (String, u32), new: Notified) {
        let heard = self.heard.entry(worker.clone()).or_default();
        if heard.contains(&new) {
            return;
        }
        if new.state.is_end() {
            heard.push(new);
            return;
        }
        let last = heard.iter().rfind(|n| !n.state.is_end());
        assert!(
            last.is_none_or(|last| last.is_before(new)),
            "{new:?} of {worker:?} comes after {heard:?}"
        );
        let (uid, index) = worker.clone();
        let is_missed = |attempt: &u32| {
            let is_heard = heard.iter().any(|n| n.attempt == *attempt);
            !is_heard && self.server.made_pod(&uid, index, *attempt)
        };
        let missed = (1..new.attempt).rev().take(MAX_PAST).find(is_missed);
        assert!(
            missed.is_none(),
            "{worker:?}: {missed:?} is missing in {heard:?}, then {new:?}"
        );
        self.seen.retries += usize::from(new.attempt > 1);
        heard.push(new);
    }

    fn call(&mut self) {
        if !self.leader.calls.is_empty() {
            let at = self.dice.below(self.leader.calls.len());
            // Creates take longest, so that decisions are made while they are in flight.
            if self.leader.calls[at].is_create() && self.dice.chance(90) {
                return;
            }
            let index = self.index();
            self.leader.step(at, &mut self.server, &index);
        }
    }

    fn late_call(&mut self) {
        if !self.stale.is_empty() {
            let at = self.dice.below(self.stale.len());
            let (work, term) = self.stale.swap_remove(at);
            carry_out(&mut self.server, &work, &term);
        }
    }

    fn change_leader(&mut self) {
        self.seen.leaders += 1;
        let term = format!("term-{}", self.seen.leaders);
        self.server.term.clone_from(&term);
        let next = Leader::new(self.dice.below(REPLICAS), term);
        let former = std::mem::replace(&mut self.leader, next);
        self.listed = None;
        for call in former.calls {
            if let Call::Sent { work, term } = call
                && self.dice.chance(50)
            {
                self.stale.push((work, term));
            }
        }
    }

    /// Lists for a new leader: the first call takes the lists, the second one lets them arrive.
    fn list(&mut self) {
        let index = self.index();
        if self.leader.caught_up || !index.synced() {
            return;
        }
        let Some(listed) = self.listed.take() else {
            let (tasks, unread) = listed::<TaskFeed, _>(self.server.unfinished());
            self.listed = Some(Listed {
                tasks,
                unread,
                pods: projected::<PodFeed, _>(self.server.pods.list()),
                version: self.server.version,
            });
            return;
        };
        TaskFeed(index.clone()).apply_some(listed.tasks, listed.unread, listed.version);
        PodFeed(index).reset(listed.pods, listed.version);
        self.leader.caught_up = true;
        self.seen.relists += 2;
    }

    fn compact(&mut self) {
        let back = self.dice.below(20) as u64;
        let version = self.server.version.saturating_sub(back);
        self.server.tasks.compact(version);
        self.server.pods.compact(version);
    }

    /// Restarts a replica that does not lead.
    fn restart(&mut self) {
        let replica = self.dice.below(REPLICAS);
        if replica != self.leader.replica {
            self.replicas[replica] = Replica::new();
        }
    }

    /// Scales a task up or down, with the writes of `workers/scale.rs`.
    fn scale(&mut self) {
        let name = format!("t{}", self.dice.below(TASKS));
        let wanted = u32::try_from(self.dice.below(6)).unwrap();
        let Some(object) = self.server.tasks.objects.get(&name).cloned() else {
            let made = self.server.make_task(TaskSpec {
                task_id: name,
                repository: format!("r{}", wanted % 2),
                workers: wanted.max(1),
                ..TaskSpec::default()
            });
            let task = convert::task(made).unwrap();
            if !self.leader.caught_up {
                self.leader.made.insert(task.uid.clone());
            }
            self.leader.answered(Answer::Task(Box::new(task)));
            return;
        };
        if is_broken(&object.metadata) {
            return;
        }
        let task = convert::task(object.clone()).unwrap();
        let over = task.status.phase.is_finished() || task.spec.workers == 0 || task.deleting;
        if over || !self.leader.caught_up {
            return;
        }
        let mut changed = object;
        let spec = &mut changed.spec.0;
        if wanted > spec.workers {
            self.seen.grown += usize::from(!spec.ended.is_empty());
            spec.ended = spec.ended_after_growth(wanted);
            spec.workers = wanted;
        } else {
            let index = self.index();
            index.wrote_task(task.clone());
            let victims = victims::victims(&task, &index.workers_of(&task), wanted);
            spec.workers = match wanted {
                0 => 0,
                _ => spec.workers - u32::try_from(victims.len()).unwrap(),
            };
            spec.ended.extend(victims);
        }
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(crate::cluster::TERM.to_owned(), self.server.term.clone());
        let written = self.server.put_task(changed);
        let task = convert::task(written).unwrap();
        self.leader.answered(Answer::Task(Box::new(task)));
    }

    /// Deletes a task as a user would, at once or with finalization.
    fn remove_task(&mut self) {
        let names: Vec<String> = self.server.tasks.objects.keys().cloned().collect();
        let Some(name) = self.dice.pick(&names) else {
            return;
        };
        let mut task = self.server.tasks.objects[&name].clone();
        if task.metadata.deletion_timestamp.is_some() || self.dice.chance(50) {
            self.server.remove_task(&name);
        } else {
            task.metadata.deletion_timestamp = task.metadata.creation_timestamp.clone();
            self.server.put_task(task);
        }
    }

    /// Deletes a task and creates another one of the same name.
    fn remake_task(&mut self) {
        let names: Vec<String> = self.server.tasks.objects.keys().cloned().collect();
        let Some(name) = self.dice.pick(&names) else {
            return;
        };
        self.server.remove_task(&name);
        self.seen.remade += 1;
        let made = self.server.make_task(TaskSpec {
            task_id: name,
            workers: 2,
            ..TaskSpec::default()
        });
        if !self.leader.caught_up {
            let uid = uid(&made.metadata).to_owned();
            self.leader.made.insert(uid);
        }
    }

    /// Makes a task undecodable for all replicas, or decodable again.
    fn break_task(&mut self) {
        let names: Vec<String> = self.server.tasks.objects.keys().cloned().collect();
        if let Some(name) = self.dice.pick(&names) {
            let is_broken = is_broken(&self.server.tasks.objects[&name].metadata);
            self.server.set_broken(&name, !is_broken);
        }
    }

    fn relabel(&mut self) {
        let names: Vec<String> = self.server.pods.objects.keys().cloned().collect();
        if let Some(name) = self.dice.pick(&names) {
            let text = self
                .dice
                .pick(&[None, Some(""), Some("1"), Some("4000000000")]);
            self.server.relabel(&name, text.flatten());
            self.seen.relabelled += 1;
        }
    }
}

#[test]
fn index_and_plan_do_not_drift_whatever_happens_to_watches_calls_and_leaders() {
    let (events, least) = (100_000, 1_000);
    let seed = std::env::var("OTTO_TEST_SEED").map_or_else(
        |_| RandomState::new().hash_one(0),
        |text| text.parse().unwrap(),
    );
    println!("OTTO_TEST_SEED={seed}");
    let mut world = World::new(seed);
    for event in 1..=events {
        world.event();
        if event % 250 == 0 {
            world.quiet();
        }
    }
    world.end();
    let seen = &world.seen;
    println!("no drift: {seen:?}");
    assert!(world.server.tasks.objects.is_empty() && world.server.pods.objects.is_empty());
    let empty = Index::default();
    for replica in &world.replicas {
        assert_eq!(*replica.index.read(), *empty.read(), "something is kept");
    }
    for (what, count, least) in [
        ("tombstones", seen.tombstones, least),
        ("410 Gone", seen.gone_410, least),
        ("relists beside those", seen.relists - seen.gone_410, least),
        ("changes of leader", seen.leaders, least),
        ("pods of quiet moments", seen.pods, least),
        ("ends of pods that were gone", seen.ends_of_gone, least / 4),
        ("workers told as lost", seen.lost, least / 4),
        ("ends for lost nodes", seen.silent, 10),
        ("workers wanted again", seen.grown, 20),
        ("events that could not be decoded", seen.unread, least / 10),
        ("pods relabelled", seen.relabelled, least / 20),
        ("tasks remade", seen.remade, least / 20),
        ("transitions of retries", seen.retries, least / 4),
    ] {
        assert!(count >= least, "only {count} {what}: {seen:?}");
    }
    assert_eq!(seen.events, events);
}
