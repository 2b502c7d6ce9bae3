//! What is to be deleted one by one: pods that live, orphans and forgotten tasks. Hundreds
//! come due in one moment, when a status is stored, and nobody waits for them: sent at once
//! they would hold up what somebody does wait for. So they are spread over the time until
//! more come, and never more at once than the API server takes.
//!
//! What holds: each waits, or is under way, at most once; first come, first served. What
//! waits stays right, for a delete names the uid of what is done with.
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    asked::Asked,
    effect::{End, Key},
};
use crate::domain::{concurrency::Concurrency, pod::Pod, task::Task};

/// What waits is sent in so long, if the API server takes it.
const SPREAD: Duration = Duration::from_secs(2);
/// So late the pace may be kept up.
const LATE: Duration = Duration::from_millis(100);

/// What is deleted.
#[derive(Debug)]
pub(super) enum What {
    Pod(Arc<Pod>),
    /// A pod whose task is not known here.
    Orphan(Arc<Pod>),
    Task(Arc<Task>),
}

#[derive(Debug)]
pub(super) struct Removal {
    pub(super) task: Arc<str>,
    pub(super) what: What,
}

impl Removal {
    pub(super) fn key(&self) -> Key {
        match &self.what {
            What::Pod(pod) | What::Orphan(pod) => Key::Delete(pod.uid.clone()),
            What::Task(task) => Key::Forget(Arc::from(task.name.as_str())),
        }
    }
}

pub(super) struct Removals {
    waiting: VecDeque<Removal>,
    /// With the time at which it was sent.
    under_way: HashMap<Key, Instant>,
    asked: Asked<Key>,
    rate: Concurrency,
    /// Where the rate's clock begins.
    start: Instant,
    /// Between two that are sent: [`SPREAD`] by the most that waited since none did.
    pace: Duration,
    /// When one was sent last, or was due to be.
    last: Option<Instant>,
}

impl Default for Removals {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            under_way: HashMap::new(),
            asked: Asked::default(),
            rate: Concurrency::default(),
            start: Instant::now(),
            pace: SPREAD,
            last: None,
        }
    }
}

impl Removals {
    pub(super) fn ask(&mut self, removal: Removal) {
        if self.asked.insert(removal.key()) {
            if self.waiting.is_empty() {
                self.pace = SPREAD;
            }
            self.waiting.push_back(removal);
            let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
            self.pace = self.pace.min(SPREAD / waiting);
        }
    }

    /// Those that may go now; they count as under way.
    pub(super) fn admit(&mut self) -> Vec<Removal> {
        self.asked.forget_told();
        let now = Instant::now();
        let room = self.rate.room(self.under_way.len(), now - self.start);
        let mut admitted = Vec::new();
        while admitted.len() < room
            && let Some(due) = self.due().filter(|due| *due <= now)
            && let Some(removal) = self.waiting.pop_front()
        {
            self.under_way.insert(removal.key(), now);
            // What was held up for long is not made up for.
            self.last = Some(if now - due > LATE { now } else { due });
            admitted.push(removal);
        }
        admitted
    }

    /// One has ended.
    pub(super) fn ended(&mut self, key: &Key, end: &End) {
        let under_way = self.under_way.len();
        let Some(sent) = self.under_way.remove(key) else {
            return;
        };
        self.asked.ended(key.clone(), end);
        let (sent, now) = (sent - self.start, self.start.elapsed());
        match end {
            End::Busy { retry_after, .. } => self.rate.refused(sent, now, *retry_after),
            _ => self.rate.answered(sent, now, under_way),
        }
    }

    /// When the next that waits may be sent.
    fn due(&self) -> Option<Instant> {
        let paced = self.last.map_or(self.start, |last| last + self.pace);
        Some(paced).filter(|_| !self.waiting.is_empty())
    }

    /// When there may be room though nothing happens until then.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let due = self.due()?;
        let held = self.rate.held_until(self.start.elapsed());
        let at = held.map_or(due, |held| due.max(self.start + held));
        // One that could go already waits for one that is under way.
        Some(at).filter(|at| *at > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, ops::Range};

    use super::{super::asked::TOLD, *};

    fn removal(n: usize) -> Removal {
        Removal {
            task: "t".into(),
            what: What::Pod(Arc::new(Pod {
                uid: n.to_string(),
                ..Pod::default()
            })),
        }
    }

    /// Deletes all of them, each `took` long; the most under way, and how long it took.
    async fn delete(
        removals: &mut Removals,
        all: Range<usize>,
        took: Duration,
    ) -> (usize, Duration) {
        let start = Instant::now();
        all.clone().for_each(|n| removals.ask(removal(n)));
        let (mut under_way, mut most, mut gone) = (VecDeque::new(), 0, HashSet::new());
        while gone.len() < all.len() {
            let admitted = removals.admit().into_iter();
            under_way.extend(admitted.map(|one| (Instant::now() + took, one.key())));
            most = most.max(under_way.len());
            // Those under way, or gone, are asked for again by whoever plans.
            all.clone().for_each(|n| removals.ask(removal(n)));
            let next = under_way.front().map(|(at, _)| *at);
            let next = next.into_iter().chain(removals.wake_at()).min();
            tokio::time::sleep_until(next.unwrap_or_else(Instant::now)).await;
            while let Some((_, key)) = under_way.pop_front_if(|(at, _)| *at <= Instant::now()) {
                removals.ended(&key, &End::Done);
                assert!(gone.insert(key), "deleted twice");
            }
        }
        assert_eq!((under_way.len(), removals.waiting.len()), (0, 0));
        (most, start.elapsed())
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[tokio::test(start_paused = true)]
    async fn what_comes_due_at_once_is_spread_and_each_goes_once() {
        let mut removals = Removals::default();
        let (most, time) = delete(&mut removals, 1..201, MS(15)).await;
        assert!(most <= 3, "{most}");
        assert!((MS(1_900)..MS(2_100)).contains(&time), "{time:?}");
        // The watch tells nothing for long: each once more, and it is forgotten.
        tokio::time::sleep(TOLD).await;
        assert!(removals.admit().is_empty());
        assert!(removals.under_way.is_empty() && removals.asked.is_empty());
        // One by itself goes at once, and does not keep many that follow.
        removals.ask(removal(0));
        let first = removals.admit();
        removals.ended(&first[0].key(), &End::Done);
        let (_, time) = delete(&mut removals, 201..301, MS(15)).await;
        assert!(time < MS(2_100), "{time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_thousand_few_are_under_way() {
        let (most, _) = delete(&mut Removals::default(), 0..1_000, MS(300)).await;
        assert!((32..=256).contains(&most), "{most}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_turns_deletes_away_gets_fewer() {
        let mut removals = Removals::default();
        (0..100).for_each(|n| removals.ask(removal(n)));
        tokio::time::sleep(LATE).await;
        let first = removals.admit();
        let busy = End::Busy {
            why: String::new(),
            retry_after: Duration::from_secs(1),
        };
        for one in &first {
            removals.ended(&one.key(), &busy);
        }
        assert_eq!((removals.admit().len(), removals.waiting.len()), (0, 94));
        tokio::time::sleep_until(removals.wake_at().unwrap_or_else(Instant::now)).await;
        assert!((1..first.len()).contains(&removals.admit().len()));
    }
}
