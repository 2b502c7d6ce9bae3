//! The loop starts its writes here, each with a slot of the scheduler, and learns how they
//! ended.
use std::{
    collections::{BTreeSet, VecDeque},
    future::Future,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::{Engine, tuning::PLAN_RELAXED};
use crate::{
    domain::{
        names,
        pod::Pod,
        queue::Attempt,
        refusal::Refusal,
        task::{Task, TaskStatus},
    },
    workers::{
        create, delete,
        deletes::Removal,
        outcome::WriteResult,
        recent_keys::Key,
        scheduler::{Class, Permit},
        shared::span_of,
        status_writer, tasks,
        tuning::WRITE_BACKOFF,
    },
};

/// A `Target` is what an effect writes.
#[derive(Debug)]
enum Target {
    One(Key),
    /// One call deletes these pods.
    Group(Vec<Key>),
}

/// An `Ended` is what comes of an effect.
pub(super) struct Ended {
    target: Target,
    /// The tasks that it concerns.
    tasks: BTreeSet<Arc<str>>,
    result: WriteResult,
    permit: Permit,
}

impl Engine {
    /// Starts what waits and has a slot.
    pub(super) fn dispatch(&mut self) {
        self.watch_lag.shown(self.shared.index.pods_version());
        self.shared.scheduler.wake();
        self.dispatch_statuses();
        self.dispatch_creates();
        self.dispatch_deletes();
    }

    /// Lets tasks whose status is to be written be planned, as many as there are slots.
    pub(super) fn dispatch_statuses(&mut self) {
        let room = self.shared.scheduler.room(Class::Status);
        let next = room.min(self.status_queue.len());
        for name in self.status_queue.drain(..next) {
            self.status_queued.remove(&name);
            self.due.by(name, Instant::now());
        }
        let is_wanted = !self.status_queue.is_empty();
        self.shared.scheduler.want(Class::Status, is_wanted);
    }

    fn dispatch_creates(&mut self) {
        for ((name, which), permit) in self.admission.admit() {
            let Some(task) = self.shared.index.task(&name) else {
                let gone = WriteResult::Retry("its task is gone".to_owned());
                self.admission.ended(&name, which, &gone);
                continue;
            };
            let key = Key::Create(name.clone(), which);
            // At most one of each is in the admission.
            self.keys.insert(key.clone());
            let (shared, span) = (self.shared.clone(), span_of(&task, "start worker"));
            let create = async move { create::create(&shared, &task, which).await };
            self.start(Target::One(key), [name], permit, create.instrument(span));
        }
    }

    fn dispatch_deletes(&mut self) {
        let scheduler = self.shared.scheduler.clone();
        if self.admission.waits_for_places() {
            self.ended_pods.hurry();
        }
        while self.ended_pods.is_ready() && scheduler.room(Class::Delete) > 0 {
            self.delete_group(scheduler.enter_now(Class::Delete));
        }
        for class in [Class::Delete, Class::Housekeeping] {
            while scheduler.room(class) > 0
                && let Some(removal) = self.removals(class).pop_front()
            {
                let (key, name) = (removal.key(), removal.task());
                let (shared, permit) = (self.shared.clone(), scheduler.enter_now(class));
                let delete = async move { removal.run(&shared).await };
                self.start(Target::One(key), [name], permit, delete);
            }
            let waits = !self.removals(class).is_empty();
            let is_group = class == Class::Delete && self.ended_pods.is_ready();
            scheduler.want(class, waits || is_group);
        }
    }

    /// Returns what waits for a slot of that class.
    fn removals(&mut self, class: Class) -> &mut VecDeque<Removal> {
        match class {
            Class::Housekeeping => &mut self.housekeeping,
            _ => &mut self.deletes,
        }
    }

    /// Deletes something by a call of its own once there is a slot, unless that is under way.
    pub(super) fn remove(&mut self, removal: Removal) {
        if self.keys.insert(removal.key()) {
            self.removals(removal.class()).push_back(removal);
        }
    }

    /// Deletes a pod that has ended with others, unless that is under way.
    pub(super) fn remove_ended(&mut self, pod: Arc<Pod>) {
        if self.keys.insert(Key::EndedPod(pod.uid.clone())) {
            let at_once = self.admission.waits_for_places();
            self.ended_pods.push(pod, at_once);
        }
    }

    fn delete_group(&mut self, permit: Permit) {
        let (pods, shared) = (self.ended_pods.next(), self.shared.clone());
        let names: BTreeSet<_> = pods.iter().map(|pod| pod.task.clone()).collect();
        let keys = pods.iter().map(|p| Key::EndedPod(p.uid.clone())).collect();
        // For as long as the call lasts, in the trace of each task's request.
        let tasks = names.iter().filter_map(|name| shared.index.task(name));
        let spans: Vec<Span> = tasks.map(|t| span_of(&t, "remove workers")).collect();
        let span = spans.first().cloned().unwrap_or_else(Span::none);
        // Of many it takes seconds, and the next leader does the rest as well.
        let drain = shared.drain.clone();
        let delete = async move { delete::ended(&shared, &pods).await }.instrument(span);
        let delete = drain.run_until_cancelled_owned(delete);
        self.start(Target::Group(keys), names, permit, async move {
            let result = delete.await;
            drop(spans);
            result.unwrap_or_else(|| WriteResult::Retry("handing over".to_owned()))
        });
    }

    /// Seals a task that the predecessor left, once all is known; that is a change of it,
    /// which makes it due again.
    pub(super) fn adopt(&mut self, name: Arc<str>, task: Arc<Task>) {
        let (shared, key) = (self.shared.clone(), Key::Seal(name.clone()));
        if !shared.caught_up.is_cancelled() || self.keys.contains(&key) {
            return;
        }
        if shared.scheduler.is_full(Class::TaskWrite) {
            self.due.by(name, Instant::now() + WRITE_BACKOFF.after(1));
            return;
        }
        self.keys.insert(key.clone());
        let tasks = BTreeSet::from([name]);
        self.effects.spawn(async move {
            // It waits with the writes of requests, in their order.
            let (result, permit) = match shared.scheduler.enter(Class::TaskWrite).await {
                Some(permit) => (tasks::seal(&shared, &task).await, permit),
                None => (
                    WriteResult::Retry("too many wait".to_owned()),
                    shared.scheduler.enter_now(Class::TaskWrite),
                ),
            };
            Ended {
                target: Target::One(key),
                tasks,
                result,
                permit,
            }
        });
    }

    /// Stores a status now, if there is a slot; else once there is one.
    pub(super) fn store(&mut self, name: Arc<str>, task: Arc<Task>, status: TaskStatus) {
        let key = Key::Status(name.clone());
        if self.keys.contains(&key) {
            // Its end makes the task due again.
        } else if self.shared.scheduler.room(Class::Status) == 0 {
            if self.status_queued.insert(name.clone()) {
                self.status_queue.push_back(name);
            }
        } else {
            self.keys.insert(key.clone());
            let permit = self.shared.scheduler.enter_now(Class::Status);
            let shared = self.shared.clone();
            let write = async move { status_writer::write(&shared, &task, status).await };
            self.start(Target::One(key), [name], permit, write);
        }
    }

    fn start(
        &mut self,
        target: Target,
        tasks: impl IntoIterator<Item = Arc<str>>,
        permit: Permit,
        effect: impl Future<Output = WriteResult> + Send + 'static,
    ) {
        let tasks = tasks.into_iter().collect();
        self.effects.spawn(async move {
            Ended {
                target,
                tasks,
                result: effect.await,
                permit,
            }
        });
    }

    /// Takes in how an effect ended; its tasks are due again.
    pub(super) fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ended {
            target,
            tasks,
            result,
            permit,
        } = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // Its keys stay busy until the term ends; say so loudly.
                tracing::error!(%error, "an effect panicked");
                return;
            }
        };
        let now = Instant::now();
        let mut again = now;
        match &result {
            WriteResult::Done => {}
            // What else was said is told in the task.
            WriteResult::Refused(Refusal { by, verdict, .. }) => {
                tracing::info!(?target, ?by, ?verdict, "the API server refused a create");
            }
            WriteResult::Retry(_) | WriteResult::Busy { .. } => {
                tracing::info!(?target, why = result.loggable(), "waiting");
                again += WRITE_BACKOFF.after(1);
            }
        }
        let is_done = result.is_done();
        match target {
            Target::Group(pods) => {
                self.ended_pods.ended();
                // How long it takes says how many there were.
                permit.ended(&result, false);
                for pod in pods {
                    self.keys.remove(pod, is_done);
                }
            }
            Target::One(key) => {
                match &key {
                    Key::Create(name, which) => {
                        again = now + self.created(name, *which, &result, permit);
                    }
                    Key::Status(name) => {
                        self.statuses.ended(name, is_done, now);
                        // The object is large.
                        permit.ended(&result, false);
                    }
                    Key::Seal(_) | Key::Task(_) | Key::Pod(_) | Key::EndedPod(_) => {
                        permit.ended(&result, is_done);
                    }
                }
                self.keys.remove(key, is_done);
            }
        }
        for task in tasks {
            self.due.by(task, again);
        }
    }

    /// Takes in how a create ended, and returns when its task is to be planned again. Its
    /// slot is free once the watch has shown the pod.
    fn created(
        &mut self,
        name: &Arc<str>,
        which: Attempt,
        result: &WriteResult,
        permit: Permit,
    ) -> Duration {
        let outcome = self.admission.ended(name, which, result);
        for (task, Attempt { index, attempt }, why) in outcome.failed {
            self.due.by(task.clone(), Instant::now());
            let mut refused = self.shared.refused();
            let of_task = refused.entry(task).or_default();
            of_task.insert((index, attempt), why);
        }
        match self.version_of(name, which).filter(|_| result.is_done()) {
            Some(version) => self.watch_lag.answered(version, permit),
            // A refusal costs the server little, and says little of its load.
            None => permit.ended(result, false),
        }
        PLAN_RELAXED.max(outcome.again)
    }

    /// Returns the resourceVersion of an attempt's pod.
    fn version_of(&self, name: &Arc<str>, which: Attempt) -> Option<u64> {
        let task = self.shared.index.task(name)?;
        let pod = names::pod_name(&task.spec.task_id, which.index, which.attempt);
        Some(self.shared.index.pod(&pod)?.resource_version)
    }
}
