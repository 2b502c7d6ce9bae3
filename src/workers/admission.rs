//! Lets waiting workers in unless paused: as many pods as MAX_WORKERS, the namespace's quota,
//! the API server and its watch allow, in the order of [`crate::domain::queue`].
//!
//! What holds: what is in use is counted from the index and from the creates
//! under way, never remembered; after a refusal for quota one create at a time
//! asks whether there is room again.
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    effect::End,
    shared::{Room, Shared},
    unseen::Unseen,
};
use crate::domain::{
    concurrency::Concurrency,
    names,
    queue::{Attempt, Picked, Queue, Share, Waiting},
    task::Task,
};

/// Between two questions whether the quota has room; doubled up to the second.
const ASK_QUOTA: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// So long after a worker's end more are expected.
pub(super) const ENDING: Duration = Duration::from_secs(1);

type Create = (Arc<str>, Attempt);

pub(super) struct Admission {
    shared: Arc<Shared>,
    queue: Queue,
    rate: Concurrency,
    /// Where the rate's clock begins.
    start: Instant,
    under_way: HashMap<Create, UnderWay>,
    /// Refusals for quota in a row, and until when to wait.
    quota: (u32, Option<Instant>),
    unseen: Unseen,
}

struct UnderWay {
    repository: Arc<str>,
    sent: Instant,
}

impl Admission {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            queue: Queue::default(),
            rate: Concurrency::default(),
            start: Instant::now(),
            under_way: HashMap::new(),
            quota: (0, None),
            unseen: Unseen::default(),
        }
    }

    /// A worker has ended, and otto-handler waits to be told.
    pub(super) fn heard_of_an_end(&mut self) {
        self.rate.hold_back(self.start.elapsed() + ENDING);
    }

    /// What a task's plan asks for now. A worker whose create is under way gets no
    /// other, of a later attempt either: the plan does not know that pod yet.
    pub(super) fn ask(&mut self, name: &Arc<str>, task: &Task, creates: Vec<Attempt>) {
        let under_way = self.under_way.keys().filter(|(task, _)| task == name);
        let under_way: HashSet<u32> = under_way.map(|(_, a)| a.index).collect();
        let mut attempts = creates;
        attempts.retain(|a| !under_way.contains(&a.index));
        let attempts = attempts.into();
        let waiting = Waiting {
            repository: Arc::from(task.spec.repository.as_str()),
            priority: task.spec.priority(),
            since: task.created,
            attempts,
        };
        self.queue.set(name, waiting);
    }

    pub(super) fn forget(&mut self, name: &Arc<str>) {
        self.queue.remove(name);
    }

    /// Others have to go before more may come.
    pub(super) fn waits_for_places(&self) -> bool {
        !self.queue.is_empty() && (self.places() == 0 || self.quota.0 > 0)
    }

    fn places(&self) -> usize {
        let absent = self.shared.absent.load(Ordering::Relaxed);
        let there = self.shared.index.pod_count().saturating_sub(absent);
        let taken = there + self.under_way.len();
        self.shared.limits.max_workers.saturating_sub(taken)
    }

    /// Those that may be created now; they count as under way.
    pub(super) fn admit(&mut self) -> Vec<Create> {
        let admitted = self.let_in();
        self.rate
            .waits(!self.queue.is_empty(), self.start.elapsed());
        admitted
    }

    fn let_in(&mut self) -> Vec<Create> {
        if self.queue.is_empty() {
            return Vec::new();
        }
        if let Some(why) = self.shared.pause.why() {
            self.shared.room(Room::Paused(why));
            return Vec::new();
        }
        let now = Instant::now();
        let places = self.places();
        let mut most = self
            .rate
            .room(self.under_way.len(), now - self.start)
            .min(self.unseen.room(self.shared.index.pods_told()))
            .min(places);
        let quota = match self.quota {
            (0, _) => None,
            (_, Some(until)) if until > now => Some(0),
            _ => Some(usize::from(self.under_way.is_empty())),
        };
        most = most.min(quota.unwrap_or(most));
        let mut admitted = Vec::new();
        for Picked {
            task,
            repository,
            attempt,
        } in self.pick(most)
        {
            let sent = now;
            let one = UnderWay { repository, sent };
            self.under_way.insert((task.clone(), attempt), one);
            admitted.push((task, attempt));
        }
        if !self.queue.is_empty() && quota.is_none() {
            self.shared.room(if places <= admitted.len() {
                Room::Full
            } else {
                Room::Busy
            });
        }
        admitted
    }

    fn pick(&mut self, most: usize) -> Vec<Picked> {
        if most == 0 {
            return Vec::new();
        }
        let mut creating: HashMap<&str, usize> = HashMap::new();
        for one in self.under_way.values() {
            *creating.entry(&one.repository).or_default() += 1;
        }
        let (index, limits) = (&self.shared.index, &self.shared.limits);
        self.queue.pick(most, |repository| Share {
            taken: index.pods_of_repository(repository)
                + creating.get(repository).copied().unwrap_or(0),
            weight: limits
                .repository_weights
                .get(repository)
                .copied()
                .unwrap_or(1),
        })
    }

    /// A create has ended.
    pub(super) fn ended(&mut self, name: &Arc<str>, attempt: Attempt, end: &End) {
        let count = self.under_way.len();
        let Some(one) = self.under_way.remove(&(name.clone(), attempt)) else {
            return;
        };
        let now = Instant::now();
        let (sent, at) = (one.sent - self.start, now - self.start);
        match end {
            End::Busy { retry_after, .. } => self.rate.refused(sent, at, *retry_after),
            End::NoRoom(why) => {
                let (refusals, _) = self.quota;
                let wait = ASK_QUOTA.0 * 2_u32.pow(refusals.min(6));
                self.quota = (refusals + 1, Some(now + wait.min(ASK_QUOTA.1)));
                self.shared.room(Room::Quota(why.clone()));
            }
            End::Done => {
                let task = self.shared.index.task(name);
                let pod = task.and_then(|task| {
                    let (id, index) = (&task.spec.task_id, attempt.index);
                    let name = names::pod_name(id, index, attempt.attempt);
                    self.shared.index.pod(&name)
                });
                if let Some(pod) = pod {
                    self.unseen.made(pod.resource_version);
                }
                self.quota = (0, None);
                self.rate.answered(sent, at, count);
            }
            End::Later(_) | End::Refused(_) => self.rate.answered(sent, at, count),
        }
    }

    /// When there may be room though nothing happens until then.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.queue.is_empty() {
            return None;
        }
        let now = Instant::now();
        let held = self.rate.held_until(now - self.start);
        held.map(|at| self.start + at)
            .into_iter()
            .chain(self.quota.1.filter(|at| *at > now))
            .chain(self.unseen.wake_at())
            .max()
    }
}
