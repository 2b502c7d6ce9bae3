//! What is deleted by a call of its own, and pods that have ended and are done with. Those are
//! collected so that one call deletes many, as a database commits the transactions of a
//! moment together.
//!
//! A group goes [`GROUP_DELAY`] after its first pod came, at once where others wait for
//! the places of its pods, and as soon as it is full. While one is in flight the next one
//! fills, so that pods that end one after another share calls, however urgent each is.
//!
//! Invariants: first come, first served; at most one group is in flight unless another is
//! full. What waits stays right, for an attempt that is over stays over. That a pod is here
//! once is the loop's business ([`super::recent_keys`]).
use std::{collections::VecDeque, sync::Arc};

use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::{
    delete,
    outcome::WriteResult,
    recent_keys::Key,
    scheduler::Class,
    shared::{Shared, span_of},
    tasks,
    tuning::{GROUP_DELAY, GROUP_SIZE},
};
use crate::domain::{pod::Pod, task::Task};

/// A `Removal` is deleted by a call of its own.
#[derive(Debug)]
pub(super) enum Removal {
    /// A pod whose worker runs, or did not start.
    Pod(Arc<Pod>),
    /// A pod whose task is not known here.
    Orphan(Arc<Pod>),
    /// A finished task whose time is over.
    Task(Arc<Task>),
}

impl Removal {
    pub(super) fn key(&self) -> Key {
        match self {
            Self::Pod(pod) | Self::Orphan(pod) => Key::Pod(pod.uid.clone()),
            Self::Task(_) => Key::Task(self.task()),
        }
    }

    pub(super) fn task(&self) -> Arc<str> {
        match self {
            Self::Pod(pod) | Self::Orphan(pod) => pod.task.clone(),
            Self::Task(task) => Arc::from(task.name.as_str()),
        }
    }

    pub(super) fn class(&self) -> Class {
        match self {
            Self::Pod(_) => Class::Delete,
            Self::Orphan(_) | Self::Task(_) => Class::Housekeeping,
        }
    }

    pub(super) async fn run(self, shared: &Shared) -> WriteResult {
        match self {
            Self::Pod(pod) => {
                let task = shared.index.task(&pod.task);
                let span = task.map_or_else(Span::none, |t| span_of(&t, "remove worker"));
                delete::running(shared, &pod).instrument(span).await
            }
            Self::Orphan(pod) => delete::orphan(shared, &pod).await,
            Self::Task(task) => tasks::forget(shared, &task).await,
        }
    }
}

/// The `EndedPods` wait to be deleted together.
#[derive(Debug, Default)]
pub(super) struct EndedPods {
    waiting: VecDeque<Arc<Pod>>,
    /// Those that wait are to go then.
    due: Option<Instant>,
    /// So many groups are in flight.
    in_flight: usize,
}

impl EndedPods {
    /// Adds a pod; `at_once`: others wait for its place.
    pub(super) fn push(&mut self, pod: Arc<Pod>, at_once: bool) {
        self.waiting.push_back(pod);
        let now = Instant::now();
        let due = if at_once { now } else { now + GROUP_DELAY };
        self.due = Some(self.due.map_or(due, |known| known.min(due)));
    }

    /// Lets everything that is here go at once, because others wait for places.
    pub(super) fn hurry(&mut self) {
        if !self.waiting.is_empty() {
            self.due = Some(Instant::now());
        }
    }

    /// Reports whether a group may go now.
    pub(super) fn is_ready(&self) -> bool {
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        self.waiting.len() >= GROUP_SIZE || is_due && self.in_flight == 0
    }

    /// Takes the next group; it is in flight until [`Self::ended`] is called.
    pub(super) fn next(&mut self) -> Vec<Arc<Pod>> {
        let size = self.waiting.len().min(GROUP_SIZE);
        self.in_flight += 1;
        let group = self.waiting.drain(..size).collect();
        if self.waiting.is_empty() {
            self.due = None;
        }
        group
    }

    /// Takes in that a group has ended.
    pub(super) fn ended(&mut self) {
        self.in_flight -= 1;
    }

    /// Returns when a group is ready though nothing happens until then.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.due.filter(|_| self.in_flight == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(pods: &mut EndedPods, which: std::ops::Range<usize>, at_once: bool) {
        for n in which {
            let uid = n.to_string();
            let pod = Pod {
                uid,
                ..Pod::default()
            };
            pods.push(Arc::new(pod), at_once);
        }
    }

    /// The uids of the next group.
    fn next(pods: &mut EndedPods) -> Vec<String> {
        assert!(pods.is_ready());
        pods.next().iter().map(|pod| pod.uid.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_end_within_the_delay_go_together() {
        let mut pods = EndedPods::default();
        assert!(!pods.is_ready() && pods.wake_at().is_none());
        push(&mut pods, 0..2, false);
        tokio::time::sleep(GROUP_DELAY / 2).await;
        push(&mut pods, 2..3, false);
        assert!(!pods.is_ready());
        let wait = pods.wake_at().map(|at| at - Instant::now());
        assert_eq!(wait, Some(GROUP_DELAY / 2));
        tokio::time::sleep(GROUP_DELAY / 2).await;
        assert_eq!(next(&mut pods), ["0", "1", "2"]);
        assert!(!pods.is_ready() && pods.wake_at().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn where_places_are_wanted_they_go_at_once_and_one_call_at_a_time() {
        let mut pods = EndedPods::default();
        push(&mut pods, 0..1, false);
        push(&mut pods, 1..2, true);
        assert_eq!(next(&mut pods), ["0", "1"]);
        push(&mut pods, 2..3, true);
        push(&mut pods, 3..4, true);
        assert!(!pods.is_ready() && pods.wake_at().is_none());
        pods.ended();
        assert_eq!(next(&mut pods), ["2", "3"]);
        pods.ended();
        push(&mut pods, 4..5, false);
        assert!(!pods.is_ready());
        pods.hurry();
        assert_eq!(next(&mut pods), ["4"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_group_waits_for_nothing() {
        let mut pods = EndedPods::default();
        push(&mut pods, 0..2 * GROUP_SIZE + 1, false);
        assert_eq!(next(&mut pods).len(), GROUP_SIZE);
        assert_eq!(next(&mut pods)[0], GROUP_SIZE.to_string());
        // The last one is not full.
        assert!(!pods.is_ready());
        pods.ended();
        pods.ended();
        tokio::time::sleep(GROUP_DELAY).await;
        assert_eq!(next(&mut pods).len(), 1);
    }
}
