//! The record of a worker's pod, as the API server last reported it.
use std::sync::Arc;

pub use super::containers::PodPhase;
use super::{names::WORKER, task::TaskSpec};

/// A `Pod` is what Ottoscaler keeps of a worker's pod: only the fields that something here
/// uses. The pods of a task share the texts that they have in common ([`Pod::share`]). Times
/// are Unix seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// The name of the pod.
    pub name: Arc<str>,
    /// The uid of the pod.
    pub uid: String,
    /// The name of the WorkerTask that owns the pod.
    pub task: Arc<str>,
    /// The uid of the WorkerTask that owns the pod.
    pub task_uid: Arc<str>,
    /// The task id of the task's request.
    pub task_id: Arc<str>,
    /// The repository of the task.
    pub repository: Arc<str>,
    /// The commit of the task.
    pub commit_sha: Arc<str>,
    /// The index of the worker, from 1.
    pub index: u32,
    /// The attempt of the worker, from 1.
    pub attempt: u32,
    /// The resourceVersion. Kubernetes defines the order of those of one resource since 1.35
    /// (KEP-5504).
    pub resource_version: u64,
    /// The phase of the worker, as its own container shows it (`containers.rs`). The phase of
    /// the pod at the API server is another one while containers of others run.
    pub phase: PodPhase,
    /// Whether the worker has ended while containers that others put into its pod have not:
    /// the API server's phase of the pod is not terminal.
    pub others_run: bool,
    /// Whether the worker ended before anything ended its pod: what happens to the pod later
    /// changes nothing.
    pub own_end: bool,
    /// The reason of the pod if that ended the worker, else that of the worker container
    /// (OOMKilled, Error, ImagePullBackOff …), or that of an init container after `Init:`.
    pub reason: String,
    /// The message that came with the reason.
    pub message: String,
    /// The exit code of the worker container.
    pub exit_code: Option<i32>,
    /// The time at which the worker container started. If it is set, there are logs to read.
    pub started: Option<i64>,
    /// The time at which the worker ended.
    pub finished: Option<i64>,
    /// The time at which the API server created the pod.
    pub created: Option<i64>,
    /// The time at which the pod was bound to a node.
    pub scheduled: Option<i64>,
    /// The time at which the volumes and the network of the pod were ready; images come next.
    pub prepared: Option<i64>,
    /// The time at which the kubelet accepted the pod, by its own clock.
    pub accepted: Option<i64>,
    /// The grace period of a deletion, in seconds.
    pub grace: i64,
    /// The reason of the condition DisruptionTarget, if somebody else ends the pod
    /// (PreemptionByScheduler, EvictionByEvictionAPI …).
    pub disruption: Option<String>,
    /// The time since which the pod's node does not report, by the node controller's clock.
    /// That controller then sets a running container to not ready.
    pub node_lost: Option<i64>,
    /// The number of the worker container's instance that runs, or of the last one that
    /// counts, from 0.
    pub restart_count: i32,
    /// Whether the kubelet restarts the worker container when it fails. Our pods do not ask
    /// for that, but webhooks may change them.
    pub restarts: bool,
    /// Whether the kubelet restarted the worker container after the worker's end.
    pub reran: bool,
    /// Whether the kubelet lost the status of the worker container, so that nobody knows
    /// whether it ran.
    pub lost_status: bool,
    /// The name of the init container that failed, if one did: its log says why the worker's
    /// container never ran.
    pub failed_init: Option<Box<str>>,
    /// The name of the node; empty without one.
    pub node: String,
    /// The IP address of the pod; empty without one.
    pub ip: String,
    /// Whether the pod is being deleted.
    pub deleting: bool,
    /// The annotation `ottoscaler.io/log-checkpoint`, which earlier versions wrote.
    pub checkpoint: Option<String>,
    /// The annotation `ottoscaler.io/log-epoch`; 0 without one.
    pub log_epoch: u32,
    /// The W3C trace context of the task.
    pub traceparent: Option<Arc<str>>,
    /// The label with the pod's key ([`super::names::pod_key`]), if somebody changed it so
    /// that it is not that of this pod.
    pub foreign_key: Option<Box<str>>,
}

impl Pod {
    /// Reports whether the worker has ended. Containers of others may still run in its pod.
    pub fn worker_has_ended(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }

    /// Reports whether all containers of the pod have ended: the API server's phase is
    /// terminal.
    pub fn all_have_ended(&self) -> bool {
        self.worker_has_ended() && !self.others_run
    }

    /// Takes over from an earlier state of this pod what cannot change any more: that its
    /// worker has started, and the worker's end if that state showed it before anything ended
    /// the pod.
    pub fn keep(&mut self, known: &Self) {
        // A container that ended with an exit code and without a start never ran.
        let never_ran = self.exit_code.is_some() && self.started.is_none();
        if self.lost_status || (self.restart_count == known.restart_count && !never_ran) {
            self.started = self.started.or(known.started);
        }
        if !known.own_end || self.own_end {
            return;
        }
        // Whether the pod has ended is what the API server reports now.
        let pod_has_ended = self.all_have_ended();
        self.phase = known.phase;
        self.others_run = !pod_has_ended;
        self.own_end = true;
        self.reason.clone_from(&known.reason);
        self.message.clone_from(&known.message);
        self.exit_code = known.exit_code;
        self.started = known.started;
        self.finished = known.finished;
        self.restart_count = known.restart_count;
        self.failed_init = None;
        // The disruption came after the end.
        self.disruption = None;
    }

    /// Reports whether the worker has yet to start and nothing is in its way.
    pub fn waits(&self) -> bool {
        self.phase == PodPhase::Pending && self.reason.is_empty() && !self.deleting
    }

    /// Reports whether a container has run, or may have, whose logs are to be read.
    pub fn has_logs(&self) -> bool {
        self.started.is_some() || self.failed_init.is_some() || self.lost_status
    }

    /// Returns the name of the container whose logs are to be read.
    pub fn container(&self) -> &str {
        self.failed_init.as_deref().unwrap_or(WORKER)
    }

    /// Sets the fields that the task knows better, because anybody may change the annotations
    /// of a pod: task id, repository, commit and trace context.
    pub fn set_task_fields(&mut self, task: &TaskSpec) {
        let set = |ours: &mut Arc<str>, text: &str| {
            if **ours != *text {
                *ours = Arc::from(text);
            }
        };
        set(&mut self.task_id, &task.task_id);
        set(&mut self.repository, &task.repository);
        set(&mut self.commit_sha, &task.commit_sha);
        if self.traceparent.as_deref() != task.traceparent.as_deref() {
            self.traceparent = task.traceparent.as_deref().map(Arc::from);
        }
    }

    /// Reports whether the fields that [`Pod::set_task_fields`] sets are those of the task.
    pub fn has_task_fields(&self, task: &TaskSpec) -> bool {
        *self.task_id == *task.task_id
            && *self.repository == *task.repository
            && *self.commit_sha == *task.commit_sha
            && self.traceparent.as_deref() == task.traceparent.as_deref()
    }

    /// Makes this pod share the memory of the texts that it has in common with another pod of
    /// its task.
    pub fn share(&mut self, other: &Self) {
        let share = |ours: &mut Arc<str>, theirs: &Arc<str>| {
            if ours == theirs {
                ours.clone_from(theirs);
            }
        };
        share(&mut self.task, &other.task);
        share(&mut self.task_uid, &other.task_uid);
        share(&mut self.task_id, &other.task_id);
        share(&mut self.repository, &other.repository);
        share(&mut self.commit_sha, &other.commit_sha);
        if let (Some(ours), Some(theirs)) = (&mut self.traceparent, &other.traceparent) {
            share(ours, theirs);
        }
    }
}

/// A `PodsByIndex` finds the pods of one task by worker index, so that the cost of a plan is
/// linear in the number of workers.
#[derive(Debug)]
pub(crate) struct PodsByIndex<'a>(Vec<Entry<'a>>);

/// A pod with its index and attempt, so that a search reads no other pod.
type Entry<'a> = (u32, u32, &'a Arc<Pod>);

impl<'a> PodsByIndex<'a> {
    /// Sorts the pods of one task by index and attempt.
    pub(crate) fn new(pods: &'a [Arc<Pod>]) -> Self {
        let mut sorted: Vec<Entry<'a>> = pods.iter().map(|p| (p.index, p.attempt, p)).collect();
        sorted.sort_by_key(|(index, attempt, _)| (*index, *attempt));
        Self(sorted)
    }

    fn entries(&self, index: u32) -> &[Entry<'a>] {
        let start = self.0.partition_point(|(i, ..)| *i < index);
        let rest = &self.0[start..];
        let end = rest.iter().position(|(i, ..)| *i != index);
        &rest[..end.unwrap_or(rest.len())]
    }

    /// Returns the pods of a worker, oldest attempt first.
    pub(crate) fn of(&self, index: u32) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.entries(index).iter().map(|(.., pod)| *pod)
    }

    /// Returns the newest pod of a worker, if it is of this attempt or a later one.
    pub(crate) fn newest(&self, index: u32, attempt: u32) -> Option<&'a Arc<Pod>> {
        let (_, newest, pod) = self.entries(index).last()?;
        (*newest >= attempt).then_some(*pod)
    }

    /// Returns the highest index, or 0 without any pod.
    pub(crate) fn top(&self) -> u32 {
        self.0.last().map_or(0, |(index, ..)| *index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_of_a_worker_are_found_in_the_order_of_their_attempts() {
        let pod = |(index, attempt)| {
            Arc::new(Pod {
                index,
                attempt,
                ..Pod::default()
            })
        };
        let pods: Vec<_> = [(3, 1), (1, 2), (7, 1), (1, 1)].map(pod).into();
        let pods = PodsByIndex::new(&pods);
        let attempts = |index| pods.of(index).map(|p| p.attempt).collect::<Vec<_>>();
        assert_eq!(attempts(1), [1, 2]);
        assert_eq!((attempts(2), attempts(8)), (vec![], vec![]));
        assert_eq!(pods.newest(1, 2).map(|p| p.attempt), Some(2));
        assert!(pods.newest(1, 3).is_none() && pods.newest(2, 1).is_none());
        assert_eq!((pods.top(), PodsByIndex::new(&[]).top()), (7, 0));
    }
}
