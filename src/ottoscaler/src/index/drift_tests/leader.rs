//! A leader's worker manager without its loop.
//!
//! It plans from its replica's index. A call takes two steps, so that each request and each
//! answer can be late.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    super::Index,
    server::{LOG_DRAIN, Server, is_broken, uid},
};
use crate::{
    cluster::convert,
    domain::{
        janitor,
        ledger::Ledger,
        names,
        plan::{self, Action, Limits, Observed},
        pod::Pod,
        queue::Attempt,
        task::{Notified, Task, TaskStatus},
        transition, view,
    },
};

pub(super) const LIMITS: Limits = Limits {
    pending_timeout: 900,
    node_lost_timeout: 3,
    log_drain_timeout: LOG_DRAIN,
    task_ttl: 200,
};

/// The history of finished tasks that is kept.
const MAX_FINISHED: janitor::History = janitor::History {
    tasks: 8,
    bytes: usize::MAX,
};

#[derive(Debug, Clone)]
pub(super) enum Work {
    Create(Arc<Task>, Attempt),
    Delete(Arc<Pod>),
    DeleteOrphan(Arc<Pod>),
    Seal(Arc<Task>),
    Store(Arc<Task>, TaskStatus),
    Forget(Arc<Task>),
}

impl Work {
    /// Returns the key of which at most one call is in flight, as in the worker manager.
    fn key(&self) -> String {
        match self {
            // The attempts of one worker exclude each other.
            Self::Create(task, which) => format!("create {} {}", task.name, which.index),
            Self::Delete(pod) | Self::DeleteOrphan(pod) => format!("delete {}", pod.uid),
            Self::Seal(task) => format!("seal {}", task.name),
            Self::Store(task, _) => format!("store {}", task.name),
            Self::Forget(task) => format!("forget {}", task.name),
        }
    }
}

/// The part of an answer that the index takes.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Nothing,
    Task(Box<Task>),
    Pod(Box<Pod>),
}

#[derive(Debug)]
pub(super) enum Call {
    Sent { work: Work, term: String },
    Answered { key: String, answer: Answer },
}

impl Call {
    pub(super) fn is_create(&self) -> bool {
        match self {
            Self::Sent { work, .. } => matches!(work, Work::Create(..)),
            Self::Answered { answer, .. } => matches!(answer, Answer::Pod(_)),
        }
    }
}

/// Lets the server execute a call.
pub(super) fn carry_out(server: &mut Server, work: &Work, term: &str) -> Answer {
    let task = match work {
        Work::Create(task, which) => {
            let pod = server.create(task, *which, term);
            let ours = pod
                .and_then(convert::pod)
                .filter(|p| *p.task_uid == *task.uid && p.attempt == which.attempt && !p.deleting);
            return ours.map_or(Answer::Nothing, |p| Answer::Pod(Box::new(p)));
        }
        // The worker manager deletes ended pods by their label.
        Work::Delete(pod) if pod.all_have_ended() => {
            let key = names::pod_key(&pod.task_uid, pod.index, pod.attempt);
            // A pod whose label was changed is deleted by its name.
            if !server.delete_ended(&key) {
                server.delete(&pod.name, &pod.uid);
            }
            None
        }
        Work::Delete(pod) => {
            server.delete_living(&pod.name, &pod.uid);
            None
        }
        Work::DeleteOrphan(pod) => {
            let task = server.tasks.objects.get(&*pod.task);
            if task.is_none_or(|t| uid(&t.metadata) != &*pod.task_uid) {
                server.delete(&pod.name, &pod.uid);
            }
            None
        }
        Work::Seal(task) => server.seal(task, term),
        Work::Store(task, status) => server.store(task, status.clone(), term),
        Work::Forget(task) => {
            server.forget(task);
            None
        }
    };
    let task = task
        .filter(|t| !is_broken(&t.metadata))
        .and_then(convert::task);
    task.map_or(Answer::Nothing, |t| Answer::Task(Box::new(t)))
}

/// The attempts that a plan finds to have ended, by the uids of their pods.
#[derive(Debug, Default)]
pub(super) struct Ends {
    pub(super) known: Vec<String>,
    /// The attempts whose end nobody saw.
    pub(super) lost: Vec<String>,
    /// The attempts whose nodes sent no heartbeats.
    pub(super) silent: Vec<String>,
}

impl Ends {
    fn of(task: &Task, planned: &TaskStatus) -> Self {
        let mut ends = Self::default();
        for new in &planned.workers {
            let old = view::record(task, new.index);
            let over = new.attempt > old.attempt || new.phase.is_final();
            match old.uid.clone().filter(|_| over && !old.phase.is_final()) {
                Some(uid) if new.reason == "Lost" => ends.lost.push(uid),
                Some(uid) if new.reason == "NodeLost" => ends.silent.push(uid),
                Some(uid) => ends.known.push(uid),
                None => {}
            }
        }
        ends
    }
}

pub(super) struct Leader {
    pub(super) replica: usize,
    pub(super) term: String,
    pub(super) caught_up: bool,
    /// The uids of the tasks that this leader created before it had caught up.
    pub(super) made: HashSet<String>,
    pub(super) calls: Vec<Call>,
    busy: HashSet<String>,
    /// The pods whose logs are acknowledged, by uid.
    pub(super) drained: HashSet<String>,
    told: HashMap<(String, u32), Notified>,
    ledger: Ledger,
    /// The transitions that otto-handler has received and that are not checked yet, by the uid
    /// of the task and the index.
    pub(super) heard: Vec<((String, u32), Notified)>,
    /// The earliest time at which a plan wants to be made again.
    pub(super) wake_at: Option<i64>,
}

impl Leader {
    pub(super) fn new(replica: usize, term: String) -> Self {
        Self {
            replica,
            term,
            caught_up: false,
            made: HashSet::new(),
            calls: Vec::new(),
            busy: HashSet::new(),
            drained: HashSet::new(),
            told: HashMap::new(),
            ledger: Ledger::default(),
            heard: Vec::new(),
            wake_at: None,
        }
    }

    fn start(&mut self, work: Work) {
        if self.busy.insert(work.key()) {
            let term = self.term.clone();
            self.calls.push(Call::Sent { work, term });
        }
    }

    /// Queues an answer to a write of ScaleUp or ScaleDown, which are no calls of the loop.
    pub(super) fn answered(&mut self, answer: Answer) {
        let key = String::new();
        self.calls.push(Call::Answered { key, answer });
    }

    /// Lets the server execute a call, or the index take its answer.
    pub(super) fn step(&mut self, at: usize, server: &mut Server, index: &Index) {
        match self.calls.swap_remove(at) {
            Call::Sent { work, term } => {
                let answer = carry_out(server, &work, &term);
                let key = work.key();
                self.calls.push(Call::Answered { key, answer });
            }
            Call::Answered { key, answer } => {
                match answer {
                    Answer::Task(task) => index.wrote_task(*task),
                    Answer::Pod(pod) => index.wrote_pod(*pod),
                    Answer::Nothing => {}
                }
                self.busy.remove(&key);
            }
        }
    }

    fn may_judge(&self, task: &Task) -> bool {
        if self.caught_up {
            task.status.phase.is_finished() || task.term == self.term
        } else {
            self.made.contains(&task.uid)
        }
    }

    pub(super) fn plan(&mut self, index: &Index, name: &str, now: i64, tell: bool) -> Ends {
        let Some(task) = index.task(name).filter(|t| !t.deleting) else {
            return Ends::default();
        };
        if index.unread_of(name).is_some() {
            return Ends::default();
        }
        if !self.may_judge(&task) {
            if self.caught_up {
                self.start(Work::Seal(task));
            }
            return Ends::default();
        }
        let (mut pods, mut gone) = index.pods_of(name);
        pods.retain(|p| *p.task_uid == *task.uid);
        gone.retain(|p| *p.task_uid == *task.uid);
        let told = &self.told;
        let times = self.ledger.observe(&task, &[&pods, &gone], now);
        let seen = Observed {
            pods: &pods,
            gone: &gone,
            drained: &|pod| self.drained.contains(&pod.uid),
            notified: &|index| told.get(&(task.uid.clone(), index)).copied(),
            refused: &|_| None,
            first_line: &|_| None,
            since: &|pod, stage| times.since(pod, stage).unwrap_or(now),
            waited: &|index| times.waited(index),
            api_now: Some(now),
            wait_reason: &Default::default,
        };
        let plan = plan::plan(&task, seen, LIMITS, now);
        let ends = Ends::of(&task, &plan.status);
        self.wake_at = self.wake_at.into_iter().chain(plan.wake_at).min();
        for record in plan.status.workers.iter().filter(|_| tell) {
            if let Some(next) = transition::next(record) {
                let worker = (task.uid.clone(), record.index);
                self.told.insert(worker.clone(), next);
                self.heard.push((worker, next));
            }
        }
        for which in plan.creates {
            self.start(Work::Create(task.clone(), which));
        }
        for action in plan.actions {
            self.start(match action {
                Action::Delete(pod) => Work::Delete(pod),
                Action::Forget => Work::Forget(task.clone()),
            });
        }
        let (old, new) = (&task.status, &plan.status);
        if old.phase != new.phase
            || old.workers != new.workers
            || old.finished_at != new.finished_at
        {
            self.start(Work::Store(task.clone(), plan.status));
        }
        ends
    }

    /// Deletes what is left over, as the sweep of the worker manager does.
    pub(super) fn sweep(&mut self, index: &Index) {
        let left_over = {
            let (tasks, unread) = (index.tasks(), index.unread_tasks());
            janitor::left_over(&tasks, &unread, &index.pods(), MAX_FINISHED)
        };
        for pod in left_over.pods.iter().filter_map(|name| index.pod(name)) {
            self.start(Work::DeleteOrphan(pod));
        }
        for task in left_over.tasks.iter().filter_map(|name| index.task(name)) {
            self.start(Work::Forget(task));
        }
    }
}
