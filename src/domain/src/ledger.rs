//! Records when this leader first saw pods and workers in states that have a deadline.
//!
//! Invariants:
//! - A deadline counts from the time at which this leader first saw the state that it limits,
//!   by the leader's own monotonic clock. Timestamps of kubelets, controllers, API servers
//!   and former leaders decide nothing, because any of their clocks may be hours off. A new
//!   leader waits the whole time once more, which loses nobody's work.
//! - An entry lives for as long as its pod is in that state, or its worker waits for another
//!   attempt. The ledger is therefore bounded by what the index holds.
use std::{collections::HashMap, sync::Arc};

use super::{
    pod::Pod,
    stage::Stage,
    task::{Task, WorkerRecord},
};

/// A `Waited` says since when a worker waits for another attempt. Times are seconds of the
/// leader's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// The attempt that waits for its pod.
    pub attempt: u32,
    /// The time at which this leader first saw that this attempt waits.
    pub seen: i64,
    /// The time at which this leader first saw that the worker is to be retried, over all
    /// attempts in a row that never started.
    pub since: i64,
}

/// A `TaskTimes` holds the times at which this leader first saw the pods and workers of one
/// task in their states, in seconds of the leader's clock.
#[derive(Debug, Default)]
pub struct TaskTimes {
    /// The uid of the task.
    task: String,
    /// The times of each stage, by the uid of the pod.
    pods: HashMap<String, [Option<i64>; Stage::ALL.len()]>,
    /// The waits, by the index of the worker.
    workers: HashMap<u32, Waited>,
}

impl TaskTimes {
    /// Returns the time since which the pod is in that stage, or None if this leader has not
    /// seen it there.
    pub fn since(&self, pod: &Pod, stage: Stage) -> Option<i64> {
        self.pods.get(&pod.uid)?[stage as usize]
    }

    /// Returns since when the worker of this index waits for another attempt, or None if it
    /// does not.
    pub fn waited(&self, index: u32) -> Option<Waited> {
        self.workers.get(&index).copied()
    }

    fn observe(&mut self, task: &Task, pods: &[&[Arc<Pod>]], now: i64) {
        let mut before = std::mem::take(&mut self.pods);
        for pod in pods.iter().flat_map(|pods| pods.iter()) {
            let mut times = before.remove(&pod.uid).unwrap_or_default();
            for stage in Stage::ALL {
                let time = &mut times[stage as usize];
                *time = stage.is_of(pod).then(|| time.unwrap_or(now));
            }
            if times.iter().any(Option::is_some) {
                self.pods.insert(pod.uid.clone(), times);
            }
        }
        let before = std::mem::take(&mut self.workers);
        let waits =
            |w: &&WorkerRecord| !w.phase.is_final() && (w.tries > 0 || w.not_before.is_some());
        for worker in task.status.workers.iter().filter(waits) {
            let known = before.get(&worker.index);
            let same = known.filter(|known| known.attempt == worker.attempt);
            let since = known.filter(|_| worker.tries > 0).map(|known| known.since);
            let waited = Waited {
                attempt: worker.attempt,
                seen: same.map_or(now, |known| known.seen),
                since: since.unwrap_or(now),
            };
            self.workers.insert(worker.index, waited);
        }
    }
}

/// A `Ledger` holds the times of all tasks, by name, for one term.
#[derive(Debug, Default)]
pub struct Ledger(HashMap<Arc<str>, TaskTimes>);

impl Ledger {
    /// Records the states in which a task and its pods are seen at `now`, in seconds of the
    /// leader's clock.
    pub fn observe(&mut self, task: &Task, pods: &[&[Arc<Pod>]], now: i64) -> &TaskTimes {
        let times = self.0.entry(Arc::from(task.name.as_str())).or_default();
        if times.task != task.uid {
            *times = TaskTimes {
                task: task.uid.clone(),
                ..TaskTimes::default()
            };
        }
        times.observe(task, pods, now);
        times
    }

    /// Forgets a task that was deleted.
    pub fn forget(&mut self, task: &str) {
        self.0.remove(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pod::PodPhase, task::WorkerPhase};

    fn pod(reason: &str) -> Pod {
        Pod {
            uid: "u".into(),
            created: Some(1_000),
            reason: reason.into(),
            ..Pod::default()
        }
    }

    /// Returns what is known of the pod after each of these observations.
    fn since(stage: Stage, sights: &[(i64, Pod)]) -> Vec<Option<i64>> {
        let (mut ledger, task) = (Ledger::default(), Task::default());
        let mut seen = |(now, pod): &(i64, Pod)| {
            let pods = [Arc::new(pod.clone())];
            ledger.observe(&task, &[&pods], *now).since(pod, stage)
        };
        sights.iter().map(&mut seen).collect()
    }

    #[test]
    fn a_state_counts_from_when_it_was_first_seen_until_it_is_over() {
        let errors = [
            "",
            "ErrImagePull",
            "ImagePullBackOff",
            "PodInitializing",
            "ErrImagePull",
        ];
        let sights: Vec<_> = (0..).zip(errors).map(|(n, e)| (n, pod(e))).collect();
        let known = since(Stage::PullFails, &sights);
        assert_eq!(known, [None, Some(1), Some(1), None, Some(4)]);
        // The image is pulled, and then the container cannot be created.
        let sights = [(0, pod("ErrImagePull")), (9, pod("CreateContainerError"))];
        assert_eq!(since(Stage::CreateFails, &sights), [None, Some(9)]);
    }

    #[test]
    fn what_others_stamped_is_not_looked_at() {
        let ended = Pod {
            phase: PodPhase::Failed,
            finished: Some(10),
            ..pod("")
        };
        let lost = Pod {
            phase: PodPhase::Running,
            node_lost: Some(10),
            deleting: true,
            ..pod("")
        };
        for (stage, pod) in [
            (Stage::Waiting, &ended),
            (Stage::Ended, &ended),
            (Stage::Lost, &lost),
            (Stage::Deleting, &lost),
        ] {
            assert_eq!(
                since(stage, &[(1_300, pod.clone())]),
                [Some(1_300)],
                "{stage:?}"
            );
        }
    }

    #[test]
    fn what_went_is_not_remembered() {
        let (mut ledger, mut task) = (Ledger::default(), Task::default());
        task.status.workers = vec![WorkerRecord {
            index: 1,
            tries: 1,
            ..WorkerRecord::default()
        }];
        ledger.observe(&task, &[&[Arc::new(pod(""))]], 5);
        task.status.workers[0].phase = WorkerPhase::Failed;
        let times = ledger.observe(&task, &[], 6);
        assert!(times.pods.is_empty() && times.workers.is_empty());
        // Nothing is remembered of an older task of this name either.
        task.status.workers[0].phase = WorkerPhase::Queued;
        ledger.observe(&task, &[], 7);
        task.uid = "another".into();
        let times = ledger.observe(&task, &[], 8);
        assert_eq!(times.waited(1).map(|w| w.since), Some(8));
        ledger.forget("");
        assert!(ledger.0.is_empty());
    }

    #[test]
    fn a_worker_waits_from_its_first_try_on_whatever_comes_between() {
        let (mut ledger, mut task) = (Ledger::default(), Task::default());
        let mut waited = |attempt, tries, now| {
            task.status.workers = vec![WorkerRecord {
                index: 1,
                attempt,
                tries,
                not_before: Some(9_999),
                ..WorkerRecord::default()
            }];
            let known = ledger.observe(&task, &[], now).waited(1);
            known.map(|w| (w.seen, w.since))
        };
        assert_eq!(waited(2, 1, 150), Some((150, 150)));
        assert_eq!(waited(2, 1, 160), Some((150, 150)));
        assert_eq!(waited(3, 2, 170), Some((170, 150)));
        // The worker started, and was interrupted then.
        assert_eq!(waited(4, 0, 180), Some((180, 180)));
    }
}
