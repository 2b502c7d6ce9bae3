//! What is to be deleted, pods and forgotten tasks: as much at once as the API server
//! takes. Thousands may come due in one moment.
//!
//! What holds: each waits, or is under way, at most once; first come, first served. What
//! waits stays right, for a delete names the uid of what is done with. What was deleted is
//! not asked for again while the watch may be on its way with the news.
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::effect::{End, Key};
use crate::domain::{concurrency::Concurrency, pod::Pod, task::Task};

/// So long a watch may be behind an answer; then it is deleted again.
const TOLD: Duration = Duration::from_secs(10);

/// What is deleted.
#[derive(Debug)]
pub(super) enum What {
    Pod {
        name: Arc<str>,
        uid: String,
    },
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
            What::Pod { uid, .. } => Key::Delete(uid.clone()),
            What::Orphan(pod) => Key::Delete(pod.uid.clone()),
            What::Task(task) => Key::Forget(Arc::from(task.name.as_str())),
        }
    }
}

pub(super) struct Removals {
    waiting: VecDeque<Removal>,
    /// With the time at which it was sent, once it is under way or done.
    known: HashMap<Key, Option<Instant>>,
    under_way: usize,
    /// What is done, and until when that is known.
    done: VecDeque<(Key, Instant)>,
    rate: Concurrency,
    /// Where the rate's clock begins.
    start: Instant,
}

impl Default for Removals {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            known: HashMap::new(),
            under_way: 0,
            done: VecDeque::new(),
            rate: Concurrency::default(),
            start: Instant::now(),
        }
    }
}

impl Removals {
    pub(super) fn ask(&mut self, removal: Removal) {
        if let Entry::Vacant(new) = self.known.entry(removal.key()) {
            new.insert(None);
            self.waiting.push_back(removal);
        }
    }

    /// Those that may go now; they count as under way.
    pub(super) fn admit(&mut self) -> Vec<Removal> {
        let now = Instant::now();
        while let Some((key, _)) = self.done.pop_front_if(|(_, until)| *until <= now) {
            self.known.remove(&key);
        }
        let room = self.rate.room(self.under_way, now - self.start);
        let admitted: Vec<Removal> = self.waiting.drain(..room.min(self.waiting.len())).collect();
        for removal in &admitted {
            self.known.insert(removal.key(), Some(now));
        }
        self.under_way += admitted.len();
        admitted
    }

    /// One has ended.
    pub(super) fn ended(&mut self, key: &Key, end: &End) {
        let Some(&Some(sent)) = self.known.get(key) else {
            return;
        };
        match end {
            End::Done => self.done.push_back((key.clone(), Instant::now() + TOLD)),
            _ => {
                self.known.remove(key);
            }
        }
        let (sent, now) = (sent - self.start, self.start.elapsed());
        match end {
            End::Busy { retry_after, .. } => self.rate.refused(sent, now, *retry_after),
            _ => self.rate.answered(sent, now, self.under_way),
        }
        self.under_way -= 1;
    }

    /// When there may be room though nothing happens until then.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.waiting.is_empty() {
            return None;
        }
        let held = self.rate.held_until(self.start.elapsed())?;
        Some(self.start + held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal(n: usize) -> Removal {
        Removal {
            task: "t".into(),
            what: What::Pod {
                name: "p".into(),
                uid: n.to_string(),
            },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_thousands_few_are_under_way_and_each_goes_once() {
        let mut removals = Removals::default();
        let (mut gone, mut most) = (Vec::new(), 0);
        for n in (0..2_000).chain(0..2_000) {
            removals.ask(removal(n));
        }
        while gone.len() < 2_000 {
            let admitted = removals.admit();
            most = most.max(admitted.len());
            // Those under way, or gone, are asked for again by whoever plans.
            (0..2_000).for_each(|n| {
                removals.ask(removal(n));
            });
            tokio::time::sleep(Duration::from_millis(10)).await;
            for one in admitted {
                removals.ended(&one.key(), &End::Done);
                gone.push(one.key());
            }
        }
        assert!((32..=256).contains(&most), "{most}");
        let all: std::collections::HashSet<_> = gone.iter().collect();
        assert_eq!((gone.len(), all.len()), (2_000, 2_000));
        // The watch tells nothing for long: each once more, and it is forgotten.
        tokio::time::sleep(TOLD).await;
        assert!(removals.admit().is_empty());
        assert_eq!((removals.under_way, removals.known.len()), (0, 0));
        removals.ask(removal(0));
        assert_eq!(removals.admit().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_turns_deletes_away_gets_fewer() {
        let mut removals = Removals::default();
        (0..100).for_each(|n| removals.ask(removal(n)));
        let first = removals.admit();
        let busy = End::Busy {
            why: String::new(),
            retry_after: Duration::from_secs(1),
        };
        for one in &first {
            removals.ended(&one.key(), &busy);
        }
        assert_eq!((removals.admit().len(), removals.waiting.len()), (0, 68));
        tokio::time::sleep_until(removals.wake_at().unwrap_or_else(Instant::now)).await;
        assert!((1..first.len()).contains(&removals.admit().len()));
    }
}
