//! The loop of the worker manager: inputs → plan → effects, until drained.
//!
//! How a ScaleUp gets here: [`super::scale`] writes the WorkerTask and puts the API server's
//! answer into the index (`Index::wrote_task`); the index announces the task to its
//! subscribers (a broadcast); the loop receives the name, and the task is due
//! ([`Engine::look_at`]). A task that is due is planned ([`planning`]) from what the index
//! holds of it and its pods; what the plan asks for becomes effects ([`effects`]): creates
//! wait in the admission, deletes in queues, a status until it is to be written. The answer
//! of each write, and the watches, change the index, which announces the task again. Nothing
//! depends on an announcement: whoever missed some looks at all tasks.
//!
//! Invariants: of each object one write is in flight ([`super::recent_keys`]); every write
//! has a slot of the scheduler; a task is planned again no sooner than
//! [`tuning::plan_interval`] after the last time; nothing here outlives the term.
mod effects;
mod planning;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use effects::Ended;
use tokio::{
    sync::broadcast::{
        Receiver,
        error::{RecvError, TryRecvError},
    },
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    admission::Admission,
    deletes::{EndedPods, Removal},
    notify::Outbox,
    recent_keys::RecentKeys,
    scheduler::Class,
    shared::Shared,
    status_writer::StatusSchedule,
    timetable::Timetable,
    tuning::{self, PLAN_RELAXED, SWEEP_INTERVAL},
    watch_lag::WatchLag,
};
use crate::{
    domain::{
        janitor::{self, History},
        ledger::Ledger,
    },
    election::LeaderTime,
    index,
};

/// The `Engine` is the loop and its state.
pub(super) struct Engine {
    shared: Arc<Shared>,
    /// Deadlines run on this clock.
    time: LeaderTime,
    ledger: Ledger,
    /// This counts, for each task, the pods on nodes that do not answer.
    absent: HashMap<Arc<str>, usize>,
    outbox: Outbox,
    /// Tasks to plan, by when.
    due: Timetable<Arc<str>>,
    /// From when on a task may be planned again.
    next_plan: HashMap<Arc<str>, Instant>,
    /// Tasks that are left alone, with the uid and version of what cannot be decoded.
    left: HashMap<Arc<str>, (String, u64)>,
    /// The task that each name stands for in all of these, by uid.
    uids: HashMap<Arc<str>, String>,
    effects: JoinSet<Ended>,
    keys: RecentKeys,
    admission: Admission,
    watch_lag: WatchLag,
    statuses: StatusSchedule,
    /// Tasks whose status is to be written and waits for a slot, each once.
    status_queue: VecDeque<Arc<str>>,
    status_queued: HashSet<Arc<str>>,
    ended_pods: EndedPods,
    /// What is deleted one by one and waits for a slot.
    deletes: VecDeque<Removal>,
    housekeeping: VecDeque<Removal>,
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, outbox: Outbox) -> Self {
        Self {
            time: shared.clocks.leader_time(),
            ledger: Ledger::default(),
            absent: HashMap::new(),
            outbox,
            due: Timetable::default(),
            next_plan: HashMap::new(),
            left: HashMap::new(),
            uids: HashMap::new(),
            effects: JoinSet::new(),
            keys: RecentKeys::default(),
            admission: Admission::new(shared.clone()),
            watch_lag: WatchLag::default(),
            statuses: StatusSchedule::default(),
            status_queue: VecDeque::new(),
            status_queued: HashSet::new(),
            ended_pods: EndedPods::default(),
            deletes: VecDeque::new(),
            housekeeping: VecDeque::new(),
            shared,
        }
    }

    pub(super) async fn run(
        &mut self,
        mut changes: Receiver<index::TaskChanged>,
        drain: &CancellationToken,
    ) {
        self.everything_is_due();
        let shared = self.shared.clone();
        let mut drained = shared.drained.changed();
        let caught_up = shared.caught_up.cancelled();
        tokio::pin!(caught_up);
        let mut knows = false;
        let mut pause = shared.pause.clone();
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !drain.is_cancelled() {
            self.dispatch();
            let next = self.wake_at();
            tokio::select! {
                () = drain.cancelled() => break,
                change = changes.recv() => self.changed(change),
                Some(ended) = self.effects.join_next() => self.ended(ended),
                task = drained.recv() => match task {
                    Ok(task) => self.look_at(task, true),
                    Err(RecvError::Lagged(_)) => self.everything_is_due(),
                    Err(RecvError::Closed) => break,
                },
                () = &mut caught_up, if !knows => {
                    knows = true;
                    self.everything_is_due();
                }
                // What waits is looked at again.
                () = pause.changed() => {}
                () = shared.scheduler.freed() => {}
                _ = sweep.tick(), if knows => self.sweep(),
                () = shared.shed.notified(), if knows => self.sweep(),
                () = at(next) => self.plan_due(true).await,
            }
            self.take_all(&mut changes);
        }
        self.finish().await;
    }

    /// Ends what is in flight and stores what is known, each status once; starts nothing else.
    async fn finish(&mut self) {
        self.watch_lag = WatchLag::default();
        while let Some(ended) = self.next_ended().await {
            self.ended(ended);
        }
        self.statuses.drain();
        self.everything_is_due();
        self.due.hurry(Instant::now());
        self.next_plan.clear();
        loop {
            self.plan_due(false).await;
            if self.effects.is_empty() && self.status_queue.is_empty() {
                return;
            }
            // What was written is not looked at again.
            drop(self.next_ended().await);
            self.dispatch_statuses();
        }
    }

    /// Waits for the next effect to end, or for the scheduler if none is in flight.
    async fn next_ended(&mut self) -> Option<Result<Ended, JoinError>> {
        loop {
            self.shared.scheduler.wake();
            let wake_at = self.shared.scheduler.wake_at();
            if self.effects.is_empty() {
                let wait = wake_at.filter(|_| !self.status_queue.is_empty())?;
                sleep_until(wait).await;
                return None;
            }
            tokio::select! {
                ended = self.effects.join_next() => return ended,
                () = at(wake_at) => {}
            }
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let scheduler = &self.shared.scheduler;
        let group = self.ended_pods.wake_at();
        let group = group.filter(|_| scheduler.room(Class::Delete) > 0);
        let times = [
            self.due.next(),
            self.admission.wake_at(),
            group,
            self.watch_lag.wake_at(),
            scheduler.wake_at(),
        ];
        times.into_iter().flatten().min()
    }

    /// Takes what has been told already; missed changes are as bad here as in `recv`.
    fn take_all(&mut self, changes: &mut Receiver<index::TaskChanged>) {
        loop {
            match changes.try_recv() {
                Ok(change) => self.changed(Ok(change)),
                Err(TryRecvError::Lagged(missed)) => self.changed(Err(RecvError::Lagged(missed))),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn changed(&mut self, change: Result<index::TaskChanged, RecvError>) {
        match change {
            Ok(change) => self.look_at(change.task, !can_wait(change.kind)),
            Err(_) => self.everything_is_due(),
        }
    }

    fn look_at(&mut self, task: Arc<str>, soon: bool) {
        let at = Instant::now() + if soon { Duration::ZERO } else { PLAN_RELAXED };
        let soonest = self.next_plan.get(&task).copied();
        self.due
            .by(task, soonest.map_or(at, |soonest| soonest.max(at)));
    }

    fn everything_is_due(&mut self) {
        let now = Instant::now();
        for task in self.shared.index.tasks() {
            // Nobody waits for those that have finished.
            let is_later = task.status.phase.is_finished();
            let at = now + PLAN_RELAXED * u32::from(is_later);
            self.due.by(Arc::from(task.name.as_str()), at);
        }
        for task in self.shared.index.unread_tasks() {
            self.due.by(task.name, now);
        }
        for name in self.shared.index.deletion_names() {
            self.due.by(name, now);
        }
    }

    /// Looks again at what is not finished, whatever the watches told, and removes what is
    /// left over.
    fn sweep(&mut self) {
        let (tasks, pods) = (self.shared.index.tasks(), self.shared.index.pods());
        let now = Instant::now();
        for task in tasks.iter().filter(|t| !t.status.phase.is_finished()) {
            self.due.by(Arc::from(task.name.as_str()), now);
        }
        for name in self.shared.index.deletion_names() {
            self.due.by(name, now);
        }
        let remembered = self.shared.index.recent_task_uids();
        self.outbox.retain(|uid| remembered.contains(uid));
        self.shared
            .notified()
            .retain(|uid, _| remembered.contains(&**uid));
        let unread = self.shared.index.unread_tasks();
        let most = self.shared.limits.max_stored_bytes;
        let most = History {
            tasks: self.shared.limits.max_finished_tasks,
            // What comes next shall have room at once.
            bytes: most - most / 16,
        };
        let left_over = janitor::left_over(&tasks, &unread, &pods, most);
        for name in left_over.pods {
            if let Some(pod) = self.shared.index.pod(&name) {
                self.remove(Removal::Orphan(pod));
            }
        }
        for name in left_over.tasks {
            if let Some(task) = self.shared.index.task(&name) {
                self.remove(Removal::Task(task));
            }
        }
    }
}

/// Sleeps until then; for ever if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Reports whether the plan for this change can be delayed, so that several changes share one
/// plan: nobody waits for what it would decide.
fn can_wait(change: index::ChangeKind) -> bool {
    match change {
        index::ChangeKind::PodWaits
        | index::ChangeKind::EndedPodDeleted
        | index::ChangeKind::ProgressAcknowledged => true,
        index::ChangeKind::Other => false,
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
