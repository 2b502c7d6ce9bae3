//! Decides which waiting workers get their pods next: unless paused, as many as MAX_WORKERS,
//! the namespace's quota and the scheduler's slots allow, in the order of
//! [`crate::domain::queue`].
//!
//! Invariants: places in use are counted from the index and from the creates in flight, never
//! remembered; who was refused waits at a gate ([`crate::domain::gates`]) for the next try,
//! and in nobody's way; of the slots of creates those that ask at closed gates have at most
//! half, so that slow refusals leave room for others; a create that goes on being refused for
//! REFUSED_TIMEOUT fails its worker, and with it those that would be refused as well and have
//! waited for as long.
mod ended;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    scheduler::{Class, Permit},
    shared::Shared,
};
use crate::domain::{
    gates::Gates,
    queue::{Attempt, Gate, Lane, Picked, Queue, Shape, Share, Waiting},
    task::Task,
    template::{self, Template},
};

type Create = (Arc<str>, Attempt);

pub(super) struct Admission {
    shared: Arc<Shared>,
    queue: Queue,
    gates: Gates,
    demands: HashMap<Arc<str>, Demand>,
    /// When the clock of the gates began.
    start: Instant,
    in_flight: HashMap<Create, InFlight>,
    /// The number of those that ask at a closed gate.
    asking: usize,
    /// When a create last got its pod.
    last_made: Option<Duration>,
    /// The number of pods when last looked at.
    pods: usize,
}

/// The creates that a task's plans ask for.
struct Demand {
    shape: Arc<Shape>,
    /// Since when without a break.
    since: BTreeMap<Attempt, Duration>,
}

struct InFlight {
    repository: Arc<str>,
    sent: Duration,
    lane: Lane,
    /// The gate was closed.
    asks: bool,
}

impl Admission {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            queue: Queue::default(),
            gates: Gates::default(),
            demands: HashMap::new(),
            start: Instant::now(),
            in_flight: HashMap::new(),
            asking: 0,
            last_made: None,
            pods: 0,
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// A worker has ended: a quota may have room.
    pub(super) fn heard_of_an_end(&mut self) {
        self.gates.room_appeared(self.now());
    }

    /// Takes in what a task's plan asks for now. A worker whose create is in flight gets no
    /// other, of a later attempt either: the plan does not know that pod yet.
    pub(super) fn ask(&mut self, name: &Arc<str>, task: &Task, creates: Vec<Attempt>) {
        let now = self.now();
        let of_task = self.in_flight.keys().filter(|(of, _)| of == name);
        let in_flight: Vec<Attempt> = of_task.map(|(_, a)| *a).collect();
        if creates.is_empty() && in_flight.is_empty() {
            self.forget(name);
            return;
        }
        let before = self.demands.remove(name);
        let (shape, mut before) = match before {
            Some(Demand { shape, since }) => (shape, since),
            None => (Arc::new(self.shape_of(task)), BTreeMap::new()),
        };
        let wanted: BTreeSet<Attempt> = creates.iter().chain(&in_flight).copied().collect();
        let since = wanted.into_iter();
        let since = since.map(|attempt| (attempt, before.remove(&attempt).unwrap_or(now)));
        let since = since.collect();
        self.demands.insert(name.clone(), Demand { shape, since });
        // Those that nobody asks for any more.
        for attempt in before.into_keys() {
            self.open(&Gate::Attempt(name.clone(), attempt));
        }
        let indices: HashSet<u32> = in_flight.iter().map(|a| a.index).collect();
        let mut held = None;
        let attempts = creates.into_iter().filter(|a| !indices.contains(&a.index));
        let attempts = attempts.filter(|a| {
            let gate = Gate::Attempt(name.clone(), *a);
            let may_go = self.gates.room(&gate, now) > 0;
            if self.gates.is_closed(&gate) {
                held = Some(gate);
            }
            may_go
        });
        let waiting = Waiting {
            repository: Arc::from(task.spec.repository.as_str()),
            priority: template::priority(&task.spec.build_config),
            since: task.created,
            attempts: attempts.collect(),
        };
        let lane = self.lane_of(name);
        self.told(name, held.or_else(|| lane.clone()));
        self.queue.set(name, waiting, lane);
    }

    pub(super) fn forget(&mut self, name: &Arc<str>) {
        self.queue.remove(name);
        if let Some(demand) = self.demands.remove(name) {
            for attempt in demand.since.into_keys() {
                self.open(&Gate::Attempt(name.clone(), attempt));
            }
            self.open(&Gate::Task(name.clone()));
            self.told(name, None);
        }
    }

    /// Whether other pods have to go before more may come.
    pub(super) fn waits_for_places(&self) -> bool {
        !self.queue.is_empty() && (self.places() == 0 || self.gates.has_quota())
    }

    fn places(&self) -> usize {
        let taken = self.shared.places_taken() + self.in_flight.len();
        self.shared.limits.max_workers.saturating_sub(taken)
    }

    /// Returns what quotas count of a task's pods.
    fn shape_of(&self, task: &Task) -> Shape {
        let Ok(template) = Template::parse(&task.spec.build_config, &self.shared.policy) else {
            return Shape::default();
        };
        Shape {
            cpu_request: template.cpu.request.milli(),
            cpu_limit: template.cpu.limit.milli(),
            memory_request: template.memory.request.milli(),
            memory_limit: template.memory.limit.milli(),
            priority_class: template.priority_class,
        }
    }

    /// Returns where a task waits.
    fn lane_of(&self, name: &Arc<str>) -> Lane {
        let shape = self.demands.get(name)?.shape.clone();
        let gates = [Gate::Task(name.clone()), Gate::Shape(shape)];
        gates.into_iter().find(|gate| self.gates.is_closed(gate))
    }

    fn told(&self, name: &Arc<str>, gate: Lane) {
        let gates = &mut self.shared.waits().gates;
        match gate {
            Some(gate) => gates.insert(name.clone(), gate),
            None => gates.remove(name),
        };
    }

    /// Returns the creates that may be sent now, each with its slot; they count as in flight.
    pub(super) fn admit(&mut self) -> Vec<(Create, Permit)> {
        let now = self.now();
        let pods = self.shared.index.pod_count();
        if pods < self.pods {
            self.gates.room_appeared(now);
        }
        self.pods = pods;
        let scheduler = self.shared.scheduler.clone();
        // It is wanted again if it is slots that are too few.
        scheduler.want(Class::Create, false);
        let admitted = self.let_in(now);
        let mut waits = self.shared.waits();
        waits.in_flight = self.in_flight.len();
        waits.has_queue = !self.queue.is_empty();
        drop(waits);
        let with_slot = |create| (create, scheduler.enter_now(Class::Create));
        admitted.into_iter().map(with_slot).collect()
    }

    fn let_in(&mut self, now: Duration) -> Vec<Create> {
        if self.shared.pause.why().is_some() {
            return Vec::new();
        }
        for gate in self.gates.idle(now) {
            // That nobody waits for all pods' creates is told by there being none.
            let is_idle = match &gate {
                Gate::All => self.queue.is_empty(),
                Gate::Attempt(task, _) => !self.demands.contains_key(task),
                gate => self.queue.is_lane_empty(&Some(gate.clone())),
            };
            if is_idle {
                self.open(&gate);
            }
        }
        if self.queue.is_empty() {
            return Vec::new();
        }
        let count = self.in_flight.len();
        let slots = self.shared.scheduler.room(Class::Create);
        let allowed = self.places().min(self.gates.room_of_all(count, now));
        let most = slots.min(allowed);
        if slots < allowed {
            self.shared.scheduler.want(Class::Create, true);
        }
        if most == 0 {
            return Vec::new();
        }
        let most_asking = count.saturating_add(slots) / 2;
        let mut admitted = Vec::new();
        // Where places are scarce the order decides. Where it is only that more come than the
        // API server takes at once, a gate whose time has come waits for none of them.
        if self.places() > most {
            let mut lanes = self.lanes(most_asking, most, now);
            lanes.remove(0);
            lanes.truncate(1);
            let picked = self.pick(1, lanes);
            admitted.extend(picked.into_iter().map(|one| self.start(one, now)));
        }
        let lanes = self.lanes(most_asking, most, now);
        let picked = self.pick(most - admitted.len(), lanes);
        admitted.extend(picked.into_iter().map(|one| self.start(one, now)));
        admitted
    }

    fn start(&mut self, picked: Picked, now: Duration) -> Create {
        let Picked {
            task,
            repository,
            attempt,
            lane,
        } = picked;
        let asks = lane.is_some() || self.gates.is_closed(&Gate::All);
        if let Some(gate) = &lane {
            self.gates.sent(gate);
        }
        self.asking += usize::from(asks);
        let one = InFlight {
            repository,
            sent: now,
            lane,
            asks,
        };
        self.in_flight.insert((task.clone(), attempt), one);
        (task, attempt)
    }

    /// From which lanes how many may go: as many as may in the common one, and together
    /// `most_asking` at closed gates, where somebody is always let through.
    fn lanes(&self, most_asking: usize, most: usize, now: Duration) -> Vec<(Lane, usize)> {
        let mut lanes = vec![(None, most)];
        let mut left = most_asking.max(1).saturating_sub(self.asking);
        for gate in self.gates.waiting(now) {
            if left == 0 {
                break;
            }
            let lane = Some(gate.clone());
            let room = self.gates.room(gate, now).min(left);
            if room > 0 && !self.queue.is_lane_empty(&lane) {
                left -= room;
                lanes.push((lane, room));
            }
        }
        lanes
    }

    fn pick(&mut self, most: usize, lanes: Vec<(Lane, usize)>) -> Vec<Picked> {
        let mut creating: HashMap<&str, usize> = HashMap::new();
        for one in self.in_flight.values() {
            *creating.entry(&one.repository).or_default() += 1;
        }
        let (index, limits) = (&self.shared.index, &self.shared.limits);
        self.queue.pick(most, lanes, |repository| Share {
            taken: index.pods_of_repository(repository)
                + creating.get(repository).copied().unwrap_or(0),
            weight: limits
                .repository_weights
                .get(repository)
                .copied()
                .unwrap_or(1),
        })
    }

    /// When there may be room though nothing happens until then.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.queue.is_empty() {
            return None;
        }
        let now = self.now();
        let base = self.gates.next_of(&Gate::All).filter(|at| *at > now);
        let is_asked = |gate: &Gate| !self.queue.is_lane_empty(&Some(gate.clone()));
        let due = self.gates.next_due(now, is_asked);
        let at = match (base, due) {
            (Some(base), _) if !self.queue.is_lane_empty(&None) => Some(base),
            (Some(base), due) => due.map_or(Some(base), |due| Some(base.max(due))),
            (None, due) => due,
        };
        at.map(|at| self.start + at)
    }
}

#[cfg(test)]
mod tests;
