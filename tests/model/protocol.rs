//! What may happen next, and what must hold.
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use fenced_lease::lease::{AcquireReason, Standing};
use stateright::Property;

use crate::world::{ATTEMPTS, Leading, LeaseWrite, Message, Pod, Replica, Task, Work, World};

/// What production has; a test takes one away.
#[derive(Debug, Clone)]
pub struct Walls {
    pub precondition: bool,
    pub silence: bool,
    pub clock: bool,
    pub policy: bool,
    pub version: bool,
    pub drained: bool,
}

impl Default for Walls {
    fn default() -> Self {
        Self {
            precondition: true,
            silence: true,
            clock: true,
            policy: true,
            version: true,
            drained: true,
        }
    }
}

/// How far the policy's Lease may lag behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lag {
    None,
    WithinTick,
}

#[derive(Debug, Clone)]
pub struct Model {
    pub replicas: usize,
    pub terms: u8,
    /// Writes of the work under way at a time.
    pub under_way: usize,
    pub walls: Walls,
    pub lag: Lag,
    pub sights: Arc<Sights>,
}

/// What must be possible; not part of a state, so that states stay few.
#[derive(Debug, Default)]
pub struct Sights {
    pub second_term: AtomicBool,
    pub by_clock: AtomicBool,
    pub by_policy: AtomicBool,
    pub by_version: AtomicBool,
    pub retried: AtomicBool,
    pub released_and_taken: AtomicBool,
    pub dead_and_taken: AtomicBool,
}

fn saw(sight: &AtomicBool, it: bool) {
    if it {
        sight.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A tick; the clock of one may not count it.
    Tick(Option<usize>),
    /// Reads the Lease and writes it.
    Contend(usize),
    Release(usize),
    /// The kubelet's word on the crashed holder reaches a candidate.
    HearDeath(usize),
    /// Lists, or hears by its watch or by an answer.
    Look(usize),
    Send(usize, Part),
    Demote(usize),
    Crash(usize),
    PodFails,
    PolicySees,
    /// Arrives; who still waits for the answer gets it.
    Deliver(usize),
    /// Its sender waits no longer.
    Abandon(usize),
    Lose(usize),
}

/// Of a leader's work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Part {
    Seal,
    Record,
    Create,
    Delete,
}

impl Model {
    fn deliver(&self, w: &mut World, message: Message) {
        match message {
            Message::Lease {
                of,
                me,
                pre,
                write,
                abandoned,
            } => self.write_lease(w, of, &me, pre, write, !abandoned),
            Message::Work { term, me, work } => {
                if self.accepts(w, term, &me, work) {
                    // A delete follows what was recorded: a late one is none too many.
                    let counts = !matches!(work, Work::Delete { .. });
                    w.faults.older_term |= counts && w.last_term.is_some_and(|last| term < last);
                    saw(
                        &self.sights.second_term,
                        w.last_term.is_some_and(|last| term > last),
                    );
                    w.last_term = w.last_term.max(Some(term));
                    self.take_effect(w, term, work);
                }
            }
        }
    }

    /// The API server's say: version or name, then policy.
    fn accepts(&self, w: &World, term: u8, me: &str, work: Work) -> bool {
        let there = match work {
            Work::Seal(version) | Work::Record { version, .. } => {
                let same = !self.walls.version || w.task.version == version;
                saw(&self.sights.by_version, !same);
                same
            }
            Work::Create { attempt } => {
                matches!(w.pods[usize::from(attempt)], Pod::Wanted | Pod::Deleted)
            }
            Work::Delete { attempt } => {
                !matches!(w.pods[usize::from(attempt)], Pod::Wanted | Pod::Deleted)
            }
        };
        // A delete is no write that the policy can bind to a term.
        let bound = !matches!(work, Work::Delete { .. }) && self.walls.policy;
        let admitted = !bound || w.seen == (term, me.to_owned());
        saw(&self.sights.by_policy, there && !admitted);
        there && admitted
    }

    fn take_effect(&self, w: &mut World, term: u8, work: Work) {
        match work {
            Work::Seal(_) => {
                w.task.version += 1;
                w.task.term = Some(term);
            }
            Work::Record { attempt, .. } => {
                w.faults.went_back |= attempt <= w.task.attempt;
                w.task = Task {
                    version: w.task.version + 1,
                    term: Some(term),
                    attempt,
                };
            }
            Work::Create { attempt } => {
                w.faults.two_alive |= w.pods.iter().any(|p| p.alive());
                let pod = &mut w.pods[usize::from(attempt)];
                w.faults.created_twice |= *pod != Pod::Wanted;
                *pod = match self.lag {
                    Lag::None => Pod::Runs,
                    Lag::WithinTick => Pod::New,
                };
                saw(&self.sights.retried, attempt > 0);
            }
            Work::Delete { attempt } => {
                let pod = &mut w.pods[usize::from(attempt)];
                w.faults.deleted_alive |= pod.alive();
                *pod = Pod::Deleted;
            }
        }
    }

    fn write_lease(
        &self,
        w: &mut World,
        of: usize,
        me: &str,
        pre: Option<u32>,
        write: LeaseWrite,
        answered: bool,
    ) {
        let answered = answered && w.replicas[of].candidate.me() == me;
        if answered {
            w.replicas[of].waiting = false;
        }
        if self.walls.precondition && pre != Some(w.lease.version) {
            return;
        }
        w.lease.version += 1;
        match write {
            LeaseWrite::Acquire => {
                saw(&self.sights.released_and_taken, w.lease.released);
                w.lease.transitions += 1;
                w.lease.holder = me.to_owned();
                w.lease.released = false;
            }
            LeaseWrite::Renew => w.lease.holder = me.to_owned(),
            LeaseWrite::Release => {
                w.lease.holder = String::new();
                w.lease.released = true;
            }
        }
        w.all_observe();
        self.forget(w);
        if self.lag == Lag::None {
            w.seen = (w.lease.transitions, w.lease.holder.clone());
        }
        if !answered {
            return;
        }
        let transitions = w.lease.transitions;
        let replica = &mut w.replicas[of];
        let until = replica.candidate.valid_until();
        match &mut replica.leading {
            None => {
                replica.leading = Some(Leading {
                    term: transitions,
                    until,
                    task: None,
                });
            }
            Some(l) => l.until = until,
        }
    }

    /// What nobody waits for and what can do nothing is gone.
    fn forget(&self, w: &mut World) {
        let version = w.lease.version;
        if self.walls.precondition {
            w.under_way.retain(|m| {
                !matches!(m, Message::Lease { abandoned: true, pre, .. } if *pre != Some(version))
            });
        }
    }

    /// What `r` would write into the Lease now. One operation at a time; a renewal
    /// at most once a tick.
    fn intent(&self, w: &World, r: usize) -> Option<LeaseWrite> {
        let replica = &w.replicas[r];
        let clock = replica.clock();
        let leads = replica.leading.is_some();
        if replica.waiting || (leads && replica.candidate.sent() == clock) {
            return None;
        }
        let standing = replica.candidate.standing(clock);
        let write = match standing {
            // Without a term: the answer to its first write was lost.
            Standing::Ours if replica.may_act() || !leads => LeaseWrite::Renew,
            Standing::Free(_) if !leads => LeaseWrite::Acquire,
            Standing::HeldUntil(_) if !leads && !self.walls.silence => LeaseWrite::Acquire,
            _ => return None,
        };
        saw(
            &self.sights.dead_and_taken,
            standing == Standing::Free(AcquireReason::Dead),
        );
        Some(write)
    }

    /// Reads, and writes under the precondition of what it read.
    fn write(w: &mut World, r: usize, write: LeaseWrite) {
        let record = w.record();
        let replica = &mut w.replicas[r];
        let clock = replica.clock();
        replica.candidate.read(record, clock);
        replica.waiting = true;
        replica.slow = false;
        replica.candidate.send(clock);
        let pre = replica.candidate.take_precondition();
        let me = replica.candidate.me().to_owned();
        w.send(Message::Lease {
            of: r,
            me,
            pre: pre.map(|(_, version)| version.parse().unwrap()),
            write,
            abandoned: false,
        });
    }

    fn release(&self, w: &mut World, r: usize) {
        Self::write(w, r, LeaseWrite::Release);
        if self.walls.drained {
            // Its work has ended: what it sends from now on is nothing.
            w.replicas[r].demote(r);
        }
    }

    /// What a leader would send for its work; judged by its own clock first.
    fn work(&self, w: &World, r: usize, part: Part) -> Option<Message> {
        let leading = w.replicas[r].leading.as_ref()?;
        let task = leading.task.as_ref()?;
        let sealed = task.term == Some(leading.term);
        let failed = |attempt: u8| w.pods[usize::from(attempt)] == Pod::Failed;
        let work = match part {
            Part::Seal => (!sealed).then_some(Work::Seal(task.version))?,
            _ if !sealed => return None,
            Part::Record => {
                let next = task.attempt + 1;
                let due = failed(task.attempt) && usize::from(next) < ATTEMPTS;
                due.then_some(Work::Record {
                    version: task.version,
                    attempt: next,
                })?
            }
            // Whether it is there already, the name tells.
            Part::Create => Work::Create {
                attempt: task.attempt,
            },
            Part::Delete => {
                let attempt = task.attempt.checked_sub(1)?;
                // A pod outlives the creates of its own term.
                let late = w.under_way.iter().any(|m| {
                    matches!(m, Message::Work { work: Work::Create { attempt: a }, term, .. }
                        if *a == attempt && *term == leading.term)
                });
                (failed(attempt) && !late).then_some(Work::Delete { attempt })?
            }
        };
        let message = Message::Work {
            term: leading.term,
            me: w.replicas[r].candidate.me().to_owned(),
            work,
        };
        let refused = self.walls.clock && !w.replicas[r].may_act();
        saw(&self.sights.by_clock, refused);
        (!refused && !w.under_way.contains(&message)).then_some(message)
    }

    fn tick(&self, w: &mut World, slow: Option<usize>) {
        w.now += 1;
        for (r, replica) in w.replicas.iter_mut().enumerate() {
            if slow == Some(r) {
                replica.slow = true;
            } else {
                replica.clock += 1;
            }
        }
        // The policy's watch lags by less than a tick; a pod lives for longer.
        w.seen = (w.lease.transitions, w.lease.holder.clone());
        for pod in &mut w.pods {
            if *pod == Pod::New {
                *pod = Pod::Runs;
            }
        }
    }

    fn step(&self, w: &mut World, action: Action) -> Option<()> {
        match action {
            Action::Tick(slow) => self.tick(w, slow),
            Action::Contend(r) => {
                let write = self.intent(w, r)?;
                Self::write(w, r, write);
            }
            Action::Release(r) => self.release(w, r),
            Action::HearDeath(r) => {
                let holder = w.lease.holder.clone();
                w.replicas[r].candidate.proved_dead(holder);
            }
            Action::Look(r) => {
                let task = w.task.clone();
                w.replicas[r].leading.as_mut()?.task = Some(task);
            }
            Action::Send(r, part) => {
                let message = self.work(w, r, part)?;
                w.send(message);
            }
            Action::Demote(r) => w.replicas[r].demote(r),
            Action::Crash(r) => {
                w.crashes += 1;
                let old = &w.replicas[r];
                w.replicas[r] = Replica::new(r, old.incarnation + 1, old.clock);
                w.all_observe();
            }
            Action::PodFails => {
                let pod = w.pods.iter_mut().find(|p| **p == Pod::Runs)?;
                *pod = Pod::Failed;
            }
            Action::PolicySees => w.seen = (w.lease.transitions, w.lease.holder.clone()),
            Action::Deliver(m) => {
                let message = w.under_way.remove(m);
                self.deliver(w, message);
            }
            Action::Abandon(m) => {
                let mut message = w.under_way.remove(m);
                if let Message::Lease {
                    of, me, abandoned, ..
                } = &mut message
                {
                    *abandoned = true;
                    let replica = &mut w.replicas[*of];
                    if replica.candidate.me() == me {
                        replica.waiting = false;
                    }
                }
                w.send(message);
                self.forget(w);
            }
            Action::Lose(m) => {
                w.under_way.remove(m);
            }
        }
        Some(())
    }

    fn of_a_replica(&self, w: &World, r: usize, actions: &mut Vec<Action>) {
        let replica = &w.replicas[r];
        let standing = replica.candidate.standing(replica.clock());
        if self.intent(w, r).is_some() {
            actions.push(Action::Contend(r));
        }
        let Some(leading) = &replica.leading else {
            if matches!(standing, Standing::HeldUntil(_)) && w.holder_crashed() {
                actions.push(Action::HearDeath(r));
            }
            return;
        };
        let works = w.under_way.iter();
        let works = works.filter(|m| matches!(m, Message::Work { .. })).count();
        if works < self.under_way {
            for part in [Part::Seal, Part::Record, Part::Create, Part::Delete] {
                if self.work(w, r, part).is_some() {
                    actions.push(Action::Send(r, part));
                }
            }
        }
        if !replica.waiting && replica.may_act() && standing == Standing::Ours {
            actions.push(Action::Release(r));
        }
        let acts = replica.may_act() || !self.walls.clock;
        if acts && leading.task.as_ref() != Some(&w.task) {
            actions.push(Action::Look(r));
        }
        if !replica.may_act() {
            actions.push(Action::Demote(r));
        }
        if w.crashes == 0 {
            actions.push(Action::Crash(r));
        }
    }
}

impl stateright::Model for Model {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.replicas)]
    }

    fn actions(&self, w: &World, actions: &mut Vec<Action>) {
        actions.push(Action::Tick(None));
        for (r, replica) in w.replicas.iter().enumerate() {
            // Who only waits would wait longer.
            let matters = replica.may_act() || replica.waiting;
            if matters && !replica.slow && w.replicas.iter().all(|o| !o.slow) {
                actions.push(Action::Tick(Some(r)));
            }
            self.of_a_replica(w, r, actions);
        }
        if w.pods.contains(&Pod::Runs) {
            actions.push(Action::PodFails);
        }
        if w.seen != (w.lease.transitions, w.lease.holder.clone()) {
            actions.push(Action::PolicySees);
        }
        for (m, message) in w.under_way.iter().enumerate() {
            actions.push(Action::Deliver(m));
            match message {
                Message::Lease {
                    abandoned: false, ..
                } => actions.push(Action::Abandon(m)),
                _ => actions.push(Action::Lose(m)),
            }
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut next = last.clone();
        self.step(&mut next, action)?;
        Some(next)
    }

    fn within_boundary(&self, w: &World) -> bool {
        let leases = w.under_way.iter();
        let leases = leases
            .filter(|m| matches!(m, Message::Lease { .. }))
            .count();
        w.lease.transitions <= self.terms && leases <= 2
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("at most one leader may act", |_, w: &World| {
                w.replicas.iter().filter(|r| r.may_act()).count() <= 1
            }),
            Property::always("a worker's attempt is created once", |_, w: &World| {
                !w.faults.created_twice
            }),
            Property::always("never two attempts at once", |_, w: &World| {
                !w.faults.two_alive
            }),
            Property::always("no running pod is deleted", |_, w: &World| {
                !w.faults.deleted_alive
            }),
            Property::always("what was recorded stays", |_, w: &World| {
                !w.faults.went_back
            }),
        ];
        if self.lag == Lag::None {
            all.push(Property::always(
                "no write of an older term takes effect",
                |_, w: &World| !w.faults.older_term,
            ));
        }
        all
    }
}
