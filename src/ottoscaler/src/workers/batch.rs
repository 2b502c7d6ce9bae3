//! Pods that have ended and are done with, deleted together: what comes due within a
//! moment, of whatever tasks, is one call.
//!
//! What holds: a pod waits, or is under way, at most once; first come, first served. The
//! API server deletes a call's pods one after another, so a call has as many as it deletes
//! well within the call's deadline, and another is under way beside it only while there
//! are as many again and others wait for their places, or for long already. What waits
//! stays right: an attempt that is over stays over.
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{admission::ENDING, asked::Asked, effect::End};
use crate::domain::pod::Pod;

/// How long a pod waits for more, where others wait for its place.
pub(super) const HURRIED: Duration = Duration::from_millis(100);
/// Where its task has finished.
pub(super) const SOON: Duration = Duration::from_secs(1);
/// Where more of its task are to come.
pub(super) const LATER: Duration = Duration::from_secs(30);
/// Pods in a call: their keys are part of its address, which some proxies cut at 8 KiB.
const MOST: usize = 128;
const LEAST: usize = 2;
/// What a call is to last at most: what is left of the Lease is its deadline, 3 s or more by
/// default, and what it deleted until then is not told.
const LONG: Duration = Duration::from_secs(2);
/// A call that took less says nothing against more pods: most of it is not for each.
const SHORT: Duration = Duration::from_millis(200);
const CALLS: usize = 12;
/// So long a call waits while workers end, and for the one before it: each delays
/// everybody's watches, and who is in no hurry can wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// A call's number.
pub(super) type Call = u64;

pub(super) struct Batch {
    waiting: VecDeque<Arc<Pod>>,
    /// With the time at which it was sent.
    under_way: HashMap<Call, (Vec<Arc<Pod>>, Instant)>,
    next: Call,
    /// Pods that the next call has at most.
    most: usize,
    /// When the next is to be sent, and from when on beside another.
    due: Option<Instant>,
    beside: Option<Instant>,
    /// The API server asked for time until then.
    held: Option<Instant>,
    /// Until then otto-handler waits to be told of ends.
    ending: Option<Instant>,
    /// By uid.
    asked: Asked<String>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            under_way: HashMap::new(),
            next: 0,
            most: MOST,
            due: None,
            beside: None,
            held: None,
            ending: None,
            asked: Asked::default(),
        }
    }
}

impl Batch {
    /// It goes within that time, if the API server takes it.
    pub(super) fn ask(&mut self, pod: Arc<Pod>, within: Duration) {
        if self.asked.insert(pod.uid.clone()) {
            self.waiting.push_back(pod);
        }
        if !self.waiting.is_empty() {
            let sooner = |known: Option<Instant>, at| Some(known.map_or(at, |known| known.min(at)));
            let due = Instant::now() + within;
            let patience = if within > HURRIED {
                PATIENCE
            } else {
                Duration::ZERO
            };
            self.due = sooner(self.due, due);
            self.beside = sooner(self.beside, due + patience);
        }
    }

    /// A worker has ended, and otto-handler waits to be told.
    pub(super) fn heard_of_an_end(&mut self) {
        self.ending = Some(Instant::now() + ENDING);
    }

    /// Those that may go now; they count as under way.
    pub(super) fn admit(&mut self) -> Option<(Call, Vec<Arc<Pod>>)> {
        self.asked.forget_told();
        let now = Instant::now();
        self.wake_at().filter(|due| *due <= now)?;
        let most = self.waiting.len().min(self.most);
        let pods: Vec<_> = self.waiting.drain(..most).collect();
        if self.waiting.is_empty() {
            (self.due, self.beside) = (None, None);
        }
        let call = self.next;
        self.next += 1;
        self.under_way.insert(call, (pods.clone(), now));
        Some((call, pods))
    }

    /// A call has ended; the tasks that its pods were of.
    pub(super) fn ended(&mut self, call: Call, end: &End) -> BTreeSet<Arc<str>> {
        let Some((pods, sent)) = self.under_way.remove(&call) else {
            return BTreeSet::new();
        };
        for pod in &pods {
            self.asked.ended(pod.uid.clone(), end);
        }
        match end {
            End::Busy { retry_after, .. } => {
                // Another call's answer may have asked for more.
                self.held = self.held.max(Some(Instant::now() + *retry_after));
                self.most = (pods.len() / 2).clamp(LEAST, MOST);
            }
            _ => {
                let took = sent.elapsed();
                let each = took.as_micros() / pods.len().max(1) as u128;
                let fit = usize::try_from(LONG.as_micros() / each.max(1)).unwrap_or(MOST);
                let least = if took < SHORT { self.most } else { LEAST };
                self.most = fit.clamp(least, MOST);
            }
        }
        pods.into_iter().map(|pod| pod.task.clone()).collect()
    }

    /// When the next may be sent though nothing happens until then.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let due = match self.under_way.len() {
            0 => self.due?,
            CALLS.. => return None,
            _ => self.beside.filter(|_| self.waiting.len() >= self.most)?,
        };
        let quiet = self
            .ending
            .map(|until| until.min(self.due.unwrap_or(due) + PATIENCE));
        let due = quiet.map_or(due, |quiet| quiet.max(due));
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
    async fn next(batch: &mut Batch) -> (Call, Vec<Arc<Pod>>, Duration) {
        let asked = Instant::now();
        tokio::time::sleep_until(batch.wake_at().unwrap_or(asked)).await;
        let (call, pods) = batch.admit().unwrap_or_default();
        (call, pods, asked.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_due_within_a_moment_goes_together_and_once() {
        let mut batch = Batch::default();
        assert!(batch.admit().is_none() && batch.wake_at().is_none());
        pods(0..2).for_each(|pod| batch.ask(pod, SOON));
        tokio::time::sleep(SOON / 2).await;
        pods(0..4).for_each(|pod| batch.ask(pod, SOON));
        assert!(batch.admit().is_none());
        assert_eq!(next(&mut batch).await, (0, pods(0..4).collect(), SOON / 2));
        // Under way, and told of too late.
        pods(0..4).for_each(|pod| batch.ask(pod, SOON));
        assert!(batch.admit().is_none() && batch.wake_at().is_none());
        let tasks = ["t0", "t1"].map(Arc::from).into();
        assert_eq!(batch.ended(0, &End::Done), tasks);
        pods(0..4).for_each(|pod| batch.ask(pod, SOON));
        assert!(batch.admit().is_none() && batch.wake_at().is_none());
        tokio::time::sleep(TOLD).await;
        assert!(batch.admit().is_none());
        assert!(batch.asked.is_empty() && batch.under_way.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn those_of_a_task_that_goes_on_wait_until_it_ends() {
        let mut batch = Batch::default();
        pods(0..1).for_each(|pod| batch.ask(pod, LATER));
        assert_eq!(next(&mut batch).await, (0, pods(0..1).collect(), LATER));
        batch.ended(0, &End::Done);
        pods(1..2).for_each(|pod| batch.ask(pod, LATER));
        tokio::time::sleep(LATER / 2).await;
        pods(1..3).for_each(|pod| batch.ask(pod, SOON));
        assert_eq!(next(&mut batch).await, (1, pods(1..3).collect(), SOON));
        // While it is under way a few more wait.
        pods(3..4).for_each(|pod| batch.ask(pod, SOON));
        assert_eq!(batch.wake_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_a_few_calls_are_under_way_in_their_order() {
        let mut batch = Batch::default();
        let all = || pods(0..(CALLS + 1) * MOST + 1);
        all().for_each(|pod| batch.ask(pod, HURRIED));
        let (_, mut went, waited) = next(&mut batch).await;
        assert_eq!(waited, HURRIED);
        for _ in 1..CALLS {
            let (_, some, waited) = next(&mut batch).await;
            assert_eq!((some.len(), waited), (MOST, Duration::ZERO));
            went.extend(some);
        }
        assert!(batch.admit().is_none() && batch.wake_at().is_none());
        batch.ended(2, &End::Done);
        went.extend(next(&mut batch).await.1);
        // The last one is not as many.
        batch.ended(0, &End::Done);
        assert!(batch.admit().is_none() && batch.wake_at().is_none());
        for call in (1..=CALLS as Call).filter(|call| *call != 2) {
            batch.ended(call, &End::Done);
        }
        went.extend(next(&mut batch).await.1);
        assert!(went.into_iter().eq(all()));
        assert_eq!(batch.wake_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_in_no_hurry_waits_for_the_one_before_it() {
        let mut batch = Batch::default();
        pods(0..3 * MOST).for_each(|pod| batch.ask(pod, SOON));
        assert_eq!(next(&mut batch).await.2, SOON);
        assert_eq!(next(&mut batch).await.2, PATIENCE);
        batch.ended(0, &End::Done);
        batch.ended(1, &End::Done);
        assert_eq!(next(&mut batch).await.2, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn while_workers_end_they_wait_for_a_while() {
        let mut batch = Batch::default();
        pods(0..1).for_each(|pod| batch.ask(pod, HURRIED));
        batch.heard_of_an_end();
        // The last end is a moment ago.
        assert_eq!(next(&mut batch).await.2, ENDING);
        batch.ended(0, &End::Done);
        let start = Instant::now();
        pods(1..2).for_each(|pod| batch.ask(pod, Duration::ZERO));
        while start.elapsed() < PATIENCE {
            batch.heard_of_an_end();
            assert!(batch.admit().is_none());
            tokio::time::sleep(ENDING / 2).await;
        }
        assert!(batch.admit().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_asked_for_again_and_the_rest_waits_as_long_as_it_is_told() {
        let mut batch = Batch::default();
        pods(0..MOST + 1).for_each(|pod| batch.ask(pod, HURRIED));
        assert_eq!(next(&mut batch).await.1.len(), MOST);
        let retry_after = Duration::from_secs(3);
        let why = String::new();
        batch.ended(0, &End::Busy { why, retry_after });
        pods(0..MOST + 1).for_each(|pod| batch.ask(pod, HURRIED));
        assert_eq!(batch.waiting.len(), MOST + 1);
        let (_, some, waited) = next(&mut batch).await;
        assert_eq!((some.len(), waited), (MOST / 2, retry_after));
        // Nor does a call beside it that went well take that back.
        assert_eq!(next(&mut batch).await.1.len(), MOST / 2);
        let why = String::new();
        batch.ended(1, &End::Busy { why, retry_after });
        batch.ended(2, &End::Done);
        pods(0..1).for_each(|pod| batch.ask(pod, HURRIED));
        assert_eq!(next(&mut batch).await.2, retry_after);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_took_long_is_a_reason_for_less() {
        let mut batch = Batch::default();
        let mut round = async |which: std::ops::Range<usize>, took| {
            pods(which).for_each(|pod| batch.ask(pod, SOON));
            let (call, some, _) = next(&mut batch).await;
            tokio::time::sleep(took).await;
            batch.ended(call, &End::Done);
            some.len()
        };
        // One alone may take as long as ten.
        round(0..1, SHORT / 4).await;
        assert_eq!(round(1..1 + MOST, 2 * LONG).await, MOST);
        assert_eq!(round(200..200 + MOST, LONG).await, MOST / 2);
    }

    /// Pods end, twenty a second; a call deletes one after another, or ends in the middle.
    /// How many wait in the end and at most, and how many calls that took.
    async fn after_a_slow_server(is_told: bool) -> (usize, usize, usize) {
        const DEADLINE: Duration = Duration::from_secs(3);
        let slow = |at: Duration| match at.as_secs() {
            20..40 => Duration::from_millis(600),
            _ => Duration::from_millis(50),
        };
        let (mut batch, start) = (Batch::default(), Instant::now());
        let mut left: BTreeSet<usize> = BTreeSet::new();
        let mut under_way: Vec<(Instant, Call, bool)> = Vec::new();
        let (mut most, mut calls) = (0, 0);
        for second in 0..180_usize {
            left.extend(20 * second..20 * (second + 1));
            if is_told {
                batch.heard_of_an_end();
            }
            // Whoever plans asks for all that there are.
            for pod in left.iter().flat_map(|&n| pods(n..n + 1)) {
                batch.ask(pod, SOON);
            }
            let until = start + Duration::from_secs(second as u64 + 1);
            while Instant::now() < until {
                while let Some((call, pods)) = batch.admit() {
                    let each = slow(start.elapsed());
                    let reached = (DEADLINE.as_millis() / each.as_millis()) as usize;
                    let went = pods.len().min(reached);
                    for pod in &pods[..went] {
                        left.remove(&pod.uid.parse().unwrap_or_default());
                    }
                    let ends = Instant::now() + each * u32::try_from(went).unwrap_or(0);
                    under_way.push((ends, call, went == pods.len()));
                    calls += 1;
                }
                let next = under_way.iter().map(|c| c.0).chain(batch.wake_at());
                tokio::time::sleep_until(next.chain([until]).min().unwrap_or(until)).await;
                let over = under_way.extract_if(.., |c| c.0 <= Instant::now());
                for (_, call, is_done) in over {
                    let why = String::new();
                    let retry_after = Duration::ZERO;
                    let busy = End::Busy { why, retry_after };
                    batch.ended(call, if is_done { &End::Done } else { &busy });
                }
            }
            most = most.max(left.len());
        }
        (left.len(), most, calls)
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_was_slow_for_a_while_is_caught_up_with() {
        let (left, most, calls) = after_a_slow_server(false).await;
        assert!(most > 200, "it was not slow: {most}");
        assert!(left < 60, "{left} left of {most}, {calls} calls");
        assert!(calls < 300, "{calls}");
    }

    #[tokio::test(start_paused = true)]
    async fn while_workers_end_no_more_wait_than_end_meanwhile() {
        let (left, most, calls) = after_a_slow_server(true).await;
        assert!(most > 300, "it was not slow: {most}");
        let meanwhile = 20 * (PATIENCE + LONG).as_secs() as usize;
        assert!(left < meanwhile, "{left} left of {most}, {calls} calls");
        assert!(calls < 300, "{calls}");
    }
}
