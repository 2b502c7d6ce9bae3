//! The loop: what changed → plan → effects, until drained.
mod effects;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::broadcast::{
        Receiver,
        error::{RecvError, TryRecvError},
    },
    task::JoinSet,
    time::{Instant, MissedTickBehavior, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use super::{
    admission::Admission,
    batch::{self, Batch},
    create, delete,
    effect::{End, Key, Running},
    notify::Offers,
    pace::{Paces, is_untold_end, put_off},
    removals::{Removal, Removals, What},
    shared::{Shared, span_of},
    status,
    timetable::Timetable,
};
use crate::{
    domain::{
        deleted_task,
        janitor::{self, History},
        ledger::Ledger,
        plan::{self, Action, Limits, Observed, Plan},
        pod::Pod,
        queue::Attempt,
        refusal::Refusal,
        stage::Stage,
        task::{Task, TaskStatus},
        unread::Unread,
        urgency::{self, Change},
    },
    election::LeaderTime,
    index::{self, Ending},
};

/// Between two plans of a task: a burst of events is one plan; more of it for each
/// worker, which each plan looks at.
const PLAN_INTERVAL: Duration = Duration::from_millis(5);
const PLAN_PER_WORKER: Duration = Duration::from_micros(10);
/// What nobody waits for: of a burst of creates, each plan would look at all.
const NOT_SOON: Duration = Duration::from_millis(100);
/// After something passing was in the way.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// The same of a status write that goes on failing.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);
/// Between two looks for what is left over.
const SWEEP_EVERY: Duration = Duration::from_secs(20);
/// The longest wait of a plan, in seconds: then it is made again.
const MAX_WAIT: u64 = 24 * 3_600;
/// When a new leader, or one that missed changes, looks at finished tasks again.
const FINISHED_LATER: Duration = Duration::from_secs(1);

/// The loop's own state; nothing here outlives the term.
pub(super) struct Engine {
    shared: Arc<Shared>,
    /// What deadlines run on.
    time: LeaderTime,
    ledger: Ledger,
    /// Of each task, pods on nodes that do not answer.
    absent: HashMap<Arc<str>, usize>,
    offers: Offers,
    effects: JoinSet<(Key, Arc<str>, End)>,
    busy: HashSet<Key>,
    admission: Admission,
    removals: Removals,
    batch: Batch,
    /// Tasks to plan, by when.
    due: Timetable<Arc<str>>,
    /// From when a task may be planned again.
    next_plan: HashMap<Arc<str>, Instant>,
    paces: Paces,
    /// A task whose status write failed waits.
    held: HashMap<Arc<str>, Held>,
    /// Tasks that are left alone, with the uid and version of what cannot be decoded.
    left: HashMap<Arc<str>, (String, u64)>,
    /// The task that each name stands for in all of these, by uid.
    uids: HashMap<Arc<str>, String>,
}

/// A status write that failed waits for twice as long as the one before it.
struct Held {
    until: Instant,
    wait: Duration,
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, offers: Offers) -> Self {
        Self {
            time: shared.clocks.leader_time(),
            ledger: Ledger::default(),
            absent: HashMap::new(),
            admission: Admission::new(shared.clone()),
            removals: Removals::default(),
            batch: Batch::default(),
            shared,
            offers,
            effects: JoinSet::new(),
            busy: HashSet::new(),
            due: Timetable::default(),
            next_plan: HashMap::new(),
            paces: Paces::default(),
            held: HashMap::new(),
            left: HashMap::new(),
            uids: HashMap::new(),
        }
    }

    pub(super) async fn run(
        &mut self,
        mut changes: Receiver<index::Change>,
        drain: &CancellationToken,
    ) {
        self.everything_is_due();
        let mut drained = self.shared.drained.changed();
        let caught_up = self.shared.caught_up.clone();
        let caught_up = caught_up.cancelled();
        tokio::pin!(caught_up);
        let mut knows = false;
        let shared = self.shared.clone();
        let mut pause = self.shared.pause.clone();
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !drain.is_cancelled() {
            self.admit();
            self.remove();
            let next = self.due.next().into_iter();
            let next = next.chain(self.admission.wake_at());
            let next = next.chain(self.removals.wake_at());
            let next = next.chain(self.batch.wake_at()).min();
            let idle = Instant::now() + Duration::from_secs(3_600);
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
                _ = sweep.tick(), if knows => self.sweep(),
                () = shared.shed.notified(), if knows => self.sweep(),
                () = sleep_until(next.unwrap_or(idle)) => self.plan_due(true).await,
            }
            self.take_all(&mut changes);
        }
        self.finish().await;
    }

    /// Ends what is under way and stores what is known; starts nothing new.
    async fn finish(&mut self) {
        while let Some(ended) = self.effects.join_next().await {
            self.ended(ended);
        }
        self.held.clear();
        self.everything_is_due();
        self.due.hurry(Instant::now());
        self.paces.hurry();
        self.next_plan.clear();
        self.plan_due(false).await;
        while self.effects.join_next().await.is_some() {}
    }

    /// Takes what has been told already; missed changes are as bad here as in `recv`.
    fn take_all(&mut self, changes: &mut Receiver<index::Change>) {
        loop {
            match changes.try_recv() {
                Ok(change) => self.changed(Ok(change)),
                Err(TryRecvError::Lagged(missed)) => self.changed(Err(RecvError::Lagged(missed))),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn changed(&mut self, change: Result<index::Change, RecvError>) {
        match change {
            Ok(change) => self.look_at(change.task, change.soon),
            Err(_) => self.everything_is_due(),
        }
    }

    fn look_at(&mut self, task: Arc<str>, soon: bool) {
        let at = Instant::now() + if soon { Duration::ZERO } else { NOT_SOON };
        let soonest = self.next_plan.get(&task).copied();
        self.due
            .by(task, soonest.map_or(at, |soonest| soonest.max(at)));
    }

    fn everything_is_due(&mut self) {
        let now = Instant::now();
        for task in self.shared.index.tasks() {
            let later = task.status.phase.is_finished();
            let at = now + FINISHED_LATER * u32::from(later);
            self.due.by(Arc::from(task.name.as_str()), at);
        }
        for task in self.shared.index.unread_tasks() {
            self.due.by(task.name, now);
        }
        for name in self.shared.index.ending_names() {
            self.due.by(name, now);
        }
    }

    /// Looks again at what is under way, whatever the watches told, and removes
    /// what is left over.
    fn sweep(&mut self) {
        let (tasks, pods) = (self.shared.index.tasks(), self.shared.index.pods());
        let now = Instant::now();
        for task in tasks.iter().filter(|t| !t.status.phase.is_finished()) {
            self.due.by(Arc::from(task.name.as_str()), now);
        }
        for name in self.shared.index.ending_names() {
            self.due.by(name, now);
        }
        let remembered = self.shared.index.remembered();
        self.offers.retain(|uid| remembered.contains(uid));
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
            let Some(pod) = self.shared.index.pod(&name) else {
                continue;
            };
            self.removals.ask(Removal {
                task: pod.task.clone(),
                what: What::Orphan(pod),
            });
        }
        for name in left_over.tasks {
            if let Some(task) = self.shared.index.task(&name) {
                self.removals.ask(Removal {
                    task: Arc::from(name),
                    what: What::Task(task),
                });
            }
        }
    }

    /// Starts the deletes that there is room for.
    fn remove(&mut self) {
        for removal in self.removals.admit() {
            let (key, shared) = (removal.key(), self.shared.clone());
            let name = removal.task.clone();
            self.start(&name, key, || match removal.what {
                What::Pod(pod) => {
                    let task = shared.index.task(&removal.task);
                    let span = task.map_or_else(Span::none, |t| span_of(&t, "remove worker"));
                    let delete = async move { delete::running(&shared, &pod).await };
                    Box::pin(delete.instrument(span))
                }
                What::Orphan(pod) => Box::pin(async move { delete::orphan(&shared, &pod).await }),
                What::Task(task) => Box::pin(async move { status::forget(&shared, &task).await }),
            });
        }
        while let Some((call, pods)) = self.batch.admit() {
            self.remove_ended(call, pods);
        }
    }

    fn remove_ended(&mut self, call: batch::Call, pods: Vec<Arc<Pod>>) {
        let shared = self.shared.clone();
        let of: BTreeSet<_> = pods.iter().map(|pod| pod.task.clone()).collect();
        let name = of.first().cloned().unwrap_or_default();
        // For as long as the call lasts, in the trace of each task's request.
        let tasks = of.iter().filter_map(|name| shared.index.task(name));
        let spans: Vec<Span> = tasks.map(|t| span_of(&t, "remove workers")).collect();
        let span = spans.first().cloned().unwrap_or_else(Span::none);
        // Of many it takes seconds, and the next leader does the rest as well.
        let drain = shared.drain.clone();
        let delete = async move { delete::ended(&shared, &pods).await }.instrument(span);
        let delete = drain.run_until_cancelled_owned(delete);
        self.start(&name, Key::DeleteEnded(call), || {
            let over = || End::Later("handing over".to_owned());
            Box::pin(async move {
                let end = delete.await.unwrap_or_else(over);
                drop(spans);
                end
            })
        });
    }

    /// Starts the creates that there is room for.
    fn admit(&mut self) {
        for (name, which) in self.admission.admit() {
            let Some(task) = self.shared.index.task(&name) else {
                let gone = End::Later("its task is gone".to_owned());
                self.admission.ended(&name, which, &gone);
                continue;
            };
            let shared = self.shared.clone();
            self.start(&name, Key::Create(name.clone(), which), || {
                let span = span_of(&task, "start worker");
                let effect = async move { create::create(&shared, &task, which).await };
                Box::pin(effect.instrument(span))
            });
        }
    }

    async fn plan_due(&mut self, act: bool) {
        let now = Instant::now();
        while let Some(name) = self.due.pop(now) {
            if let Some(unread) = self.shared.index.unread_of(&name) {
                self.leave(&name, &unread);
                continue;
            }
            if self.shared.caught_up.is_cancelled() && self.shared.index.may_end(&name) {
                self.say_last_words(&name).await;
            }
            let task = self.shared.index.task(&name).filter(|t| !t.deleting);
            // Of a task that went, or was made anew under its name, nothing is remembered.
            let uid = task.as_ref().map(|t| t.uid.clone());
            if self.uids.get(&name) != uid.as_ref() {
                self.dropped(&name);
                if let Some(uid) = uid {
                    self.uids.insert(name.clone(), uid);
                }
            }
            match task {
                Some(task) if self.shared.may_judge(&task) => self.plan(name, task, act).await,
                Some(task) if act => self.adopt(name, task),
                _ => {}
            }
        }
    }

    /// Offers what there is to tell of tasks of this name that end by a deletion.
    async fn say_last_words(&mut self, name: &Arc<str>) {
        for Ending { task, live, gone } in self.shared.index.ending(name) {
            let workers = {
                let notified = self.shared.notified();
                let told = notified.get(&*task.uid);
                let told = |index| told?.get(&index).copied();
                deleted_task::final_records(&task, &live, &gone, &told, self.time.now())
            };
            // There is nothing left that could store an end.
            let unstored = BTreeSet::new();
            self.offers.offer(name, &task, &workers, &unstored).await;
        }
    }

    /// Leaves a task alone of which something cannot be decoded, and tells people of it, once
    /// for each version of the object.
    fn leave(&mut self, name: &Arc<str>, unread: &Unread) {
        self.admission.forget(name);
        let what = (unread.uid.clone(), unread.version);
        if self.left.insert(name.clone(), what.clone()) != Some(what) {
            self.shared.tell_of_unread(unread);
        }
    }

    /// Once known, a task that the predecessor left is sealed; that is a change of
    /// it, which leads back here.
    fn adopt(&mut self, name: Arc<str>, task: Arc<Task>) {
        if !self.shared.caught_up.is_cancelled() {
            return;
        }
        let shared = self.shared.clone();
        self.start(&name, Key::Seal(name.clone()), || {
            Box::pin(async move {
                let Ok(_permit) = shared.seals.acquire().await else {
                    return End::Later("shutting down".to_owned());
                };
                status::seal(&shared, &task).await
            })
        });
    }

    /// Nothing of a task that went is remembered.
    fn dropped(&mut self, name: &Arc<str>) {
        self.next_plan.remove(name);
        self.paces.forget(name);
        self.held.remove(name);
        self.ledger.forget(name);
        self.is_absent(name, 0);
        self.uids.remove(name);
        self.admission.forget(name);
        self.left.remove(name);
        self.shared.refused().remove(name);
    }

    async fn plan(&mut self, name: Arc<str>, task: Arc<Task>, act: bool) {
        // The task and its pods of one moment: what an older task lacks, its pods no
        // longer tell once a newer one has recorded it.
        let Some(seen) = self.shared.index.task_with_pods(&task) else {
            return;
        };
        let planned = Instant::now();
        let now = self.time.now();
        let plan = self.compute(&name, &seen, now);
        let task = seen.task;
        let next = planned + PLAN_INTERVAL + PLAN_PER_WORKER * plan.status.counts.total;
        self.next_plan.insert(name.clone(), next);
        if let Some(at) = plan.wake_at {
            // A stored time may be any.
            let seconds = u64::try_from(at.saturating_sub(now))
                .unwrap_or(0)
                .min(MAX_WAIT);
            self.due
                .by(name.clone(), planned + Duration::from_secs(seconds));
        }
        self.is_absent(&name, plan.absent);
        let (workers, unstored) = (&plan.status.workers, &plan.unstored_ends);
        if self.offers.offer(&name, &task, workers, unstored).await {
            self.admission.heard_of_an_end();
            if !self.admission.waits_for_places() {
                self.batch.heard_of_an_end();
            }
        }
        let Plan {
            status,
            change,
            actions,
            creates,
            unstored_ends,
            absent: _,
            wake_at: _,
        } = plan;
        if act {
            self.admission.ask(&name, &task, creates);
            self.act(&name, &task, actions);
        }
        if change != Change::Nothing {
            let urgent = change == Change::Urgent
                || self.admission.waits_for_places() && urgency::makes_room(&task.status, &status);
            let waits_for_answer = unstored_ends.is_empty() && is_untold_end(&task.status, &status);
            self.store(name, task, status, urgent, waits_for_answer);
        }
    }

    /// Pods of a task that hold no place.
    fn is_absent(&mut self, name: &Arc<str>, pods: usize) {
        let before = match pods {
            0 => self.absent.remove(name),
            _ => self.absent.insert(name.clone(), pods),
        };
        if before.unwrap_or(0) != pods {
            let all = self.absent.values().sum();
            self.shared.absent.store(all, Ordering::Relaxed);
        }
    }

    fn compute(&mut self, name: &Arc<str>, seen: &index::TaskWithPods, now: i64) -> Plan {
        let index::TaskWithPods { task, pods, gone } = seen;
        let clocks = &self.shared.clocks;
        let times = self.ledger.observe(task, &[pods, gone], now);
        let since = |pod: &Pod, stage| times.since(pod, stage).unwrap_or(now);
        let (notified, refused) = (self.shared.notified(), self.shared.refused());
        let (notified, refused) = (notified.get(&*task.uid), refused.get(name));
        let limits = &self.shared.limits;
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        let seen = Observed {
            pods,
            gone,
            drained: &|pod| self.shared.is_drained(pod, now - since(pod, Stage::Ended)),
            since: &since,
            waited: &|index| times.waited(index),
            api_now: clocks.api_now(),
            notified: &|index| notified?.get(&index).copied(),
            refused: &|index| {
                let refused = refused?;
                let attempt = crate::domain::view::record(task, index).attempt;
                refused.get(&(index, attempt)).cloned()
            },
            first_line: &|uid| self.shared.drained.first_line(uid),
            lacks: &|| self.shared.lacks(name),
        };
        let limits = Limits {
            pending_timeout: seconds(limits.pending_timeout),
            node_lost_timeout: seconds(limits.node_lost_timeout),
            log_drain_timeout: seconds(limits.log_drain_timeout),
            task_ttl: seconds(limits.task_ttl),
        };
        plan::plan(task, seen, limits, now)
    }

    fn act(&mut self, name: &Arc<str>, task: &Arc<Task>, actions: Vec<Action>) {
        let within = match () {
            () if self.admission.waits_for_places() => batch::HURRIED,
            () if task.status.phase.is_finished() => batch::SOON,
            () => batch::LATER,
        };
        for action in actions {
            let what = match action {
                Action::Delete(pod) if pod.all_have_ended() => {
                    self.batch.ask(pod, within);
                    continue;
                }
                Action::Delete(pod) => What::Pod(pod),
                Action::Forget => What::Task(task.clone()),
            };
            self.removals.ask(Removal {
                task: name.clone(),
                what,
            });
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
