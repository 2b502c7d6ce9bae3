//! What the index holds, and how an object gets in and out.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::domain::{
    pod::Pod,
    task::{Task, WorkerRecord},
    view,
};

/// Tombstones kept at most; the workers of pods that go beyond it count as lost.
const MAX_GONE: usize = 20_000;

/// A task whose picture changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub task: Arc<str>,
    /// Somebody may wait for it: it is more than that a pod came that has yet to start, that
    /// one went whose end was told, or that otto-handler knows of a start.
    pub soon: bool,
}

impl Change {
    pub(super) fn soon(task: Arc<str>) -> Self {
        Self { task, soon: true }
    }
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct State {
    pub(super) tasks: BTreeMap<Arc<str>, Arc<Task>>,
    /// Live pods by name; sorted, so that what a seed began goes the same way again.
    pub(super) pods: BTreeMap<Arc<str>, Arc<Pod>>,
    /// The same, of each task; what asks for them most asks for all of one task.
    by_task: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<Pod>>>,
    /// Live pods of each repository.
    by_repository: HashMap<Arc<str>, usize>,
    /// Pods that went before their task's record was final, by uid.
    gone: HashMap<String, Arc<Pod>>,
    gone_by_task: HashMap<Arc<str>, Vec<String>>,
    /// Tombstones whose task is not known, by (version, uid): the tasks' watch is
    /// behind, or the task went first.
    unclaimed: BTreeSet<(u64, String)>,
}

impl State {
    /// None if this told nothing new.
    pub(super) fn apply_task(&mut self, task: Task) -> Option<Change> {
        let name: Arc<str> = Arc::from(task.name.as_str());
        if let Some(known) = self.tasks.get(&name)
            && known.resource_version >= task.resource_version
        {
            return None;
        }
        self.bury(&name, &task);
        let replaced = self.tasks.insert(name.clone(), Arc::new(task));
        // A list tells of a task that was made again, not that the first one went.
        if let Some(old) = replaced.filter(|old| !self.knows_task(old)) {
            self.unearth(&name, |pod| *pod.task_uid == *old.uid);
        }
        Some(Change::soon(name))
    }

    pub(super) fn delete_task(&mut self, name: &str, uid: &str) -> Option<Change> {
        if self.tasks.get(name).is_none_or(|t| t.uid != uid) {
            return None;
        }
        let (name, _) = self.tasks.remove_entry(name)?;
        self.unearth(&name, |pod| *pod.task_uid == *uid);
        Some(Change::soon(name))
    }

    /// The tasks' watch has told everything up to `version` (one count for tasks
    /// and pods): who is not known by now has gone, with all that his pods left.
    pub(super) fn heard_of_tasks(&mut self, version: u64) {
        while self.unclaimed.first().is_some_and(|(v, _)| *v <= version) {
            let Some((_, uid)) = self.unclaimed.pop_first() else {
                return;
            };
            if let Some(pod) = self.gone.get(&uid).filter(|p| !self.is_known(p)) {
                let task = pod.task.clone();
                self.unearth(&task, |pod| pod.uid == uid);
            }
        }
    }

    pub(super) fn has_unclaimed(&self) -> bool {
        !self.unclaimed.is_empty()
    }

    pub(super) fn knows_task(&self, task: &Task) -> bool {
        let known = self.tasks.get(task.name.as_str());
        known.is_some_and(|t| t.uid == task.uid)
    }

    pub(super) fn knows_pod(&self, pod: &Pod) -> bool {
        let known = self.pods.get(&pod.name);
        known.is_some_and(|p| p.uid == pod.uid)
    }

    /// The pod's task is.
    fn is_known(&self, pod: &Pod) -> bool {
        let task = self.tasks.get(&pod.task);
        task.is_some_and(|t| *t.uid == *pod.task_uid)
    }

    pub(super) fn apply_pod(&mut self, mut pod: Pod) -> Option<Change> {
        if self.gone.contains_key(&pod.uid) {
            return self.recall(pod);
        }
        if let Some(known) = self.pods.get(&pod.name) {
            if known.uid == pod.uid && known.resource_version >= pod.resource_version {
                return None;
            }
            if known.uid == pod.uid {
                pod.keep_end(known);
            } else {
                if known.resource_version > pod.resource_version {
                    return None;
                }
                let known = known.clone();
                self.entomb(&known);
                self.remove(&known.name, &known.task);
            }
        }
        let of_task = self.by_task.entry(pod.task.clone()).or_default();
        if let Some((_, other)) = of_task.first_key_value() {
            pod.share(other);
        }
        let (task, soon) = (pod.task.clone(), !pod.waits());
        let pod = Arc::new(pod);
        of_task.insert(pod.name.clone(), pod.clone());
        *self
            .by_repository
            .entry(pod.repository.clone())
            .or_default() += 1;
        if let Some(old) = self.pods.insert(pod.name.clone(), pod) {
            self.uncount(&old);
        }
        Some(Change { task, soon })
    }

    /// `last` is the pod as the deletion told it.
    pub(super) fn delete_pod(&mut self, last: Pod) -> Option<Change> {
        let Some(known) = self.pods.get(&last.name).filter(|p| p.uid == last.uid) else {
            return self.recall(last);
        };
        // A forced deletion may tell an older status than we know.
        let soon = !known.worker_has_ended();
        let last = if soon { Arc::new(last) } else { known.clone() };
        let task = last.task.clone();
        self.remove(&last.name, &task);
        self.entomb(&last);
        Some(Change { task, soon })
    }

    /// Drops pods that a complete list as of `version` no longer has.
    pub(super) fn retain_pods(&mut self, listed: &BTreeSet<String>, version: u64) -> Vec<Arc<str>> {
        let missing: Vec<Arc<Pod>> = self
            .pods
            .values()
            .filter(|p| p.resource_version <= version && !listed.contains(&p.uid))
            .cloned()
            .collect();
        missing
            .into_iter()
            .map(|pod| {
                self.remove(&pod.name, &pod.task);
                self.entomb(&pod);
                pod.task.clone()
            })
            .collect()
    }

    pub(super) fn retain_tasks(
        &mut self,
        listed: &BTreeSet<String>,
        version: u64,
    ) -> Vec<Arc<str>> {
        let missing: Vec<(Arc<str>, String)> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.resource_version <= version && !listed.contains(&t.uid))
            .map(|(name, t)| (name.clone(), t.uid.clone()))
            .collect();
        missing
            .into_iter()
            .filter_map(|(name, uid)| self.delete_task(&name, &uid))
            .map(|change| change.task)
            .collect()
    }

    pub(super) fn pods_of(&self, task: &str) -> Vec<Arc<Pod>> {
        let pods = self.by_task.get(task).into_iter();
        pods.flat_map(BTreeMap::values).cloned().collect()
    }

    pub(super) fn gone_of(&self, task: &str) -> Vec<Arc<Pod>> {
        let uids = self.gone_by_task.get(task).into_iter().flatten();
        uids.filter_map(|uid| self.gone.get(uid).cloned()).collect()
    }

    pub(super) fn pods_of_repository(&self, repository: &str) -> usize {
        self.by_repository.get(repository).copied().unwrap_or(0)
    }

    #[cfg(test)]
    pub(super) fn tombstones(&self) -> usize {
        self.gone.len()
    }

    #[cfg(test)]
    pub(super) fn graves(&self) -> Vec<String> {
        let of = |p: &Arc<Pod>| format!("{} {} of {}", p.name, p.uid, p.task_uid);
        self.gone.values().map(of).collect()
    }

    fn uncount(&mut self, pod: &Pod) {
        if let Some(count) = self.by_repository.get_mut(&pod.repository) {
            *count -= 1;
            if *count == 0 {
                self.by_repository.remove(&pod.repository);
            }
        }
    }

    fn remove(&mut self, name: &str, task: &Arc<str>) {
        if let Some(old) = self.pods.remove(name) {
            self.uncount(&old);
        }
        if let Some(pods) = self.by_task.get_mut(task) {
            pods.remove(name);
            if pods.is_empty() {
                self.by_task.remove(task);
            }
        }
    }

    fn entomb(&mut self, pod: &Arc<Pod>) {
        let task = self.tasks.get(&pod.task);
        if self.gone.len() >= MAX_GONE || task.is_some_and(|t| is_recorded(t, pod)) {
            return;
        }
        if !self.is_known(pod) {
            self.unclaimed
                .insert((pod.resource_version, pod.uid.clone()));
        }
        if self.gone.insert(pod.uid.clone(), pod.clone()).is_none() {
            self.gone_by_task
                .entry(pod.task.clone())
                .or_default()
                .push(pod.uid.clone());
        }
    }

    /// What a watch tells late of a pod that a list has shown to be gone: its end
    /// may be news.
    fn recall(&mut self, late: Pod) -> Option<Change> {
        let stone = self.gone.get_mut(&late.uid)?;
        if stone.worker_has_ended() || stone.resource_version >= late.resource_version {
            return None;
        }
        let task = late.task.clone();
        *stone = Arc::new(late);
        Some(Change::soon(task))
    }

    /// Drops the tombstones that the task's new record makes needless, and those of
    /// an older task of its name.
    fn bury(&mut self, name: &Arc<str>, task: &Task) {
        self.unearth(name, |pod| {
            let ours = *pod.task_uid == *task.uid;
            is_recorded(task, pod) || (!ours && pod.resource_version < task.resource_version)
        });
    }

    fn unearth(&mut self, task: &Arc<str>, needless: impl Fn(&Pod) -> bool) {
        let Some(uids) = self.gone_by_task.get_mut(task) else {
            return;
        };
        uids.retain(|uid| {
            let keep = self.gone.get(uid).is_some_and(|pod| !needless(pod));
            if !keep {
                self.gone.remove(uid);
            }
            keep
        });
        if uids.is_empty() {
            self.gone_by_task.remove(task);
        }
    }
}

/// The record has nothing more to learn from this pod.
fn is_recorded(task: &Task, pod: &Pod) -> bool {
    let record = view::stored(&task.status.workers, pod.index);
    let over = |w: &WorkerRecord| {
        w.attempt > pod.attempt || (w.attempt == pod.attempt && w.phase.is_final())
    };
    *task.uid == *pod.task_uid && record.is_some_and(over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        pod::PodPhase,
        task::{WorkerPhase, WorkerRecord},
    };

    fn pod(version: u64, phase: PodPhase) -> Pod {
        Pod {
            name: "p".into(),
            uid: "u".into(),
            task: "t".into(),
            index: 1,
            attempt: 1,
            resource_version: version,
            phase,
            ..Pod::default()
        }
    }

    #[test]
    fn the_highest_version_wins_whatever_the_order() {
        let mut s = State::default();
        assert!(s.apply_pod(pod(5, PodPhase::Running)).is_some());
        assert!(s.apply_pod(pod(4, PodPhase::Pending)).is_none());
        assert_eq!(s.pods["p"].phase, PodPhase::Running);
    }

    #[test]
    fn a_pod_that_has_yet_to_start_and_one_that_went_as_told_can_wait() {
        let mut s = State::default();
        let soon = |change: Option<Change>| change.map(|c| c.soon);
        let why = Pod {
            reason: "ImagePullBackOff".into(),
            ..pod(2, PodPhase::Pending)
        };
        assert_eq!(soon(s.apply_pod(pod(1, PodPhase::Pending))), Some(false));
        assert_eq!(soon(s.apply_pod(why)), Some(true));
        assert_eq!(soon(s.apply_pod(pod(3, PodPhase::Running))), Some(true));
        assert_eq!(soon(s.apply_pod(pod(4, PodPhase::Succeeded))), Some(true));
        assert_eq!(soon(s.delete_pod(pod(5, PodPhase::Succeeded))), Some(false));
        // That it ended is news.
        let mut s = State::default();
        s.apply_pod(pod(3, PodPhase::Running));
        assert_eq!(soon(s.delete_pod(pod(5, PodPhase::Succeeded))), Some(true));
    }

    #[test]
    fn an_end_that_was_seen_does_not_change_with_what_the_pod_comes_to() {
        let end = Pod {
            others_run: true,
            own_end: true,
            reason: "Error".into(),
            exit_code: Some(7),
            finished: Some(5),
            ..pod(3, PodPhase::Failed)
        };
        let evicted = Pod {
            reason: "Evicted".into(),
            exit_code: Some(7),
            disruption: Some("EvictionByEvictionAPI".into()),
            deleting: true,
            ..pod(4, PodPhase::Failed)
        };
        let mut s = State::default();
        s.apply_pod(end.clone());
        s.apply_pod(evicted);
        let now = &s.pods["p"];
        assert_eq!((now.reason.as_str(), now.exit_code), ("Error", Some(7)));
        assert_eq!(crate::domain::failure::ending(now), "Error");
        assert!(now.deleting && now.all_have_ended());
        // A kubelet that started anew may not know the container for a while.
        let mut s = State::default();
        s.apply_pod(end);
        s.apply_pod(pod(4, PodPhase::Pending));
        let now = &s.pods["p"];
        assert_eq!((now.phase, now.exit_code), (PodPhase::Failed, Some(7)));
        assert!(now.others_run);
    }

    #[test]
    fn what_a_tasks_pods_have_in_common_is_held_once() {
        let named = |name: &str, repository: &str| Pod {
            name: name.into(),
            uid: name.into(),
            repository: repository.into(),
            traceparent: Some("00-1-2-01".into()),
            ..pod(1, PodPhase::Running)
        };
        let mut s = State::default();
        s.apply_pod(named("p", "r"));
        s.apply_pod(named("q", "r"));
        s.apply_pod(named("other", "s"));
        let (p, q) = (&s.pods["p"], &s.pods["q"]);
        assert!(Arc::ptr_eq(&p.task, &q.task) && Arc::ptr_eq(&p.repository, &q.repository));
        let trace = |pod: &Pod| pod.traceparent.clone().map(|t| Arc::as_ptr(&t));
        assert_eq!(trace(p), trace(q));
        assert_eq!(&*s.pods["other"].repository, "s");
    }

    #[test]
    fn a_pod_that_went_leaves_a_tombstone_until_its_record_is_final() {
        let mut s = State::default();
        s.apply_pod(pod(5, PodPhase::Succeeded));
        s.delete_pod(pod(6, PodPhase::Succeeded));
        assert_eq!((s.pods_of("t").len(), s.gone_of("t").len()), (0, 1));
        // A late event does not bring it back.
        assert!(s.apply_pod(pod(4, PodPhase::Running)).is_none());
        let mut task = Task {
            name: "t".into(),
            resource_version: 7,
            ..Task::default()
        };
        task.status.workers = vec![WorkerRecord {
            index: 1,
            attempt: 1,
            phase: WorkerPhase::Succeeded,
            ..Default::default()
        }];
        s.apply_task(task);
        assert!(s.gone_of("t").is_empty());
    }

    #[test]
    fn a_list_may_overtake_the_watch_that_tells_how_a_pod_ended() {
        let mut s = State::default();
        s.apply_pod(pod(5, PodPhase::Running));
        s.retain_pods(&BTreeSet::new(), 9);
        assert!(s.apply_pod(pod(6, PodPhase::Succeeded)).is_some());
        assert!(s.delete_pod(pod(7, PodPhase::Failed)).is_none());
        let stones = s.gone_of("t");
        assert_eq!((stones.len(), stones[0].phase), (1, PodPhase::Succeeded));
    }

    #[test]
    fn a_tombstone_whose_task_is_gone_too_is_not_kept() {
        let mut s = State::default();
        s.apply_pod(pod(5, PodPhase::Running));
        s.delete_pod(pod(6, PodPhase::Running));
        // The tasks' watch may be behind.
        s.heard_of_tasks(5);
        assert_eq!(s.gone_of("t").len(), 1);
        s.heard_of_tasks(6);
        assert!(s == State::default());
    }

    #[test]
    fn tombstones_go_with_a_task_that_another_of_its_name_replaced() {
        let task = |uid: &str, version| Task {
            name: "t".into(),
            uid: uid.into(),
            resource_version: version,
            ..Task::default()
        };
        let of_first = |version| Pod {
            task_uid: "first".into(),
            ..pod(version, PodPhase::Running)
        };
        let mut s = State::default();
        s.apply_task(task("first", 1));
        s.apply_pod(of_first(5));
        // The pods' watch is ahead of the tasks' list.
        s.delete_pod(of_first(9));
        s.apply_task(task("second", 7));
        s.delete_task("t", "second");
        assert!(s == State::default(), "{:?}", s.graves());
    }

    #[test]
    fn a_list_older_than_a_write_does_not_remove_it() {
        let mut s = State::default();
        s.apply_pod(pod(9, PodPhase::Pending));
        assert!(s.retain_pods(&BTreeSet::new(), 8).is_empty());
        assert_eq!(s.retain_pods(&BTreeSet::new(), 9).len(), 1);
    }

    /// Counts follow the pods: a name used again, a relist, a deletion.
    #[test]
    fn a_repositorys_pods_are_counted_as_they_are() {
        let of = |name: &str, uid: &str, version, repository: &str| Pod {
            name: name.into(),
            uid: uid.into(),
            repository: repository.into(),
            ..pod(version, PodPhase::Running)
        };
        let mut s = State::default();
        s.apply_pod(of("p", "1", 1, "a"));
        s.apply_pod(of("p", "1", 2, "a"));
        s.apply_pod(of("q", "2", 3, "a"));
        s.apply_pod(of("p", "3", 4, "b"));
        assert_eq!(
            (s.pods_of_repository("a"), s.pods_of_repository("b")),
            (1, 1)
        );
        s.delete_pod(of("q", "2", 5, "a"));
        s.retain_pods(&BTreeSet::new(), 9);
        assert_eq!(
            (s.pods_of_repository("a"), s.pods_of_repository("b")),
            (0, 0)
        );
    }
}
