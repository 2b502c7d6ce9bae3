//! The watch cache of tasks and worker pods that each replica has.
//!
//! Two watches feed it, and on the leader the answers to its own writes do too.
//!
//! Invariants:
//! - Of each object the highest resourceVersion wins, in whatever order versions arrive.
//! - A pod that was deleted leaves a tombstone until its record in the task is final.
//! - A change is announced after readers can see it.
//! - What one call returns of a task and its pods was true at one moment.
//! - All readers and writers share one lock, which is never held across an await.
mod deleted_tasks;
#[cfg(test)]
mod drift_tests;
mod feed;
mod metrics;
mod state;
mod stored_bytes;
mod task_view;
#[cfg(test)]
mod tests;
mod unread_objects;
mod worker_status;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use tokio::sync::{broadcast, watch};

pub use feed::{PodFeed, TaskFeed};
use metrics::UndecodableObjects;
use state::IndexState;
pub use state::{ChangeKind, TaskChanged};
pub use stored_bytes::{StorageRoom, StoredBytes};
use task_view::TaskViews;
pub use task_view::{Row, TaskView};
pub(crate) use worker_status::rfc3339_or_empty;

use crate::domain::{
    names,
    pod::Pod,
    request::Selection,
    task::Task,
    unread::Unread,
    view::{self, WorkerView},
};

/// The number of changes by which a subscriber may lag. One that lags more must look at all tasks
/// again, which is no more work than so many changes are.
const CHANGE_BUFFER: usize = 4_096;

/// A handle of the watch cache; clones share it.
#[derive(Debug, Clone)]
pub struct Index(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The objects. The feeds and the answers to writes change them.
    state: RwLock<IndexState>,
    /// What clients are sent of each task, where it was asked for.
    views: TaskViews,
    changes: broadcast::Sender<TaskChanged>,
    /// A channel for each task that somebody follows. Without them, every change of any task
    /// would wake each of hundreds of waiting calls.
    followed: Mutex<HashMap<Arc<str>, watch::Sender<()>>>,
    /// The versions up to which the watches of tasks and of pods have reported all changes.
    versions: watch::Sender<(u64, u64)>,
    tasks: WatchProgress,
    pods: WatchProgress,
    undecodable: UndecodableObjects,
    start: Instant,
}

/// The progress of one watch; only its feed writes it.
#[derive(Debug, Default)]
struct WatchProgress {
    /// Whether the watch has listed once.
    synced: AtomicBool,
    /// The time of the last event or bookmark, in milliseconds since `start`.
    last_event: AtomicU64,
}

/// A task and all its workers by index, as of one moment.
#[derive(Debug, Clone)]
pub struct TaskSnapshot {
    pub task: Arc<Task>,
    pub workers: Vec<WorkerView>,
}

/// A task, its live pods and the tombstones of its deleted pods, as of one moment.
#[derive(Debug, Clone)]
pub struct TaskWithPods {
    pub task: Arc<Task>,
    pub pods: Vec<Arc<Pod>>,
    pub gone: Vec<Arc<Pod>>,
}

/// A task that is being deleted, or that was deleted before it had finished.
#[derive(Debug, Clone)]
pub struct TaskDeletion {
    pub task: Arc<Task>,
    /// The pods of the task that still exist.
    pub live: Vec<Arc<Pod>>,
    /// The last known states of its pods that are gone.
    pub gone: Vec<Arc<Pod>>,
}

/// A worker and the task it belongs to.
#[derive(Debug, Clone)]
pub struct Worker {
    pub task: Arc<Task>,
    pub view: WorkerView,
}

impl Default for Index {
    fn default() -> Self {
        Self(Arc::new(Inner {
            state: RwLock::default(),
            views: TaskViews::default(),
            changes: broadcast::channel(CHANGE_BUFFER).0,
            followed: Mutex::default(),
            versions: watch::channel((0, 0)).0,
            tasks: WatchProgress::default(),
            pods: WatchProgress::default(),
            undecodable: UndecodableObjects::default(),
            start: Instant::now(),
        }))
    }
}

impl Index {
    fn read(&self) -> RwLockReadGuard<'_, IndexState> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then announces the tasks that changed.
    fn change<C>(&self, change: impl FnOnce(&mut IndexState) -> C)
    where
        C: IntoIterator<Item = TaskChanged>,
    {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        let changes: Vec<TaskChanged> = change(&mut state).into_iter().collect();
        for change in &changes {
            self.0.views.drop_view(&change.task);
        }
        drop(state);
        for change in changes {
            self.notify(change);
        }
    }

    /// Notifies the followers of the task and all subscribers.
    fn notify(&self, change: TaskChanged) {
        let mut followed = self.followed();
        if let Some(followers) = followed.get(&change.task)
            && followers.send(()).is_err()
        {
            followed.remove(&change.task);
        }
        drop(followed);
        // Sending fails only while there is no subscriber.
        let _ = self.0.changes.send(change);
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<Arc<str>, watch::Sender<()>>> {
        self.0
            .followed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the task of this name.
    pub fn task(&self, name: &str) -> Option<Arc<Task>> {
        self.read().tasks.get(name).cloned()
    }

    /// Returns all tasks in the order of their names, so that lists of tasks are stable.
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        self.read().tasks.values().cloned().collect()
    }

    /// Returns the live pods of all tasks of this name, and the tombstones of deleted ones.
    pub fn pods_of(&self, task: &str) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
        let state = self.read();
        (state.pods_of(task), state.tombstones_of(task))
    }

    /// Returns the space that the known tasks take in etcd.
    pub fn stored_bytes(&self) -> StoredBytes {
        self.read().bytes
    }

    /// Returns the pod-key labels that somebody copied from another pod ([`Pod::foreign_key`]).
    pub fn foreign_keys(&self) -> HashSet<Box<str>> {
        let state = self.read();
        let keys = state.pods.values().filter_map(|p| p.foreign_key.clone());
        keys.collect()
    }

    /// Returns an object that cannot be decoded and is this task or one of its pods. While there
    /// is one, nothing may be decided about the task.
    pub fn unread_of(&self, task: &str) -> Option<Unread> {
        self.read().unread_of(task).cloned()
    }

    /// Returns the tasks that cannot be decoded.
    pub fn unread_tasks(&self) -> Vec<Unread> {
        self.read().unread_tasks().cloned().collect()
    }

    /// Registers the metrics of the index.
    pub fn register(&self, registry: &mut Registry) {
        self.0.undecodable.register(registry);
    }

    /// Reports whether [`Self::deletions`] may return anything. It is cheap, because there mostly is
    /// nothing.
    pub fn may_have_deletions(&self, name: &str) -> bool {
        let state = self.read();
        let task = state.tasks.get(name).filter(|t| !t.deleting);
        state.deleted_tasks.has_name(name) || task.is_none_or(|t| state.has_pods_of_others(t))
    }

    /// Returns the tasks of this name that end by a deletion. What is known of a task that was
    /// deleted before this replica started comes from its pods.
    pub fn deletions(&self, name: &str) -> Vec<TaskDeletion> {
        let version = self.synced_versions().0;
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        state.remember_orphans(name, version);
        let deleting = state.tasks.get(name).filter(|t| t.deleting).cloned();
        let deleting = deleting.map(|task| (task, state.tombstones_of(name)));
        let live = state.pods_of(name);
        let all = deleting.into_iter().chain(state.deleted_tasks.named(name));
        all.map(|(task, known)| {
            let of_task = |p: &&Arc<Pod>| *p.task_uid == *task.uid;
            let live: Vec<_> = live.iter().filter(of_task).cloned().collect();
            let is_gone = |p: &&Arc<Pod>| !live.iter().any(|l| l.uid == p.uid);
            let gone = known.iter().filter(of_task).filter(is_gone).cloned();
            TaskDeletion {
                gone: gone.collect(),
                task,
                live,
            }
        })
        .collect()
    }

    /// Returns the names of the tasks that may end by a deletion: those that are deleted or being
    /// deleted, and those of pods whose task is not known.
    pub fn deletion_names(&self) -> BTreeSet<Arc<str>> {
        let state = self.read();
        let going = state.tasks.values().filter(|t| t.deleting);
        let going = going.chain(state.deleted_tasks.tasks());
        let going = going.map(|t| Arc::from(t.name.as_str()));
        let unknown = state.pods.values().filter(|p| !state.knows_task_of(p));
        going.chain(unknown.map(|p| p.task.clone())).collect()
    }

    /// Returns the uids of all tasks that exist or were deleted recently, and drops those that
    /// were deleted long ago.
    pub fn recent_task_uids(&self) -> HashSet<String> {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        state.deleted_tasks.remove_expired();
        let tasks = state.tasks.values().chain(state.deleted_tasks.tasks());
        tasks.map(|t| t.uid.clone()).collect()
    }

    pub fn pod(&self, name: &str) -> Option<Arc<Pod>> {
        self.read().pods.get(name).cloned()
    }

    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.read().pods.values().cloned().collect()
    }

    pub fn pod_count(&self) -> usize {
        self.read().pods.len()
    }

    /// Returns the number of live pods of a repository's workers.
    pub fn pods_of_repository(&self, repository: &str) -> usize {
        self.read().pods_of_repository(repository)
    }

    /// Returns the workers of a task by index, from the newest known version of the task and
    /// its pods at the same moment. An older version would lack what its record has taken over
    /// from pods that are gone by now.
    pub fn workers_of(&self, task: &Task) -> Vec<WorkerView> {
        let state = self.read();
        let newer = state.tasks.get(task.name.as_str());
        let newer = newer
            .filter(|t| t.uid == task.uid && t.resource_version > task.resource_version)
            .cloned();
        let pods = state.all_pods_of(task);
        drop(state);
        view::workers(newer.as_deref().unwrap_or(task), &pods)
    }

    /// Returns the current version of exactly this task, with its pods; returns `None` if the
    /// task is gone.
    pub fn task_with_pods(&self, task: &Task) -> Option<TaskWithPods> {
        let state = self.read();
        let current = state.tasks.get(task.name.as_str());
        let current = current.filter(|t| t.uid == task.uid)?.clone();
        let (mut pods, mut gone) = (state.pods_of(&task.name), state.tombstones_of(&task.name));
        drop(state);
        // An older task of this name may still have pods.
        pods.retain(|p| *p.task_uid == *task.uid);
        gone.retain(|p| *p.task_uid == *task.uid);
        Some(TaskWithPods {
            task: current,
            pods,
            gone,
        })
    }

    /// Returns a task and its workers as of one moment.
    pub fn snapshot(&self, name: &str) -> Option<TaskSnapshot> {
        let state = self.read();
        let task = state.tasks.get(name)?.clone();
        let pods = state.all_pods_of(&task);
        drop(state);
        let workers = view::workers(&task, &pods);
        Some(TaskSnapshot { task, workers })
    }

    /// Returns the workers of a task as clients are sent them.
    pub fn view(&self, name: &str) -> Option<Arc<TaskView>> {
        let state = self.read();
        let task = state.tasks.get(name)?;
        let cell = self.0.views.cell(name);
        if let Some(view) = cell.get() {
            return Some(view.clone());
        }
        let task = task.clone();
        let pods = state.all_pods_of(&task);
        drop(state);
        let build = || Arc::new(TaskView::new(task.clone(), &view::workers(&task, &pods)));
        Some(cell.get_or_init(build).clone())
    }

    /// Returns the tasks that may have selected workers, in the order of their names.
    pub fn candidates(&self, selection: &Selection) -> Vec<Arc<str>> {
        if let Some(id) = &selection.task_id {
            return vec![Arc::from(names::task_name(id))];
        }
        match &selection.pod_name {
            Some(pod) => names::task_of_pod(pod).map(Arc::from).into_iter().collect(),
            None => self.task_names(),
        }
    }

    /// Returns the selected workers by task and index. The workers of one task are as of one
    /// moment.
    pub fn workers(&self, selection: &Selection) -> Vec<Worker> {
        let mut found = Vec::new();
        let names = self.candidates(selection);
        for TaskSnapshot { task, workers } in names.iter().filter_map(|name| self.snapshot(name)) {
            let selected = workers.into_iter().filter(|w| selection.selects(&task, w));
            found.extend(selected.map(|view| Worker {
                task: task.clone(),
                view,
            }));
        }
        found
    }

    pub fn task_names(&self) -> Vec<Arc<str>> {
        self.read().tasks.keys().cloned().collect()
    }

    /// Subscribes to the changes of all tasks. A subscriber that lags too far must look at all
    /// tasks again.
    pub fn subscribe(&self) -> broadcast::Receiver<TaskChanged> {
        self.0.changes.subscribe()
    }

    /// Subscribes to the changes of one task. Changes that the receiver has not looked at
    /// coalesce.
    pub fn follow(&self, task: &str) -> watch::Receiver<()> {
        let mut followed = self.followed();
        let followers = followed.entry(Arc::from(task));
        followers
            .or_insert_with(|| watch::channel(()).0)
            .subscribe()
    }

    /// Notifies subscribers of a task that they should look at again.
    pub fn announce(&self, task: Arc<str>, kind: ChangeKind) {
        self.notify(TaskChanged { task, kind });
    }

    /// Reports whether both watches have listed once.
    pub fn synced(&self) -> bool {
        [&self.0.tasks, &self.0.pods]
            .iter()
            .all(|h| h.synced.load(Ordering::Acquire))
    }

    /// Returns the time since the last event or bookmark of the watch that has been silent for
    /// longer.
    pub fn staleness(&self) -> Duration {
        let last = self
            .0
            .tasks
            .last_event
            .load(Ordering::Relaxed)
            .min(self.0.pods.last_event.load(Ordering::Relaxed));
        self.0
            .start
            .elapsed()
            .saturating_sub(Duration::from_millis(last))
    }

    /// Waits until the watches have reported all changes up to these versions. The caller bounds
    /// the wait.
    pub async fn wait_for_versions(&self, task_version: u64, pod_version: u64) {
        let mut versions = self.0.versions.subscribe();
        // The sender lives as long as `self`, so that this cannot fail.
        let _ = versions
            .wait_for(|(t, p)| *t >= task_version && *p >= pod_version)
            .await;
    }

    /// Waits until both watches have listed once. The caller bounds the wait.
    pub async fn wait_synced(&self) {
        let mut versions = self.0.versions.subscribe();
        let _ = versions.wait_for(|_| self.synced()).await;
    }

    /// Returns the version up to which the watch of pods has reported all changes.
    pub fn pods_version(&self) -> u64 {
        self.synced_versions().1
    }

    /// Returns the versions up to which the watches of tasks and of pods have reported all
    /// changes.
    fn synced_versions(&self) -> (u64, u64) {
        *self.0.versions.borrow()
    }

    /// Applies a task unless it is late, so that a task that the watch has reported as deleted
    /// does not come back. `is_late` judges by the version up to which the watch has reported.
    fn apply_task(&self, task: Task, is_late: impl FnOnce(u64) -> bool) {
        self.change(|s| {
            let is_deleted = is_late(self.synced_versions().0) && !s.knows_task(&task);
            if is_deleted { None } else { s.apply_task(task) }
        });
    }

    /// Applies a pod unless it is late, as with tasks.
    fn apply_pod(&self, pod: Pod, is_late: impl FnOnce(u64) -> bool) {
        self.change(|s| {
            let is_deleted = is_late(self.synced_versions().1) && !s.knows_pod(&pod);
            if is_deleted { None } else { s.apply_pod(pod) }
        });
    }

    /// Applies a task that a write returned.
    pub fn wrote_task(&self, task: Task) {
        let version = task.resource_version;
        self.apply_task(task, |synced| version <= synced);
    }

    /// Applies a pod that a write returned.
    pub fn wrote_pod(&self, pod: Pod) {
        let version = pod.resource_version;
        self.apply_pod(pod, |synced| version <= synced);
    }
}
