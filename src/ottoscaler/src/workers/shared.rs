//! What the manager's parts have in common: the loop, its writes, and the notifier.
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use k8s_openapi::api::core::v1::Pod as K8sPod;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{metrics::Metrics, scheduler::Scheduler};
use crate::{
    args::Limits,
    cluster::{
        crd::WorkerTask,
        events::{EventQueue, Note},
    },
    domain::{
        conditions::{QUEUED, WaitReason},
        pod::Pod,
        queue::Gate,
        refusal::{By, Refusal},
        task::{Notified, Task},
        template::Policy,
        unread::Unread,
    },
    election::{Clocks, LeaderClient, Pause},
    handler::Drained,
    index::{ChangeKind, Index},
    telemetry,
};

/// The last transition that otto-handler took of each worker, by the task's uid and the
/// worker's index: a name may be another task's by now.
pub(super) type AckedTransitions = HashMap<Arc<str>, HashMap<u32, Notified>>;
/// Why a worker's pod was refused for good, by task, worker index and attempt.
pub(super) type Refused = HashMap<Arc<str>, HashMap<(u32, u32), String>>;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: LeaderClient,
    pub(super) term: String,
    pub(super) index: Index,
    pub(super) events: EventQueue,
    pub(super) policy: Arc<Policy>,
    /// A pause of new pods; all else goes on.
    pub(super) pause: Pause,
    pub(super) clocks: Clocks,
    /// The number of pods that are done with, on nodes that do not answer. Written by the
    /// loop; read by the admission.
    pub(super) absent: AtomicUsize,
    /// All writes of the leader but its Events enter here.
    pub(super) scheduler: Arc<Scheduler>,
    /// Woken when somebody waits for room that history takes.
    pub(super) shed: Notify,
    pub(super) drained: Drained,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    /// The index knows all that the predecessor wrote.
    pub(super) caught_up: CancellationToken,
    pub(super) drain: CancellationToken,
    pub(super) lost: CancellationToken,
    /// Tasks that this leader made before it had caught up, by uid: of these there
    /// is nothing older to know. Written by ScaleUp, read by the loop.
    pub(super) made_by: Mutex<HashSet<String>>,
    /// What otto-handler took, until it is stored. Written by the notifier; read by the
    /// loop.
    pub(super) notified_by: Mutex<AckedTransitions>,
    /// Workers that the API server refused, by attempt. Written and read by the
    /// loop; read by ScaleUp.
    pub(super) refused_by: Mutex<Refused>,
    /// What workers without a pod wait for. Written by the admission; read by the loop
    /// and by ScaleUp.
    pub(super) waits: Mutex<Waits>,
}

/// What workers without a pod wait for, beside what can be seen at any time: a pause, and
/// MAX_WORKERS.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// The number of creates in flight; each takes a place.
    pub(super) in_flight: usize,
    /// Others have to wait for those.
    pub(super) has_queue: bool,
    /// The gates that are closed, and who closed them.
    pub(super) refusals: HashMap<Gate, Refusal>,
    /// The gate at which a task waits.
    pub(super) gates: HashMap<Arc<str>, Gate>,
}

impl Waits {
    /// Returns who refused a task's creates.
    fn refusal(&self, task: &str) -> Option<&Refusal> {
        let all = self.refusals.get(&Gate::All);
        all.or_else(|| self.refusals.get(self.gates.get(task)?))
    }
}

impl Shared {
    pub(super) fn notified(&self) -> MutexGuard<'_, AckedTransitions> {
        self.notified_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a task of our own making, which may be worked on at once.
    pub(super) fn made(&self, task: &Task) {
        if !self.caught_up.is_cancelled() {
            let mut made = self.made_by.lock().unwrap_or_else(PoisonError::into_inner);
            made.insert(task.uid.clone());
        }
    }

    /// Whether a task may be judged: its past is known, and no write of a former
    /// leader can change it any more.
    pub(super) fn may_judge(&self, task: &Task) -> bool {
        if self.caught_up.is_cancelled() {
            return task.status.phase.is_finished() || self.is_sealed(task);
        }
        let made = self.made_by.lock().unwrap_or_else(PoisonError::into_inner);
        made.contains(&task.uid)
    }

    /// Whether the task's last write was of this term.
    pub(super) fn is_sealed(&self, task: &Task) -> bool {
        task.term == self.term
    }

    /// Whether otto-handler has all of the logs of a pod that ended so many seconds ago;
    /// without one, whether whoever wants to read them had the time to.
    pub(super) fn is_drained(&self, pod: &Pod, ended_for: i64) -> bool {
        if self.limits.logs_forwarded {
            return self.drained.is_drained(pod);
        }
        u64::try_from(ended_for).is_ok_and(|s| s >= self.limits.log_drain_timeout.as_secs())
    }

    /// The number of pods, but for those on nodes that do not answer.
    pub(super) fn places_taken(&self) -> usize {
        let absent = self.absent.load(Ordering::Relaxed);
        self.index.pod_count().saturating_sub(absent)
    }

    pub(super) fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a task's workers without a pod wait for more than the API server's answers.
    #[cfg(test)]
    pub(super) fn lacks_places(&self, task: &str) -> bool {
        self.wait_reason(task) != WaitReason::default()
    }

    /// What a task's workers without a pod wait for just now.
    pub(super) fn wait_reason(&self, task: &str) -> WaitReason {
        if let Some(why) = self.pause.why() {
            return WaitReason::new("Paused", format!("wait for the end of the pause ({why})"));
        }
        let waits = self.waits();
        if let Some(refusal) = waits.refusal(task) {
            let reason = match refusal.by {
                By::Quota => "QuotaExceeded",
                By::Server | By::Conflict | By::Fence => QUEUED,
                _ => "CreateRefused",
            };
            return WaitReason::new(reason, refusal.waits_for());
        }
        let most = self.limits.max_workers;
        if waits.has_queue && self.places_taken() + waits.in_flight >= most {
            return WaitReason::new(QUEUED, format!("wait for room (MAX_WORKERS is {most})"));
        }
        WaitReason::default()
    }

    /// Tells people of a task, by an Event on its WorkerTask.
    pub(super) fn tell(&self, task: &Task, note: Note) {
        let about = self.client.reference::<WorkerTask>(&task.name, &task.uid);
        self.events.push(note, about);
    }

    /// The same of an object that cannot be decoded.
    pub(super) fn tell_of_unread(&self, object: &Unread) {
        let about = match &*object.kind {
            "Pod" => self.client.reference::<K8sPod>(&object.name, &object.uid),
            _ => self
                .client
                .reference::<WorkerTask>(&object.name, &object.uid),
        };
        let note = Note {
            warning: true,
            reason: "NotDecoded",
            action: "Decode".into(),
            text: format!(
                "this version of Ottoscaler does not understand it and leaves it alone ({}); \
                 mend it, delete it or upgrade",
                object.why
            ),
        };
        self.events.push(note, about);
    }

    pub(super) fn refused(&self) -> MutexGuard<'_, Refused> {
        self.refused_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what otto-handler took, of the task with that name and uid.
    pub(super) fn took(&self, name: &Arc<str>, uid: &Arc<str>, index: u32, told: Notified) {
        self.notified()
            .entry(uid.clone())
            .or_default()
            .insert(index, told);
        // An end may let a pod go; each plan for the rest would look at all workers.
        let kind = if told.state.is_end() {
            ChangeKind::Other
        } else {
            ChangeKind::ProgressAcknowledged
        };
        self.index.announce(name.clone(), kind);
    }
}

/// Returns a span in the trace of the request that made the task.
pub(super) fn span_of(task: &Task, what: &'static str) -> tracing::Span {
    let span = tracing::info_span!("worker", otel.name = what, task = task.spec.task_id);
    if let Some(parent) = &task.spec.traceparent {
        telemetry::set_parent_from(&span, parent);
    }
    span
}
