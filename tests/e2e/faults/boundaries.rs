//! The leader dies before and after each write of a ScaleUp, and at any moment of
//! it, while the client goes on asking the others for the same.
use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::{Duration, Instant},
};

use super::{judge_from, picture::Pictures};
use crate::{
    processes::{Cell, SOON},
    proxy::{Fault, Rule},
    support::{count_of, is_full, until, wait_for, wait_for_ok},
};

const WORKERS: usize = 100;
/// The task, its pods, and the least that tells of them: there always are so many.
const SURE_WRITES: usize = 1 + WORKERS + 1;
/// A short lease, so that many deaths take little time; and a short history.
const SETTINGS: &[(&str, &str)] = &[
    ("LEASE_DURATION", "2s"),
    ("LEASE_RENEW_DEADLINE", "1500ms"),
    ("LEASE_RETRY_PERIOD", "300ms"),
    ("LOG_DRAIN_TIMEOUT", "1s"),
    ("TASK_TTL", "60s"),
    ("MAX_WORKERS", "100000"),
];
/// Of one point: a loaded machine may take the Lease away before it is reached.
const TRIES: usize = 3;

/// When the leader dies.
#[derive(Debug, Clone, Copy)]
enum Point {
    Never,
    /// The nth write is not sent.
    Before(usize),
    /// The nth write is done, and not answered.
    After(usize),
    /// So long after the first call; what is on its way then is done.
    Moment(Duration),
}

impl Point {
    fn rule(self, task: &str) -> Rule {
        let (nth, fault) = match self {
            Self::Before(nth) => (nth, Fault::DeadBefore),
            Self::After(nth) => (nth, Fault::DeadAfter),
            // Only counts.
            Self::Never | Self::Moment(_) => (0, Fault::AnswerLate(Duration::ZERO)),
        };
        Rule {
            method: "POST|PUT|PATCH|DELETE",
            path: "/workertasks|/pods",
            about: task.to_owned(),
            nth,
            fault,
        }
    }

    /// Whether each ScaleUp comes to it.
    fn is_sure(self) -> bool {
        match self {
            Self::Never | Self::Moment(_) => true,
            Self::Before(n) | Self::After(n) => n <= SURE_WRITES,
        }
    }
}

/// How a ScaleUp went.
#[derive(Debug)]
struct Round {
    /// The point came; else all was written before.
    reached: bool,
    /// Writes about the task by the leader that died.
    writes: usize,
    /// Of the client, until it was answered in full.
    calls: usize,
    answered: Duration,
    /// All say the same.
    settled: Duration,
}

struct Rounds {
    cell: Cell,
    pictures: Pictures,
    count: usize,
}

impl Rounds {
    /// One ScaleUp, and at most one death.
    fn run(&mut self, point: Point) -> Round {
        self.count += 1;
        let task = format!("crash-{:04}", self.count);
        let names = (1..=WORKERS).map(|n| format!("otto-agent-{task}-{n}"));
        let expected: BTreeSet<String> = names.collect();
        let from = self.cell.cluster.audit_size();
        let (old, holder) = wait_for("a leader", SOON, || self.pictures.leader());
        let others = [1, 2].map(|n| self.cell.replicas[(old + n) % 3].address.clone());
        let began = Instant::now();
        let mut leader = self.cell.replicas.remove(old);
        let (cell, pictures) = (&self.cell, &self.pictures);
        let proxy = &cell.proxies[old];
        proxy.set(vec![point.rule(&task)]);
        let leads = || pictures.leader().is_some_and(|(_, h)| h == holder);
        let (reached, writes, (calls, answered)) = std::thread::scope(|s| {
            let ask = s.spawn(|| (pictures.insist(&others, &task, &expected), began.elapsed()));
            let is_hit = || proxy.hits() > 0;
            let is_settled =
                || ask.is_finished() && pictures.agree(&others, &task, WORKERS).is_ok();
            let came = wait_for_point(point, began, is_hit, is_settled);
            if matches!(point, Point::Never) {
                return (came, proxy.hits_of(0), ask.join().unwrap());
            }
            leader.signal("KILL");
            let reached = came && leads();
            leader.wait_exit();
            let writes = proxy.hits_of(0);
            proxy.heal();
            leader = cell.replica(old);
            (reached, writes, ask.join().unwrap())
        });
        self.cell.replicas.insert(old, leader);
        if !matches!(point, Point::Never) {
            wait_for("another holder", SOON, || {
                self.pictures.leader().filter(|(_, h)| *h != holder)
            });
        }
        // Whoever asks again hears the same, of the new process too.
        let replicas = [0, 1, 2].map(|n| self.cell.replicas[n].address.clone());
        for replica in &replicas {
            let replica = std::slice::from_ref(replica);
            self.pictures.insist(replica, &task, &expected);
        }
        wait_for_ok("all say the same", SOON, || {
            self.pictures.agree(&replicas, &task, WORKERS)
        });
        let settled = began.elapsed();
        let audit = judge_from(&self.cell, from, Some(&task));
        let created: BTreeSet<String> = audit.creates.into_keys().collect();
        assert_eq!(created, expected, "{point:?}: {task}");
        self.pictures.cancel(&others[0], &task);
        Round {
            reached,
            writes,
            calls,
            answered,
            settled,
        }
    }

    /// Again where the Lease went by itself before the point was reached.
    fn reach(&mut self, point: Point) -> Round {
        for _ in 1..TRIES {
            let round = self.run(point);
            if round.reached || !point.is_sure() {
                return round;
            }
            println!("{}: not reached, again: {point:?}: {round:?}", self.count);
        }
        self.run(point)
    }
}

/// Whether the point came before the end did.
fn wait_for_point(
    point: Point,
    began: Instant,
    is_hit: impl Fn() -> bool,
    is_settled: impl Fn() -> bool,
) -> bool {
    match point {
        Point::Moment(moment) => {
            until(began + moment);
            true
        }
        Point::Never => wait_for("the end", SOON, || is_settled().then_some(true)),
        Point::Before(_) | Point::After(_) => wait_for("the write, or the end", SOON, || {
            let hit = is_hit();
            (hit || is_settled()).then_some(hit)
        }),
    }
}

/// What was seen in all rounds.
#[derive(Debug, Default)]
struct Summary {
    boundaries: usize,
    /// Boundaries of status writes that did not come: all was written before.
    beyond: usize,
    /// Points that did not come, for the Lease went by itself each time.
    missed: usize,
    /// Writes before each moment's death.
    moments: Vec<usize>,
    calls: usize,
    answered: Vec<Duration>,
    settled: Vec<Duration>,
}

impl Summary {
    fn add(&mut self, point: Point, round: &Round) {
        match (point, round.reached) {
            (Point::Moment(_), true) => self.moments.push(round.writes),
            (_, true) => self.boundaries += 1,
            _ if point.is_sure() => self.missed += 1,
            _ => self.beyond += 1,
        }
        self.calls += round.calls;
        self.answered.push(round.answered);
        self.settled.push(round.settled);
    }

    fn tell(mut self, writes: usize) {
        self.moments.sort();
        println!(
            "crashes: at {} boundaries of {writes} writes ({} more did not come, {} were missed), at {} moments, after {:?} to {:?} writes, median {:?}",
            self.boundaries,
            self.beyond,
            self.missed,
            self.moments.len(),
            self.moments.first(),
            self.moments.last(),
            self.moments.get(self.moments.len() / 2),
        );
        let middle = |all: &mut Vec<Duration>| {
            all.sort();
            (all[all.len() / 2], all[all.len() - 1])
        };
        let (answered, slowest) = middle(&mut self.answered);
        let (settled, last) = middle(&mut self.settled);
        println!(
            "crashes: answered in full after median {answered:.1?}, at most {slowest:.1?}, in {} calls; all agreed after median {settled:.1?}, at most {last:.1?}",
            self.calls
        );
    }
}

/// A seed's numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }
}

/// Every write and 200 moments in the full run, else some, by a seed that is told.
fn points(writes: usize, answered: Duration) -> Vec<Point> {
    let random = RandomState::new().build_hasher().finish() as u32;
    let seed = count_of("OTTO_TEST_SEED", random as usize);
    println!("OTTO_TEST_SEED={seed}");
    let mut dice = Dice(seed as u64);
    let all = (1..=writes).flat_map(|n| [Point::Before(n), Point::After(n)]);
    let mut points: Vec<Point> = all.collect();
    let mut moments = 200;
    if !is_full() {
        points = (0..4)
            .map(|_| points.swap_remove(dice.below(points.len())))
            .collect();
        moments = 2;
    }
    // Status writes follow the answer.
    let micros = usize::try_from((answered * 5 / 4).as_micros()).unwrap();
    points.extend((0..moments).map(|_| {
        let micros = u64::try_from(dice.below(micros)).unwrap();
        Point::Moment(Duration::from_micros(micros))
    }));
    points
}

#[test]
fn a_leader_killed_at_any_write_or_moment_of_a_scale_up_leaves_it_made_once() {
    let cell = Cell::proxied("edges", SETTINGS);
    let mut rounds = Rounds {
        pictures: Pictures::of(&cell),
        count: 0,
        cell,
    };
    let from = rounds.cell.cluster.audit_size();
    // The faster one: moments after the end would try nothing out.
    let undisturbed = [rounds.run(Point::Never), rounds.run(Point::Never)];
    println!("undisturbed: {undisturbed:?}");
    let whole = undisturbed.into_iter().min_by_key(|r| r.answered).unwrap();
    assert!(whole.writes >= SURE_WRITES, "{whole:?}");
    let points = points(whole.writes, whole.answered);
    let mut seen = Summary::default();
    for point in &points {
        let round = rounds.reach(*point);
        println!("{}: {point:?}: {round:?}", rounds.count);
        seen.add(*point, &round);
    }
    let met = seen.boundaries > 0 && !seen.moments.is_empty();
    assert!(met && seen.missed * 4 <= points.len(), "{seen:?}");
    seen.tell(whole.writes);
    let audit = judge_from(&rounds.cell, from, None);
    println!(
        "crashes: {} ScaleUps of {WORKERS} in {} terms, {} pods created, each once",
        rounds.count,
        audit.terms.len(),
        audit.creates.len()
    );
    assert_eq!(audit.creates.len(), rounds.count * WORKERS);
    // Each successor wrote; the first leader may have died before it could.
    assert!(audit.terms.len() >= points.len(), "{:?}", audit.terms);
}
