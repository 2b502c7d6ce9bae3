//! The shared watch cache: every replica's picture of tasks and worker pods.
//!
//! Fed by two watches and, on the leader, by the answers of its own writes. What
//! holds: of an object the highest resourceVersion wins, whatever the order of
//! arrival; a pod that went leaves a tombstone until its task's record is final;
//! a change is announced after it can be read. Readers share one lock, never held
//! across an await.
#[cfg(test)]
mod drift_tests;
mod feed;
mod metrics;
mod state;
mod unread;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use tokio::sync::{broadcast, watch};

pub use feed::{PodFeed, TaskFeed};
use metrics::Undecodable;
use state::State;
pub use state::{Bytes, Change, Room};

use crate::domain::{
    pod::Pod,
    request::Selection,
    task::Task,
    unread::Unread,
    view::{self, WorkerView},
};

/// Changes a subscriber may be behind before it must look at everything.
const CHANGES: usize = 4_096;

#[derive(Debug, Clone)]
pub struct Index(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Written by the feeds; read by everyone.
    state: RwLock<State>,
    changes: broadcast::Sender<Change>,
    /// Of tasks that somebody follows: hundreds of waiting calls would each be woken
    /// by every change of every task.
    followed: Mutex<HashMap<Arc<str>, watch::Sender<()>>>,
    /// How far the watches have come: (tasks, pods).
    reached: watch::Sender<(u64, u64)>,
    tasks: Heard,
    pods: Heard,
    undecodable: Undecodable,
    start: Instant,
}

/// One watch's signs of life; written by its feed only.
#[derive(Debug, Default)]
struct Heard {
    synced: AtomicBool,
    /// Milliseconds since `start`.
    at: AtomicU64,
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
            changes: broadcast::channel(CHANGES).0,
            followed: Mutex::default(),
            reached: watch::channel((0, 0)).0,
            tasks: Heard::default(),
            pods: Heard::default(),
            undecodable: Undecodable::default(),
            start: Instant::now(),
        }))
    }
}

impl Index {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then announces the task whose picture it changed.
    fn change(&self, change: impl FnOnce(&mut State) -> Option<Change>) {
        let changed = change(&mut self.0.state.write().unwrap_or_else(PoisonError::into_inner));
        if let Some(change) = changed {
            self.tell(change);
        }
    }

    fn tell(&self, change: Change) {
        let mut followed = self.followed();
        if let Some(followers) = followed.get(&change.task)
            && followers.send(()).is_err()
        {
            followed.remove(&change.task);
        }
        drop(followed);
        // No subscriber is no error.
        let _ = self.0.changes.send(change);
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<Arc<str>, watch::Sender<()>>> {
        self.0
            .followed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn task(&self, name: &str) -> Option<Arc<Task>> {
        self.read().tasks.get(name).cloned()
    }

    /// By name, so that a task list is stable.
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        self.read().tasks.values().cloned().collect()
    }

    /// The live pods of a task and the tombstones of those that went.
    pub fn pods_of(&self, task: &str) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
        let state = self.read();
        (state.pods_of(task), state.gone_of(task))
    }

    /// What the known tasks take in etcd.
    pub fn stored_bytes(&self) -> Bytes {
        self.read().bytes
    }

    /// Labels of pods that somebody made another pod's ([`Pod::foreign_key`]).
    pub fn foreign_keys(&self) -> HashSet<Box<str>> {
        let state = self.read();
        let keys = state.pods.values().filter_map(|p| p.foreign_key.clone());
        keys.collect()
    }

    /// What of this task, or of its pods, cannot be decoded: nothing may be decided about the
    /// task then.
    pub fn unread_of(&self, task: &str) -> Option<Unread> {
        self.read().unread_of(task).cloned()
    }

    /// Tasks that cannot be decoded.
    pub fn unread_tasks(&self) -> Vec<Unread> {
        self.read().unread_tasks().cloned().collect()
    }

    /// Registers what an operator sees of the index.
    pub fn register(&self, registry: &mut Registry) {
        self.0.undecodable.register(registry);
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

    /// Live pods of a repository's workers.
    pub fn pods_of_repository(&self, repository: &str) -> usize {
        self.read().pods_of_repository(repository)
    }

    /// The workers of a task by index.
    pub fn workers_of(&self, task: &Task) -> Vec<WorkerView> {
        let (mut pods, gone) = self.pods_of(&task.name);
        pods.extend(gone);
        // An older task of this name may have left some.
        pods.retain(|p| *p.task_uid == *task.uid);
        view::workers(task, &pods)
    }

    /// The selected workers, by task and index.
    pub fn workers(&self, selection: &Selection) -> Vec<Worker> {
        let tasks = match &selection.task_id {
            Some(id) => self
                .task(&crate::domain::names::task_name(id))
                .into_iter()
                .collect(),
            None => self.tasks(),
        };
        let mut found = Vec::new();
        for task in tasks {
            for view in self.workers_of(&task) {
                if selection
                    .pod_name
                    .as_ref()
                    .is_none_or(|name| *name == view.pod_name)
                    && selection.state.is_none_or(|state| state == view.state())
                {
                    found.push(Worker {
                        task: task.clone(),
                        view,
                    });
                }
            }
        }
        found
    }

    /// Tasks whose picture changed. A subscriber that lags must look at
    /// everything.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }

    /// Changes of one task, those that nobody has looked at taken together.
    pub fn follow(&self, task: &str) -> watch::Receiver<()> {
        let mut followed = self.followed();
        let followers = followed.entry(Arc::from(task));
        followers
            .or_insert_with(|| watch::channel(()).0)
            .subscribe()
    }

    /// Asks subscribers to look at a task again.
    pub fn announce(&self, task: Arc<str>, soon: bool) {
        self.tell(Change { task, soon });
    }

    /// Both watches have listed once.
    pub fn synced(&self) -> bool {
        [&self.0.tasks, &self.0.pods]
            .iter()
            .all(|h| h.synced.load(Ordering::Acquire))
    }

    /// Since the quieter of the two watches gave a sign of life.
    pub fn staleness(&self) -> Duration {
        let last = self
            .0
            .tasks
            .at
            .load(Ordering::Relaxed)
            .min(self.0.pods.at.load(Ordering::Relaxed));
        self.0
            .start
            .elapsed()
            .saturating_sub(Duration::from_millis(last))
    }

    /// Returns once the watches have come to these versions. The caller bounds
    /// the wait.
    pub async fn reached(&self, task_version: u64, pod_version: u64) {
        let mut reached = self.0.reached.subscribe();
        // The sender lives as long as self.
        let _ = reached
            .wait_for(|(t, p)| *t >= task_version && *p >= pod_version)
            .await;
    }

    /// Returns once both watches have listed.
    pub async fn wait_synced(&self) {
        let mut reached = self.0.reached.subscribe();
        let _ = reached.wait_for(|_| self.synced()).await;
    }

    /// How far the watch of pods has told.
    pub fn pods_told(&self) -> u64 {
        self.told().1
    }

    /// How far the watches have told: (tasks, pods).
    fn told(&self) -> (u64, u64) {
        *self.0.reached.borrow()
    }

    /// Takes a task unless it is late: what the watch has told and dropped since does
    /// not come back. `is_late` judges by how far the watch has told.
    fn take_task(&self, task: Task, is_late: impl FnOnce(u64) -> bool) {
        self.change(|s| {
            let over = is_late(self.told().0) && !s.knows_task(&task);
            if over { None } else { s.apply_task(task) }
        });
    }

    /// The same of a pod.
    fn take_pod(&self, pod: Pod, is_late: impl FnOnce(u64) -> bool) {
        self.change(|s| {
            let over = is_late(self.told().1) && !s.knows_pod(&pod);
            if over { None } else { s.apply_pod(pod) }
        });
    }

    /// Takes a task as a write answered it.
    pub fn wrote_task(&self, task: Task) {
        let version = task.resource_version;
        self.take_task(task, |told| version <= told);
    }

    /// Takes a pod as a write answered it.
    pub fn wrote_pod(&self, pod: Pod) {
        let version = pod.resource_version;
        self.take_pod(pod, |told| version <= told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_follows_a_task_hears_of_no_other_and_is_forgotten_when_gone() {
        let index = Index::default();
        let mut mine = index.follow("mine");
        let also = index.follow("mine");
        index.announce(Arc::from("other"), true);
        assert!(!mine.has_changed().unwrap_or(true));
        index.announce(Arc::from("mine"), false);
        assert!(mine.has_changed().unwrap_or(false) && also.has_changed().unwrap_or(false));
        mine.mark_unchanged();
        assert!(!mine.has_changed().unwrap_or(true));
        drop((mine, also));
        assert_eq!(index.followed().len(), 1);
        index.announce(Arc::from("mine"), true);
        assert_eq!(index.followed().len(), 0);
    }
}
