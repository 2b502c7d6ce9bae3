//! Combines the stored record of a worker and its live pod into what clients see.
use std::{borrow::Cow, sync::Arc};

use super::{
    failure, names,
    pod::{Pod, PodPhase, PodsByIndex},
    task::{Counts, MAX_TASK_WORKERS, Task, TaskPhase, WorkerPhase, WorkerRecord},
};

/// A `ClientState` is one of the four states of a worker that clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientState {
    /// The worker has not started.
    Pending,
    /// The worker runs.
    Running,
    /// The worker succeeded.
    Succeeded,
    /// The worker failed for good, or ScaleDown ended it.
    Failed,
}

impl ClientState {
    /// Parses a state, ignoring case. Returns None for a text that is not a state.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Running, Self::Succeeded, Self::Failed]
            .into_iter()
            .find(|s| s.as_str().eq_ignore_ascii_case(text))
    }

    /// Returns the text of the state, as the gRPC contract has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

impl From<WorkerPhase> for ClientState {
    fn from(phase: WorkerPhase) -> Self {
        match phase {
            WorkerPhase::Queued | WorkerPhase::Pending => Self::Pending,
            // A newer version looks after it.
            WorkerPhase::Running | WorkerPhase::Unknown => Self::Running,
            WorkerPhase::Succeeded => Self::Succeeded,
            WorkerPhase::Failed | WorkerPhase::Terminated => Self::Failed,
        }
    }
}

impl Counts {
    /// Counts one more worker.
    pub fn add(&mut self, state: ClientState) {
        self.total += 1;
        *match state {
            ClientState::Pending => &mut self.pending,
            ClientState::Running => &mut self.running,
            ClientState::Succeeded => &mut self.succeeded,
            ClientState::Failed => &mut self.failed,
        } += 1;
    }
}

/// A `WorkerView` is a worker as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerView {
    /// The name of the pod of the newest attempt, whether it exists or not.
    pub pod_name: String,
    /// The stored record, brought up to date by the live pod.
    pub record: WorkerRecord,
}

impl WorkerView {
    /// Returns the state that clients are told.
    pub fn state(&self) -> ClientState {
        self.record.phase.into()
    }
}

/// Returns the workers of a task in ascending order of their indices: what the stored
/// records say, brought up to date by the live pods. Every replica computes the same from the
/// same objects.
pub fn workers(task: &Task, pods: &[Arc<Pod>]) -> Vec<WorkerView> {
    let pods = PodsByIndex::new(pods);
    let part = names::task_part(&task.spec.task_id);
    (1..=top(task).max(pods.top()).min(MAX_TASK_WORKERS))
        .map(|index| {
            let mut record = record(task, index).into_owned();
            // The newest attempt that anyone knows of is the worker.
            if let Some(pod) = pods.newest(index, record.attempt) {
                observe(&mut record, pod);
            }
            let pod_name = names::pod_name_of(&part, index, record.attempt);
            WorkerView { pod_name, record }
        })
        .collect()
}

/// Returns the number of a task's workers in each state, and the phase of the task that follows
/// from it. `workers` are the records of all of them, brought up to date.
pub fn progress<'a>(
    task: &Task,
    workers: impl IntoIterator<Item = &'a WorkerRecord>,
) -> (Counts, TaskPhase) {
    let mut counts = Counts::default();
    let (mut all_final, mut any_failed) = (true, false);
    for worker in workers {
        counts.add(worker.phase.into());
        all_final &= worker.phase.is_final();
        any_failed |= worker.phase == WorkerPhase::Failed;
    }
    let phase = match () {
        () if task.status.phase.is_finished() => task.status.phase,
        () if all_final && task.spec.workers == 0 => TaskPhase::Cancelled,
        () if all_final && any_failed => TaskPhase::Failed,
        () if all_final => TaskPhase::Succeeded,
        () if counts.running + counts.succeeded + counts.failed > 0 => TaskPhase::Running,
        () => TaskPhase::Pending,
    };
    (counts, phase)
}

/// Returns the stored record of a worker, or that of a queued one if none is stored.
pub fn record(task: &Task, index: u32) -> Cow<'_, WorkerRecord> {
    let queued = || WorkerRecord {
        index,
        attempt: 1,
        // While no record of the task is stored, its workers wait since it was created.
        queued: task.status.workers.is_empty().then_some(task.created),
        ..WorkerRecord::default()
    };
    let stored = find_record(&task.status.workers, index).map(Cow::Borrowed);
    stored.unwrap_or_else(|| Cow::Owned(queued()))
}

/// Finds the record of a worker. The records must be sorted by index.
pub fn find_record(workers: &[WorkerRecord], index: u32) -> Option<&WorkerRecord> {
    let found = workers.binary_search_by_key(&index, |w| w.index);
    found.ok().map(|at| &workers[at])
}

/// Returns the highest index that is or was wanted, as far as the task says.
pub(super) fn top(task: &Task) -> u32 {
    let known = task.status.workers.last().map_or(0, |w| w.index);
    task.spec.top().max(known).min(MAX_TASK_WORKERS)
}

/// Brings a record up to date with what its pod says. A final record stays as it is, so that
/// a late event does not rewrite it, and a phase never goes back.
pub(crate) fn observe(record: &mut WorkerRecord, pod: &Pod) {
    if record.phase == WorkerPhase::Unknown {
        return;
    }
    if pod.attempt < record.attempt || (record.phase.is_final() && pod.attempt == record.attempt) {
        return;
    }
    if pod.attempt > record.attempt {
        // `stopping` is not carried over: ScaleDown took the attempt before, not this one.
        *record = WorkerRecord {
            index: record.index,
            attempt: pod.attempt,
            notified: record.notified,
            failures: record.failures,
            cut: record.cut,
            queued: record.queued,
            ..WorkerRecord::default()
        };
    }
    // The comparison saves a copy for each worker of each plan.
    if record.uid.as_ref() != Some(&pod.uid) {
        record.uid = Some(pod.uid.clone());
    }
    let reason = if pod.worker_has_ended() {
        failure::end_reason(pod)
    } else {
        pod.reason.clone()
    };
    let phase = match pod.phase {
        PodPhase::Pending | PodPhase::Unknown => WorkerPhase::Pending,
        PodPhase::Running => WorkerPhase::Running,
        PodPhase::Succeeded | PodPhase::Failed if record.stopping => WorkerPhase::Terminated,
        // Somebody else ended the pod, whatever the container made of the signal.
        PodPhase::Succeeded if reason == "Deleted" => WorkerPhase::Failed,
        PodPhase::Succeeded => WorkerPhase::Succeeded,
        PodPhase::Failed => WorkerPhase::Failed,
    };
    record.phase = record.phase.max(phase);
    record.reason = reason;
    record.message = clip(&pod.message);
    record.exit_code = pod.exit_code;
    let keep = |old: &mut String, new: &String| {
        if !new.is_empty() && old != new {
            old.clone_from(new);
        }
    };
    keep(&mut record.node, &pod.node);
    keep(&mut record.ip, &pod.ip);
    record.created = pod.created.or(record.created);
    // The pod may exist before a record says that the worker waits.
    record.queued = record.queued.or(record.created);
    record.scheduled = pod.scheduled.or(record.scheduled);
    record.prepared = pod.prepared.or(record.prepared);
    record.started = pod.started.or(record.started);
    record.finished = pod.finished.or(record.finished);
    clamp_timestamps(record);
}

/// Corrects timestamps that are out of order. The runtime stamps a start, and the kubelet
/// what came before it, a little after the fact; but a worker that printed a line had started
/// by then, and one that started was prepared.
pub(crate) fn clamp_timestamps(record: &mut WorkerRecord) {
    let earlier = |at: Option<i64>, next: Option<i64>| at.map(|at| next.map_or(at, |n| at.min(n)));
    record.started = earlier(record.started, record.first_line);
    record.prepared = earlier(record.prepared, record.started);
}

/// Cuts a message to 128 bytes, which keeps the object of a task with 1,000 workers small.
fn clip(text: &str) -> String {
    let mut end = text.len().min(128);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::TaskSpec;

    fn task(workers: u32) -> Task {
        Task {
            spec: TaskSpec {
                task_id: "t".into(),
                workers,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn pod(index: u32, attempt: u32, phase: PodPhase) -> Arc<Pod> {
        Arc::new(Pod {
            index,
            attempt,
            phase,
            uid: format!("u{index}-{attempt}"),
            ..Default::default()
        })
    }

    #[test]
    fn a_worker_without_a_pod_is_pending() {
        let views = workers(&task(2), &[]);
        assert_eq!(
            views.iter().map(WorkerView::state).collect::<Vec<_>>(),
            [ClientState::Pending; 2]
        );
        assert_eq!(views[1].pod_name, "otto-agent-t-2");
    }

    #[test]
    fn the_newest_attempt_is_the_worker() {
        let views = workers(
            &task(1),
            &[pod(1, 1, PodPhase::Failed), pod(1, 2, PodPhase::Running)],
        );
        assert_eq!(views.len(), 1);
        assert_eq!(
            (views[0].pod_name.as_str(), views[0].state()),
            ("otto-agent-t-1-r1", ClientState::Running)
        );
    }

    #[test]
    fn a_container_that_printed_had_started_and_was_prepared() {
        let mut r = record(&task(1), 1).into_owned();
        let mut p = Arc::unwrap_or_clone(pod(1, 1, PodPhase::Running));
        (p.prepared, p.started) = (Some(18), Some(19));
        r.first_line = Some(17);
        observe(&mut r, &p);
        assert_eq!((r.prepared, r.started), (Some(17), Some(17)));

        // An unknown field keeps its earlier value.
        (r.prepared, r.started) = (Some(15), None);
        clamp_timestamps(&mut r);
        assert_eq!((r.prepared, r.started), (Some(15), None));
        r.started = Some(16);
        clamp_timestamps(&mut r);
        assert_eq!((r.prepared, r.started), (Some(15), Some(16)));
    }

    #[test]
    fn a_final_record_outlives_its_pod_and_any_late_event() {
        let mut t = task(1);
        let mut r = record(&t, 1).into_owned();
        observe(&mut r, &pod(1, 1, PodPhase::Succeeded));
        t.status.workers = vec![r];
        assert_eq!(workers(&t, &[])[0].state(), ClientState::Succeeded);
        assert_eq!(
            workers(&t, &[pod(1, 1, PodPhase::Running)])[0].state(),
            ClientState::Succeeded
        );
    }
}
