//! The scheduler of the leader's calls to the API server.
//!
//! Each write enters in a class and leaves when its answer is known. All classes share one
//! adaptive [`Limit`]; of it each class has one slot that the others cannot take, so that
//! a thousand creates do not delay the status of a task that has ended, nor the other way
//! round. The shared slots go to the class that has the fewest calls in flight.
//!
//! Some writes wait here, first come, first served ([`Scheduler::enter`]); others wait with
//! the loop, which knows who is next or what to write only once there is a slot
//! ([`Scheduler::room`], [`Scheduler::enter_now`]).
//!
//! Invariants: no class takes another's slot; of the calls that wait here at most
//! [`MAX_WAITERS`] are of one class; nothing is sent before the end of a `Retry-After`, nor
//! in a class before the end of its backoff; whoever waits is woken by a leaving call, or
//! by the loop when a wait ends ([`Scheduler::wake_at`]).
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{
    limit::Limit,
    outcome::WriteResult,
    tuning::{CALL_BACKOFF, MAX_WAITERS},
};

/// The `Class` of a call says what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Requests make or change tasks, and a new leader seals them.
    TaskWrite,
    Status,
    Create,
    Delete,
    /// Orphaned pods and forgotten tasks are deleted.
    Housekeeping,
}

const CLASSES: [Class; 5] = [
    Class::TaskWrite,
    Class::Status,
    Class::Create,
    Class::Delete,
    Class::Housekeeping,
];

/// The `Scheduler` is shared by the loop and by the requests that write tasks.
#[derive(Debug, Default)]
pub(super) struct Scheduler {
    slots: Mutex<Slots>,
    /// This is notified when a slot comes free for which the loop has work.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Slots {
    limit: Limit,
    classes: [Calls; CLASSES.len()],
    /// The API server asked to be left alone until then.
    retry_at: Option<Instant>,
}

/// A `Calls` counts the calls of one class.
#[derive(Debug, Default)]
struct Calls {
    in_flight: usize,
    waiters: VecDeque<oneshot::Sender<Permit>>,
    /// The loop has work that waits.
    is_wanted: bool,
    /// Rounds that failed one after another, and when the last of them was counted.
    failures: u32,
    failed: Option<Instant>,
    /// The end of its backoff.
    backoff_until: Option<Instant>,
}

impl Calls {
    fn waits(&self) -> bool {
        self.is_wanted || !self.waiters.is_empty()
    }
}

impl Slots {
    fn calls(&mut self, class: Class) -> &mut Calls {
        &mut self.classes[class as usize]
    }

    fn in_flight(&self) -> usize {
        self.classes.iter().map(|calls| calls.in_flight).sum()
    }

    /// Returns when calls of the class may be sent again, if they may not be sent now.
    fn held_until(&self, class: Class, now: Instant) -> Option<Instant> {
        let calls = &self.classes[class as usize];
        let held = self.retry_at.max(calls.backoff_until);
        held.filter(|until| now < *until)
    }

    /// Returns how many calls of the class may be sent now.
    fn room(&self, class: Class, now: Instant) -> usize {
        if self.held_until(class, now).is_some() {
            return 0;
        }
        let mine = self.classes[class as usize].in_flight;
        let others = || CLASSES.into_iter().filter(|other| *other != class);
        let calls = |class: Class| &self.classes[class as usize];
        let reserved = others().filter(|c| calls(*c).in_flight == 0).count();
        let shared = (self.limit.get()).saturating_sub(self.in_flight() + reserved);
        // Those that wait and have fewer go first.
        let waiting = others().filter(|c| calls(*c).waits() && self.held_until(*c, now).is_none());
        let fair = waiting.map(|c| (calls(c).in_flight + 1).saturating_sub(mine));
        let room = shared.min(fair.min().unwrap_or(usize::MAX));
        room.max(usize::from(mine == 0))
    }

    /// Takes the next call that waits here and may be sent; it counts as in flight.
    fn next(&mut self, now: Instant) -> Option<(Class, oneshot::Sender<Permit>)> {
        for class in CLASSES {
            let waiters = &mut self.calls(class).waiters;
            while waiters.pop_front_if(|w| w.is_closed()).is_some() {}
            if !waiters.is_empty() && self.room(class, now) > 0 {
                let calls = self.calls(class);
                let waiter = calls.waiters.pop_front()?;
                calls.in_flight += 1;
                return Some((class, waiter));
            }
        }
        None
    }
}

impl Scheduler {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a slot. Returns None if too many wait already.
    pub(super) async fn enter(self: &Arc<Self>, class: Class) -> Option<Permit> {
        let granted = {
            let mut slots = self.slots();
            let calls = slots.calls(class);
            if calls.waiters.len() >= MAX_WAITERS {
                calls.waiters.retain(|waiter| !waiter.is_closed());
            }
            if calls.waiters.len() >= MAX_WAITERS {
                return None;
            }
            let (grant, granted) = oneshot::channel();
            calls.waiters.push_back(grant);
            granted
        };
        self.wake();
        granted.await.ok()
    }

    /// Reports whether [`Self::enter`] would return None.
    pub(super) fn is_full(&self, class: Class) -> bool {
        self.slots().calls(class).waiters.len() >= MAX_WAITERS
    }

    /// Returns how many calls of a class the loop may send now.
    pub(super) fn room(&self, class: Class) -> usize {
        self.slots().room(class, Instant::now())
    }

    /// Takes a slot for which there was room. It may exceed the limit by what entered since.
    pub(super) fn enter_now(self: &Arc<Self>, class: Class) -> Permit {
        self.slots().calls(class).in_flight += 1;
        self.permit(class)
    }

    /// Says whether the loop has work of this class that waits for a slot.
    pub(super) fn want(&self, class: Class, is_wanted: bool) {
        self.slots().calls(class).is_wanted = is_wanted;
    }

    /// Returns once a slot came free for which the loop has work.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Lets those go that wait here and for whom there is a slot.
    pub(super) fn wake(self: &Arc<Self>) {
        loop {
            // One that no longer waits gives its permit back: never under the lock.
            let Some((class, waiter)) = self.slots().next(Instant::now()) else {
                return;
            };
            let _ = waiter.send(self.permit(class));
        }
    }

    /// Returns when there may be a slot though no call leaves until then.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let (slots, now) = (self.slots(), Instant::now());
        let waits = |class: &Class| slots.classes[*class as usize].waits();
        let waiting = CLASSES.into_iter().filter(waits);
        waiting.filter_map(|c| slots.held_until(c, now)).min()
    }

    fn permit(self: &Arc<Self>, class: Class) -> Permit {
        Permit {
            scheduler: self.clone(),
            class,
            sent: Instant::now(),
        }
    }
}

/// A `Permit` is the slot of a call, which is free again when the permit is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Permit {
    scheduler: Arc<Scheduler>,
    class: Class,
    sent: Instant,
}

impl Permit {
    /// Takes in how the call ended. Its time is a sample of how busy the server is if it
    /// concerned one small object.
    pub(super) fn ended(self, result: &WriteResult, is_sample: bool) {
        let (mut slots, now) = (self.scheduler.slots(), Instant::now());
        let in_flight = slots.in_flight();
        let calls = slots.calls(self.class);
        match result {
            WriteResult::Busy { retry_after, .. } => {
                if calls.failed.is_none_or(|failed| self.sent >= failed) {
                    calls.failures += 1;
                    calls.failed = Some(now);
                }
                // One failure alone may be the object's own.
                if calls.failures > 1 {
                    calls.backoff_until = Some(now + CALL_BACKOFF.after(calls.failures - 1));
                }
                slots.retry_at = slots.retry_at.max(Some(now + *retry_after));
                slots.limit.congested(self.sent, now);
            }
            _ => {
                calls.failures = 0;
                if is_sample {
                    slots.limit.answered(self.sent, now, in_flight);
                }
            }
        }
    }

    /// Takes in that the watch did not show in time what the call did.
    pub(super) fn unseen(self) {
        let mut slots = self.scheduler.slots();
        slots.limit.congested(self.sent, Instant::now());
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut slots = self.scheduler.slots();
        slots.calls(self.class).in_flight -= 1;
        if slots.in_flight() == 0 {
            slots.limit.idle();
        }
        let is_wanted = slots.classes.iter().any(|calls| calls.is_wanted);
        drop(slots);
        self.scheduler.wake();
        if is_wanted {
            self.scheduler.freed.notify_one();
        }
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
