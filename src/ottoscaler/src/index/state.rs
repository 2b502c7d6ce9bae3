//! What the index holds, and how an object gets in and out.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::departed::Departed;
use super::unread::Unreads;
use crate::domain::{
    pod::Pod,
    task::{Task, WorkerRecord},
    unread::Unread,
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
    /// Those that cannot be decoded; what was known of them before stays in `tasks` and
    /// `pods`.
    unread_tasks: Unreads,
    unread_pods: Unreads,
    /// What the known tasks take.
    pub(super) bytes: Bytes,
    /// Tasks that were deleted before they had finished.
    pub(super) departed: Departed,
}

/// Bytes of stored tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    pub unfinished: usize,
    /// Of history, which can be shed.
    pub finished: usize,
}

/// Whether there is room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Now,
    /// Once finished tasks have gone.
    OnceShed,
    /// What is not finished takes all.
    No,
}

impl Bytes {
    /// Whether so much `more` is within what all tasks may take; what takes no more always
    /// is.
    pub fn room(self, more: usize, most: usize) -> Room {
        match () {
            () if more == 0 || self.unfinished + self.finished + more <= most => Room::Now,
            () if self.unfinished + more <= most => Room::OnceShed,
            () => Room::No,
        }
    }

    fn of(&mut self, task: &Task) -> &mut usize {
        if task.status.phase.is_finished() {
            &mut self.finished
        } else {
            &mut self.unfinished
        }
    }

    fn add(&mut self, task: &Task) {
        *self.of(task) += task.bytes;
    }

    fn subtract(&mut self, task: &Task) {
        let of = self.of(task);
        *of = of.saturating_sub(task.bytes);
    }
}

impl State {
    /// None if this told nothing new.
    pub(super) fn apply_task(&mut self, mut task: Task) -> Option<Change> {
        let name: Arc<str> = Arc::from(task.name.as_str());
        if let Some(known) = self.tasks.get(&name)
            && known.resource_version >= task.resource_version
        {
            return None;
        }
        self.forget_older(&name, &task.uid, task.resource_version);
        self.unread_tasks.read(&name, task.resource_version);
        let former = self.tasks.get(&name).filter(|t| t.uid != task.uid).cloned();
        if let Some(former) = former {
            self.depart(&former);
        }
        self.bury(&name, &task);
        self.adopt(&name, &task);
        task.bytes = task.stored_bytes();
        self.bytes.add(&task);
        task.drop_maps();
        let replaced = self.tasks.insert(name.clone(), Arc::new(task));
        if let Some(old) = &replaced {
            self.bytes.subtract(old);
        }
        // A list tells of a task that was made again, not that the first one went.
        if let Some(old) = replaced.filter(|old| !self.knows_task(old)) {
            self.unearth(&name, |pod| *pod.task_uid == *old.uid);
        }
        Some(Change::soon(name))
    }

    pub(super) fn delete_task(&mut self, name: &str, uid: &str) -> Option<Change> {
        let was_unread = self.unread_tasks.forget(name, uid);
        let is_known = self.tasks.get(name).is_some_and(|t| t.uid == uid);
        if !is_known && !was_unread {
            return None;
        }
        if let Some(task) = is_known.then(|| self.tasks.remove(name)).flatten() {
            self.bytes.subtract(&task);
            self.depart(&task);
        }
        let name = Arc::from(name);
        self.unearth(&name, |pod| *pod.task_uid == *uid);
        Some(Change::soon(name))
    }

    /// A task cannot be decoded; None if that is known, or a later version could be.
    pub(super) fn unread_task(&mut self, object: Unread) -> Option<Change> {
        let known = self.tasks.get(&object.name);
        if known.is_some_and(|t| t.resource_version >= object.version) {
            return None;
        }
        let name = object.name.clone();
        self.forget_older(&name, &object.uid, object.version);
        self.unread_tasks.take(object).then(|| Change::soon(name))
    }

    /// A task that cannot be decoded has gone where another one has its name by now, and so
    /// has all that its pods left.
    fn forget_older(&mut self, name: &Arc<str>, uid: &str, version: u64) {
        let older = self.unread_tasks.get(name);
        let older = older.filter(|u| u.uid != uid && u.version < version);
        if let Some(gone) = older.map(|u| u.uid.clone()) {
            self.unread_tasks.forget(name, &gone);
            self.unearth(name, |pod| *pod.task_uid == *gone);
        }
    }

    /// The same of a pod; one that is not ours is of no interest.
    pub(super) fn unread_pod(&mut self, mut object: Unread) -> Option<Change> {
        let known = self.pods.get(&object.name);
        let known = known.filter(|p| p.uid == object.uid);
        if known.is_some_and(|p| p.resource_version >= object.version)
            || self.gone.contains_key(&object.uid)
        {
            return None;
        }
        let of_known = || known.map(|p| (p.task.clone(), p.task_uid.clone()));
        object.task = object.task.or_else(of_known);
        let (task, _) = object.task.clone()?;
        self.unread_pods.take(object).then(|| Change::soon(task))
    }

    /// A pod went whose last state cannot be decoded: what was known of it is all there is.
    pub(super) fn delete_unread_pod(&mut self, object: &Unread) -> Option<Change> {
        let unread = self.unread_pods.get(&object.name);
        let unread = unread.filter(|u| u.uid == object.uid);
        let task = unread.and_then(|u| u.task.clone());
        self.unread_pods.forget(&object.name, &object.uid);
        let known = self.pods.get(&object.name);
        match known.filter(|p| p.uid == object.uid).cloned() {
            Some(known) => {
                self.remove(&known.name, &known.task);
                self.entomb(&known);
                Some(Change::soon(known.task.clone()))
            }
            None => task.map(|(task, _)| Change::soon(task)),
        }
    }

    /// What of this task, or of its pods, cannot be decoded.
    pub(super) fn unread_of(&self, task: &str) -> Option<&Unread> {
        let uid = self.tasks.get(task).map(|t| t.uid.as_str());
        let is_its = |pod: &&Unread| {
            let owner = pod.task.as_ref();
            owner.is_some_and(|(name, of)| **name == *task && uid.is_none_or(|uid| **of == *uid))
        };
        self.unread_tasks
            .get(task)
            .or_else(|| self.unread_pods.iter().find(is_its))
    }

    pub(super) fn unread_tasks(&self) -> impl Iterator<Item = &Unread> {
        self.unread_tasks.iter()
    }

    /// Remembers a task that goes before it has finished, or before its pods have gone.
    fn depart(&mut self, task: &Task) {
        let of_task = |p: &Arc<Pod>| *p.task_uid == *task.uid;
        let live = self.pods_of(&task.name).into_iter().filter(of_task);
        let gone = self.gone_of(&task.name).into_iter().filter(of_task);
        let pods: Vec<_> = gone.chain(live).collect();
        if !task.status.phase.is_finished() || !pods.is_empty() {
            self.departed.add(task, pods);
        }
    }

    /// Remembers pods of this name whose task went before this replica came: the tasks'
    /// watch has told everything up to `version`.
    pub(super) fn depart_orphans(&mut self, name: &str, version: u64) {
        for pod in self.pods_of(name) {
            let is_seen = !pod.task_uid.is_empty() && pod.resource_version <= version;
            if is_seen && !self.is_known(&pod) {
                self.departed.add_orphan(&pod);
            }
        }
    }

    /// The tasks' watch has told everything up to `version` (one count for tasks
    /// and pods): who is not known by now has gone, with all that his pods left. The names
    /// of such tasks.
    pub(super) fn heard_of_tasks(&mut self, version: u64) -> BTreeSet<Arc<str>> {
        let mut orphaned = BTreeSet::new();
        while self.unclaimed.first().is_some_and(|(v, _)| *v <= version) {
            let Some((_, uid)) = self.unclaimed.pop_first() else {
                break;
            };
            if let Some(pod) = self.gone.get(&uid).filter(|p| !self.is_known(p)) {
                let pod = pod.clone();
                self.unearth(&pod.task, |pod| pod.uid == uid);
                if !pod.task_uid.is_empty() {
                    self.departed.add_orphan(&pod);
                    orphaned.insert(pod.task.clone());
                }
            }
        }
        orphaned
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

    /// An object of this name and uid is known, in whatever state.
    pub(super) fn knows(&self, object: &Unread) -> bool {
        let (name, uid) = (&*object.name, &*object.uid);
        self.tasks.get(name).is_some_and(|t| t.uid == uid)
            || self.pods.get(name).is_some_and(|p| p.uid == uid)
            || self.unread_tasks.has(name, uid)
            || self.unread_pods.has(name, uid)
    }

    /// Pods of another task have this one's name.
    pub(super) fn has_others_pods(&self, task: &Task) -> bool {
        let pods = self.by_task.get(task.name.as_str()).into_iter();
        let mut pods = pods.flat_map(BTreeMap::values);
        pods.any(|p| *p.task_uid != *task.uid)
    }

    /// The pod's task is.
    pub(super) fn is_known(&self, pod: &Pod) -> bool {
        let task = self.tasks.get(&pod.task);
        task.is_some_and(|t| *t.uid == *pod.task_uid)
            || self.unread_tasks.has(&pod.task, &pod.task_uid)
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
                pod.keep(known);
            } else {
                if known.resource_version > pod.resource_version {
                    return None;
                }
                let known = known.clone();
                self.entomb(&known);
                self.remove(&known.name, &known.task);
            }
        }
        self.unread_pods.read(&pod.name, pod.resource_version);
        if let Some(task) = self
            .tasks
            .get(&pod.task)
            .filter(|t| *t.uid == *pod.task_uid)
        {
            pod.set_task_fields(&task.spec);
        }
        let of_task = self.by_task.entry(pod.task.clone()).or_default();
        if let Some((_, other)) = of_task.first_key_value() {
            pod.share(other);
        }
        let (task, soon) = (pod.task.clone(), !pod.waits());
        let pod = Arc::new(pod);
        self.departed.note(&pod);
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
        self.unread_pods.forget(&last.name, &last.uid);
        let Some(known) = self.pods.get(&last.name).filter(|p| p.uid == last.uid) else {
            return self.recall(last);
        };
        // A forced deletion may tell an older status than we know.
        let soon = !known.worker_has_ended();
        let last = if soon { Arc::new(last) } else { known.clone() };
        self.departed.note(&last);
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
        let unread = self.unread_pods.retain(listed, version).into_iter();
        let mut tasks: Vec<Arc<str>> = unread.filter_map(|u| Some(u.task?.0)).collect();
        tasks.extend(missing.into_iter().map(|pod| {
            self.remove(&pod.name, &pod.task);
            self.entomb(&pod);
            pod.task.clone()
        }));
        tasks
    }

    pub(super) fn retain_tasks(
        &mut self,
        listed: &BTreeSet<String>,
        version: u64,
    ) -> Vec<Arc<str>> {
        let mut missing: Vec<(Arc<str>, String)> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.resource_version <= version && !listed.contains(&t.uid))
            .map(|(name, t)| (name.clone(), t.uid.clone()))
            .collect();
        let unread = self.unread_tasks.iter();
        let unread = unread.filter(|u| u.version <= version && !listed.contains(&u.uid));
        missing.extend(unread.map(|u| (u.name.clone(), u.uid.clone())));
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

    /// The live pods of this very task, and the tombstones of those that went. An older
    /// task of its name may have left some.
    pub(super) fn all_pods_of(&self, task: &Task) -> Vec<Arc<Pod>> {
        let mut pods = self.pods_of(&task.name);
        pods.extend(self.gone_of(&task.name));
        pods.retain(|p| *p.task_uid == *task.uid);
        pods
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

    /// Pods that were known before their task say what it says of them.
    fn adopt(&mut self, name: &Arc<str>, task: &Task) {
        if self.knows_task(task) {
            return;
        }
        let pods = self
            .by_task
            .get(name)
            .into_iter()
            .flat_map(BTreeMap::values);
        let strangers = pods.filter(|p| *p.task_uid == *task.uid && !p.has_task_fields(&task.spec));
        for old in strangers.cloned().collect::<Vec<_>>() {
            let mut pod = Pod::clone(&old);
            pod.set_task_fields(&task.spec);
            if let Some((_, other)) = self.by_task.get(name).and_then(|p| p.first_key_value()) {
                pod.share(other);
            }
            let pod = Arc::new(pod);
            self.uncount(&old);
            let count = self.by_repository.entry(pod.repository.clone());
            *count.or_default() += 1;
            let of_task = self.by_task.entry(name.clone()).or_default();
            of_task.insert(pod.name.clone(), pod.clone());
            self.pods.insert(pod.name.clone(), pod);
        }
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
    let record = view::find_record(&task.status.workers, pod.index);
    let over = |w: &WorkerRecord| {
        w.attempt > pod.attempt || (w.attempt == pod.attempt && w.phase.is_final())
    };
    *task.uid == *pod.task_uid && record.is_some_and(over)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
