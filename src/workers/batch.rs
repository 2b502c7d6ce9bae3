//! Pods that have ended and are done with, deleted together: what comes due within a
//! moment, of whatever tasks, is one call.
//!
//! What holds: a pod waits, or is under way, at most once; first come, first served; at
//! most one batch is under way, for the API server deletes its pods one after another.
//! What waits stays right: an attempt that is over stays over.
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{asked::Asked, effect::End};
use crate::domain::pod::Pod;

/// How long a pod waits for more, where others wait for its place.
pub(super) const HURRIED: Duration = Duration::from_millis(100);
/// Where its task has finished.
pub(super) const SOON: Duration = Duration::from_secs(1);
/// Where more of its task are to come.
pub(super) const LATER: Duration = Duration::from_secs(10);
/// Pods in a call: their keys are part of its address, which some proxies cut at 8 KiB.
const MOST: usize = 128;

#[derive(Default)]
pub(super) struct Batch {
    waiting: VecDeque<Arc<Pod>>,
    under_way: Vec<Arc<Pod>>,
    /// When the next is to be sent.
    due: Option<Instant>,
    /// The API server asked for time until then.
    held: Option<Instant>,
    /// By uid.
    asked: Asked<String>,
}

impl Batch {
    /// It goes within that time, if the API server takes it.
    pub(super) fn ask(&mut self, pod: Arc<Pod>, within: Duration) {
        if self.asked.insert(pod.uid.clone()) {
            self.waiting.push_back(pod);
        }
        if !self.waiting.is_empty() {
            let due = Instant::now() + within;
            self.due = Some(self.due.map_or(due, |before| before.min(due)));
        }
    }

    /// Those that may go now; they count as under way.
    pub(super) fn admit(&mut self) -> Option<Vec<Arc<Pod>>> {
        self.asked.forget_told();
        self.wake_at().filter(|due| *due <= Instant::now())?;
        let most = self.waiting.len().min(MOST);
        self.under_way = self.waiting.drain(..most).collect();
        if self.waiting.is_empty() {
            self.due = None;
        }
        Some(self.under_way.clone())
    }

    /// What was under way has ended; the tasks that its pods were of.
    pub(super) fn ended(&mut self, end: &End) -> BTreeSet<Arc<str>> {
        let pods = std::mem::take(&mut self.under_way);
        for pod in &pods {
            self.asked.ended(pod.uid.clone(), end);
        }
        self.held = match end {
            End::Busy { retry_after, .. } => Some(Instant::now() + *retry_after),
            _ => None,
        };
        pods.into_iter().map(|pod| pod.task.clone()).collect()
    }

    /// When the next may be sent though nothing happens until then.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let due = self.due.filter(|_| self.under_way.is_empty())?;
        Some(self.held.map_or(due, |held| held.max(due)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::asked::TOLD, *};

    fn pods(which: std::ops::Range<usize>) -> impl Iterator<Item = Arc<Pod>> {
        which.map(|n| {
            Arc::new(Pod {
                uid: n.to_string(),
                task: format!("t{}", n % 2).into(),
                ..Pod::default()
            })
        })
    }

    /// The next that goes, and how long that took.
    async fn next(batch: &mut Batch) -> (Vec<Arc<Pod>>, Duration) {
        let asked = Instant::now();
        tokio::time::sleep_until(batch.wake_at().unwrap_or(asked)).await;
        (batch.admit().unwrap_or_default(), asked.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_due_within_a_moment_goes_together_and_once() {
        let mut batch = Batch::default();
        assert_eq!((batch.admit(), batch.wake_at()), (None, None));
        pods(0..2).for_each(|pod| batch.ask(pod, SOON));
        tokio::time::sleep(SOON / 2).await;
        pods(0..4).for_each(|pod| batch.ask(pod, SOON));
        assert_eq!(batch.admit(), None);
        assert_eq!(next(&mut batch).await, (pods(0..4).collect(), SOON / 2));
        // Under way, and told of too late.
        pods(0..4).for_each(|pod| batch.ask(pod, SOON));
        assert_eq!((batch.admit(), batch.wake_at()), (None, None));
        let tasks = ["t0", "t1"].map(Arc::from).into();
        assert_eq!(batch.ended(&End::Done), tasks);
        pods(0..4).for_each(|pod| batch.ask(pod, SOON));
        assert_eq!((batch.admit(), batch.wake_at()), (None, None));
        tokio::time::sleep(TOLD).await;
        assert_eq!(batch.admit(), None);
        assert!(batch.asked.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn those_of_a_task_that_goes_on_wait_until_it_ends() {
        let mut batch = Batch::default();
        pods(0..1).for_each(|pod| batch.ask(pod, LATER));
        assert_eq!(next(&mut batch).await, (pods(0..1).collect(), LATER));
        batch.ended(&End::Done);
        pods(1..2).for_each(|pod| batch.ask(pod, LATER));
        tokio::time::sleep(LATER / 2).await;
        pods(1..3).for_each(|pod| batch.ask(pod, SOON));
        assert_eq!(next(&mut batch).await, (pods(1..3).collect(), SOON));
    }

    #[tokio::test(start_paused = true)]
    async fn many_go_one_call_after_another_in_their_order() {
        let mut batch = Batch::default();
        pods(0..2 * MOST + 1).for_each(|pod| batch.ask(pod, SOON));
        let mut went = Vec::new();
        for (size, waits) in [(MOST, SOON), (MOST, Duration::ZERO), (1, Duration::ZERO)] {
            let (some, waited) = next(&mut batch).await;
            assert_eq!((some.len(), waited), (size, waits));
            assert_eq!((batch.admit(), batch.wake_at()), (None, None));
            went.extend(some);
            batch.ended(&End::Done);
        }
        assert!(went.into_iter().eq(pods(0..2 * MOST + 1)));
        assert_eq!(batch.wake_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_asked_for_again_and_the_rest_waits_as_long_as_it_is_told() {
        let mut batch = Batch::default();
        pods(0..MOST + 1).for_each(|pod| batch.ask(pod, SOON));
        assert_eq!(next(&mut batch).await.0.len(), MOST);
        let retry_after = Duration::from_secs(3);
        let why = String::new();
        batch.ended(&End::Busy { why, retry_after });
        pods(0..MOST + 1).for_each(|pod| batch.ask(pod, SOON));
        assert_eq!(batch.waiting.len(), MOST + 1);
        let (some, waited) = next(&mut batch).await;
        assert_eq!((some.len(), waited), (MOST, retry_after));
    }
}
