//! The states of the model: one API server, some replicas, messages between them.
//!
//! One task with one worker: attempt 0 is wanted; once it has failed and that is
//! recorded, attempt 1. What holds: states that differ only in what nobody can
//! tell (when all began, what number a version has) count as one, so time and
//! renewals have no end here; only the number of terms has.
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use fenced_lease::{
    candidate::Candidate,
    lease::{Record, Standing},
};

/// In ticks, each an arbitrary time. Strict: free after the duration, acting
/// before the deadline. Between them there is room for the tick that a clock may
/// lose in one validity, and for no more.
const LEASE: u64 = 1;
const DEADLINE: u64 = 1;
pub const ATTEMPTS: usize = 2;

pub fn ticks(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[derive(Debug, Clone)]
pub struct World {
    pub now: u64,
    pub lease: Lease,
    /// As the policy sees it: transitions and holder.
    pub seen: (u8, String),
    pub task: Task,
    pub pods: [Pod; ATTEMPTS],
    pub replicas: Vec<Replica>,
    pub under_way: Vec<Message>,
    pub crashes: u8,
    /// What went wrong on the way here.
    pub faults: Faults,
    /// The newest term whose work took effect.
    pub last_term: Option<u8>,
}

#[derive(Debug, Clone)]
pub struct Lease {
    pub version: u32,
    pub holder: String,
    pub transitions: u8,
    pub released: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Task {
    pub version: u8,
    /// Of the last write.
    pub term: Option<u8>,
    pub attempt: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd)]
pub enum Pod {
    #[default]
    Wanted,
    /// In this tick: a pod lives for longer than the policy's watch lags.
    New,
    Runs,
    Failed,
    Deleted,
}

#[derive(Debug, Clone)]
pub struct Replica {
    pub candidate: Candidate,
    /// Its own clock.
    pub clock: u64,
    /// Its clock lost a tick since it last wrote the Lease.
    pub slow: bool,
    pub incarnation: u8,
    /// The first of this process.
    pub first: u8,
    pub leading: Option<Leading>,
    /// A write of the Lease is not answered yet.
    pub waiting: bool,
}

#[derive(Debug, Clone)]
pub struct Leading {
    pub term: u8,
    pub until: Duration,
    /// What it knows of the task; None before it has listed.
    pub task: Option<Task>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Message {
    Lease {
        of: usize,
        me: String,
        pre: Option<u32>,
        write: LeaseWrite,
        /// Its sender waits no longer; it may still arrive.
        abandoned: bool,
    },
    Work {
        term: u8,
        me: String,
        work: Work,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LeaseWrite {
    Acquire,
    Renew,
    Release,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// Writes the term, and the attempt as it is: of this version of the task.
    Seal(u8),
    /// The attempt before this one has failed.
    Record {
        version: u8,
        attempt: u8,
    },
    Create {
        attempt: u8,
    },
    Delete {
        attempt: u8,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Faults {
    pub older_term: bool,
    pub created_twice: bool,
    pub two_alive: bool,
    pub went_back: bool,
    pub deleted_alive: bool,
}

impl Pod {
    pub fn alive(self) -> bool {
        matches!(self, Self::New | Self::Runs)
    }
}

impl Replica {
    pub fn new(r: usize, incarnation: u8, clock: u64) -> Self {
        let mut candidate = Candidate::new(ticks(LEASE), ticks(DEADLINE));
        candidate.become_identity(&identity(r, incarnation));
        Self {
            candidate,
            clock,
            slow: false,
            incarnation,
            first: incarnation,
            leading: None,
            waiting: false,
        }
    }

    pub fn clock(&self) -> Duration {
        ticks(self.clock)
    }

    pub fn may_act(&self) -> bool {
        self.leading
            .as_ref()
            .is_some_and(|l| self.clock() < l.until)
    }

    /// Its term is over: from now on it is another.
    pub fn demote(&mut self, r: usize) {
        self.incarnation += 1;
        self.leading = None;
        self.waiting = false;
        self.candidate
            .become_identity(&identity(r, self.incarnation));
    }

    /// How many identities ago it was `name`; None: another's.
    fn ago(&self, name: &str) -> Option<u8> {
        let (replica, incarnation) = name.split_once('.')?;
        let (mine, _) = self.candidate.me().split_once('.')?;
        (replica == mine).then(|| self.incarnation - incarnation.parse::<u8>().unwrap())
    }

    /// What of it decides what may come: times count from now, identities back
    /// from the present one.
    fn hash_into(&self, state: &mut impl Hasher, w: &World) {
        let left = |until: Duration| until.saturating_sub(self.clock());
        match self.candidate.standing(self.clock()) {
            Standing::Ours => 0_u8.hash(state),
            Standing::Free(reason) => reason.as_str().hash(state),
            Standing::HeldUntil(until) => left(until + ticks(1)).hash(state),
        }
        if self.waiting || self.leading.is_some() {
            left(self.candidate.valid_until() + ticks(1)).hash(state);
        }
        (self.slow, self.incarnation - self.first, self.waiting).hash(state);
        (self.ago(&w.lease.holder), self.ago(&w.seen.1)).hash(state);
        if let Some(l) = &self.leading {
            (l.term, left(l.until), &l.task).hash(state);
        }
        for message in &w.under_way {
            match message {
                Message::Lease {
                    pre,
                    me,
                    write,
                    abandoned,
                    ..
                } => {
                    let Some(ago) = self.ago(me) else { continue };
                    // A precondition holds, or never will.
                    let holds = *pre == Some(w.lease.version);
                    (0_u8, ago, holds, write, abandoned).hash(state);
                }
                Message::Work { term, me, work } => {
                    let Some(ago) = self.ago(me) else { continue };
                    (1_u8, ago, term, work).hash(state);
                }
            }
        }
    }
}

impl World {
    /// Before anything: a Lease that somebody released.
    pub fn new(replicas: usize) -> Self {
        let lease = Lease {
            version: 1,
            holder: String::new(),
            transitions: 0,
            released: true,
        };
        let mut world = Self {
            now: 0,
            seen: (0, String::new()),
            lease,
            task: Task::default(),
            pods: Default::default(),
            replicas: (0..replicas).map(|r| Replica::new(r, 0, 0)).collect(),
            under_way: vec![],
            crashes: 0,
            faults: Faults::default(),
            last_term: None,
        };
        world.all_observe();
        world
    }

    pub fn record(&self) -> Option<Record> {
        Some(Record {
            uid: "u".into(),
            resource_version: self.lease.version.to_string(),
            holder: self.lease.holder.clone(),
            duration: ticks(LEASE),
            released: self.lease.released,
        })
    }

    /// All hear of each write of the Lease at once: who hears later waits longer.
    pub fn all_observe(&mut self) {
        let record = self.record();
        for replica in &mut self.replicas {
            let clock = replica.clock();
            replica.candidate.observe(record.clone(), clock);
        }
    }

    /// Sorted, so that the order of sending makes no other state.
    pub fn send(&mut self, message: Message) {
        self.under_way.push(message);
        self.under_way.sort();
    }

    /// The holder's process is no more.
    pub fn holder_crashed(&self) -> bool {
        let holder = &self.lease.holder;
        let Some((replica, incarnation)) = holder.split_once('.') else {
            return false;
        };
        let replica: usize = replica.parse().unwrap();
        self.replicas[replica].first > incarnation.parse::<u8>().unwrap()
    }
}

pub fn identity(replica: usize, incarnation: u8) -> String {
    format!("{replica}.{incarnation}")
}

/// Two worlds with the same hash go on in the same way, but for the replicas'
/// names.
impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let lease = &self.lease;
        (lease.transitions, lease.released, self.seen.0).hash(state);
        (&self.task, &self.pods, self.crashes).hash(state);
        (&self.faults, self.last_term).hash(state);
        let mut replicas: Vec<u64> = self
            .replicas
            .iter()
            .map(|r| hashed(|s| r.hash_into(s, self)))
            .collect();
        replicas.sort_unstable();
        replicas.hash(state);
    }
}

fn hashed(it: impl FnOnce(&mut DefaultHasher)) -> u64 {
    let mut state = DefaultHasher::new();
    it(&mut state);
    state.finish()
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        hashed(|s| self.hash(s)) == hashed(|s| other.hash(s))
    }
}
