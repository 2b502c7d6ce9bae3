//! A worker's pod as the API server last told of it.
use std::sync::Arc;

pub use super::containers::PodPhase;
use super::{names::WORKER, task::TaskSpec};

/// A compact record; only the fields that something here uses, and what a task's
/// pods have in common is shared by them ([`Pod::share`]). Times are Unix seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    pub name: Arc<str>,
    pub uid: String,
    /// Name and uid of the owning WorkerTask.
    pub task: Arc<str>,
    pub task_uid: Arc<str>,
    pub task_id: Arc<str>,
    pub repository: Arc<str>,
    pub commit_sha: Arc<str>,
    pub index: u32,
    pub attempt: u32,
    /// Kubernetes lets resourceVersions of one resource be compared since 1.35
    /// (KEP-5504).
    pub resource_version: u64,
    /// How the worker fares, as its own container tells (`containers.rs`). The API
    /// server's phase of the pod is another one while containers of others run.
    pub phase: PodPhase,
    /// The worker has ended, and containers that others put into its pod have not: the
    /// API server's phase of the pod is not terminal.
    pub others_run: bool,
    /// The worker ended before anything ended its pod: what becomes of the pod later
    /// changes nothing.
    pub own_end: bool,
    /// The pod's reason where it ended the worker, else the worker container's (OOMKilled,
    /// Error, ImagePullBackOff …), or that of an init container with `Init:` before it.
    pub reason: String,
    pub message: String,
    pub exit_code: Option<i32>,
    /// The worker container has run: there are logs to read.
    pub started: Option<i64>,
    pub finished: Option<i64>,
    pub created: Option<i64>,
    /// It has a node.
    pub scheduled: Option<i64>,
    /// Its volumes and network are there; images come next.
    pub prepared: Option<i64>,
    /// The kubelet has taken the pod, by its own clock.
    pub accepted: Option<i64>,
    /// How long its containers have to end once it is deleted, in seconds.
    pub grace: i64,
    /// Why somebody else ends it: the reason of its DisruptionTarget condition
    /// (PreemptionByScheduler, EvictionByEvictionAPI …).
    pub disruption: Option<String>,
    /// Its node has not been heard of since then, by the node controller's clock: it says
    /// that a running container is not ready.
    pub node_lost: Option<i64>,
    /// Of the worker container: which instance runs, or was the last one that counts.
    pub restart_count: i32,
    /// The kubelet starts the worker container again when it fails: not ours, but that of
    /// those who change our pods on their way.
    pub restarts: bool,
    /// The kubelet started the worker container again after the worker's end.
    pub reran: bool,
    /// The kubelet lost sight of the worker container: whether it ran is not known.
    pub lost_status: bool,
    /// The init container that failed, where one did: its log tells why the worker's
    /// never ran.
    pub failed_init: Option<Box<str>>,
    pub node: String,
    pub ip: String,
    pub deleting: bool,
    /// The annotation `ottoscaler.io/log-checkpoint`.
    pub checkpoint: Option<String>,
    /// The annotation `ottoscaler.io/log-epoch`; 0 without one.
    pub log_epoch: u32,
    /// The task's trace.
    pub traceparent: Option<Arc<str>>,
    /// The label [`super::names::pod_key`], where somebody made it another pod's.
    pub foreign_key: Option<Box<str>>,
}

impl Pod {
    /// The worker has ended: there is no more to come of it. Containers of others may still
    /// run in its pod.
    pub fn worker_has_ended(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }

    /// All of the pod's containers have ended: the API server's phase is terminal.
    pub fn all_have_ended(&self) -> bool {
        self.worker_has_ended() && !self.others_run
    }

    /// Takes from an earlier state of this pod what stays so: that its worker has started,
    /// and the worker's end where that state showed it before anything ended the pod.
    pub fn keep(&mut self, known: &Self) {
        // An end with an exit code and no start is that of a container that never ran.
        let never_ran = self.exit_code.is_some() && self.started.is_none();
        if self.lost_status || (self.restart_count == known.restart_count && !never_ran) {
            self.started = self.started.or(known.started);
        }
        if !known.own_end || self.own_end {
            return;
        }
        // The pod has come to its own end only if the API server says so now.
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
        // It came after the end.
        self.disruption = None;
    }

    /// It has yet to start, and nothing is in its way.
    pub fn waits(&self) -> bool {
        self.phase == PodPhase::Pending && self.reason.is_empty() && !self.deleting
    }

    /// A container of it has run, or may have, whose logs are wanted.
    pub fn has_logs(&self) -> bool {
        self.started.is_some() || self.failed_init.is_some() || self.lost_status
    }

    /// The one whose logs are wanted.
    pub fn container(&self) -> &str {
        self.failed_init.as_deref().unwrap_or(WORKER)
    }

    /// Takes what its task says of it: its own annotations are anybody's to change.
    pub fn belong_to(&mut self, task: &TaskSpec) {
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

    /// Whether it says what its task says of it.
    pub fn belongs_to(&self, task: &TaskSpec) -> bool {
        *self.task_id == *task.task_id
            && *self.repository == *task.repository
            && *self.commit_sha == *task.commit_sha
            && self.traceparent.as_deref() == task.traceparent.as_deref()
    }

    /// Holds what it has in common with another pod of its task only once.
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

/// The pods of one task, to be found by worker index: a plan looks at each worker,
/// and must cost no more than in proportion to them.
#[derive(Debug)]
pub struct ByIndex<'a>(Vec<Entry<'a>>);

/// Index and attempt are beside the pod: to find one is not to read all on the way.
type Entry<'a> = (u32, u32, &'a Arc<Pod>);

impl<'a> ByIndex<'a> {
    pub fn new(pods: &'a [Arc<Pod>]) -> Self {
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

    /// The pods of a worker, oldest attempt first.
    pub fn of(&self, index: u32) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.entries(index).iter().map(|(.., pod)| *pod)
    }

    /// The newest pod of a worker, if it is of this attempt or a later one.
    pub fn newest(&self, index: u32, attempt: u32) -> Option<&'a Arc<Pod>> {
        let (_, newest, pod) = self.entries(index).last()?;
        (*newest >= attempt).then_some(*pod)
    }

    /// The highest index; 0 without any pod.
    pub fn top(&self) -> u32 {
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
        let pods = ByIndex::new(&pods);
        let attempts = |index| pods.of(index).map(|p| p.attempt).collect::<Vec<_>>();
        assert_eq!(attempts(1), [1, 2]);
        assert_eq!((attempts(2), attempts(8)), (vec![], vec![]));
        assert_eq!(pods.newest(1, 2).map(|p| p.attempt), Some(2));
        assert!(pods.newest(1, 3).is_none() && pods.newest(2, 1).is_none());
        assert_eq!((pods.top(), ByIndex::new(&[]).top()), (7, 0));
    }
}
