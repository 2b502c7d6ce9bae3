//! The shared watch cache: every replica's picture of tasks and worker pods.
//!
//! Fed by two watches and, on the leader, by the answers of its own writes. What
//! holds: of an object the highest resourceVersion wins, whatever the order of
//! arrival; a pod that went leaves a tombstone until its task's record is final;
//! a change is announced after it can be read; what one answer tells of a task and
//! its pods was true at one moment. Readers share one lock, never held across an
//! await.
mod departed;
#[cfg(test)]
mod drift_tests;
mod feed;
mod metrics;
mod state;
mod unread;

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
use metrics::Undecodable;
use state::State;
pub use state::{Bytes, Change, Room};

use crate::domain::{
    names,
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

/// A task and all its workers by index.
#[derive(Debug, Clone)]
pub struct Picture {
    pub task: Arc<Task>,
    pub workers: Vec<WorkerView>,
}

/// A task, its live pods and the tombstones of those that went, of one moment.
#[derive(Debug, Clone)]
pub struct TaskWithPods {
    pub task: Arc<Task>,
    pub pods: Vec<Arc<Pod>>,
    pub gone: Vec<Arc<Pod>>,
}

/// A task that is being deleted, or was before it had finished.
#[derive(Debug, Clone)]
pub struct Ending {
    pub task: Arc<Task>,
    /// Its pods that are there still.
    pub live: Vec<Arc<Pod>>,
    /// The last states of those that went.
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

    /// Whether [`Self::ending`] may find something: cheap, for mostly nothing does.
    pub fn may_end(&self, name: &str) -> bool {
        let state = self.read();
        let task = state.tasks.get(name).filter(|t| !t.deleting);
        state.departed.has_name(name) || task.is_none_or(|t| state.has_others_pods(t))
    }

    /// The tasks of this name that end by a deletion. Of one that went before this replica
    /// came only its pods are known.
    pub fn ending(&self, name: &str) -> Vec<Ending> {
        let told = self.told().0;
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        state.depart_orphans(name, told);
        let deleting = state.tasks.get(name).filter(|t| t.deleting).cloned();
        let deleting = deleting.map(|task| (task, state.gone_of(name)));
        let live = state.pods_of(name);
        let all = deleting.into_iter().chain(state.departed.named(name));
        all.map(|(task, known)| {
            let of_task = |p: &&Arc<Pod>| *p.task_uid == *task.uid;
            let live: Vec<_> = live.iter().filter(of_task).cloned().collect();
            let is_gone = |p: &&Arc<Pod>| !live.iter().any(|l| l.uid == p.uid);
            let gone = known.iter().filter(of_task).filter(is_gone).cloned();
            Ending {
                gone: gone.collect(),
                task,
                live,
            }
        })
        .collect()
    }

    /// Names of tasks that may end by a deletion: such that went, such that go, and those
    /// of pods whose task is not known.
    pub fn ending_names(&self) -> BTreeSet<Arc<str>> {
        let state = self.read();
        let going = state.tasks.values().filter(|t| t.deleting);
        let going = going.chain(state.departed.tasks());
        let going = going.map(|t| Arc::from(t.name.as_str()));
        let unknown = state.pods.values().filter(|p| !state.is_known(p));
        going.chain(unknown.map(|p| p.task.clone())).collect()
    }

    /// Whether a task is there, or was a while ago, by its uid. Forgets those that went
    /// long ago.
    pub fn remembered(&self) -> HashSet<String> {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        state.departed.forget_old();
        let tasks = state.tasks.values().chain(state.departed.tasks());
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

    /// Live pods of a repository's workers.
    pub fn pods_of_repository(&self, repository: &str) -> usize {
        self.read().pods_of_repository(repository)
    }

    /// The workers of a task by index: of the newest of it that is known, and its
    /// pods at the same moment. Of an older one, what pods told and its newer record
    /// tells since would be missing.
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

    /// This very task as it is by now, with its pods. None: it is gone.
    pub fn task_with_pods(&self, task: &Task) -> Option<TaskWithPods> {
        let state = self.read();
        let current = state.tasks.get(task.name.as_str());
        let current = current.filter(|t| t.uid == task.uid)?.clone();
        let (mut pods, mut gone) = (state.pods_of(&task.name), state.gone_of(&task.name));
        drop(state);
        // An older task of this name may still have pods around.
        pods.retain(|p| *p.task_uid == *task.uid);
        gone.retain(|p| *p.task_uid == *task.uid);
        Some(TaskWithPods {
            task: current,
            pods,
            gone,
        })
    }

    /// A task and its workers as one moment shows them.
    pub fn picture(&self, name: &str) -> Option<Picture> {
        let state = self.read();
        let task = state.tasks.get(name)?.clone();
        let pods = state.all_pods_of(&task);
        drop(state);
        let workers = view::workers(&task, &pods);
        Some(Picture { task, workers })
    }

    /// The selected workers, by task and index; those of one task as one moment shows
    /// them.
    pub fn workers(&self, selection: &Selection) -> Vec<Worker> {
        let names = match &selection.task_id {
            Some(id) => vec![Arc::from(names::task_name(id))],
            None => self.task_names(),
        };
        let mut found = Vec::new();
        for Picture { task, workers } in names.iter().filter_map(|name| self.picture(name)) {
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
    use crate::domain::task::TaskSpec;

    /// Two task ids with the same name.
    fn colliding() -> (String, String) {
        let mut seen = HashMap::new();
        let ids = (0..).map(|n| format!("{}-{n}", "x".repeat(60)));
        for id in ids {
            if let Some(other) = seen.insert(names::task_name(&id), id.clone()) {
                return (other, id);
            }
        }
        unreachable!("names are finite")
    }

    #[test]
    fn a_task_is_found_by_its_id_not_by_a_name_that_another_id_shares() {
        let (known, other) = colliding();
        assert_ne!(known, other);
        let index = Index::default();
        index.wrote_task(Task {
            name: names::task_name(&known),
            uid: "u".into(),
            resource_version: 1,
            spec: TaskSpec {
                task_id: known.clone(),
                workers: 2,
                ..TaskSpec::default()
            },
            ..Task::default()
        });
        let workers = |id: &String| {
            let task_id = Some(id.clone());
            let selection = Selection {
                task_id,
                ..Selection::default()
            };
            index.workers(&selection).len()
        };
        assert_eq!((workers(&known), workers(&other)), (2, 0));
    }

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

    /// A writer ends workers as they end in a cluster: the pod, then the record, then the
    /// pod goes. A reader on another thread must not put an old record beside newer pods.
    #[test]
    fn a_worker_that_has_succeeded_never_shows_running_again() {
        use crate::{
            cluster::watch::WatchHandler as _,
            domain::{
                pod::PodPhase,
                task::{TaskSpec, TaskStatus, WorkerPhase, WorkerRecord},
                view::ClientState,
            },
        };
        const TASKS: u64 = 400;
        let task = |n: u64, version: u64, phase| Task {
            name: format!("t{n}"),
            uid: format!("u{n}"),
            resource_version: version,
            spec: TaskSpec {
                task_id: format!("t{n}"),
                workers: 1,
                ..TaskSpec::default()
            },
            status: TaskStatus {
                workers: vec![WorkerRecord {
                    index: 1,
                    attempt: 1,
                    phase,
                    ..WorkerRecord::default()
                }],
                ..TaskStatus::default()
            },
            ..Task::default()
        };
        let pod = |n: u64, version: u64, phase| Pod {
            name: Arc::from(format!("otto-agent-t{n}-1")),
            uid: format!("p{n}"),
            task: Arc::from(format!("t{n}")),
            task_uid: Arc::from(format!("u{n}")),
            index: 1,
            attempt: 1,
            resource_version: version,
            phase,
            ..Pod::default()
        };
        for _ in 0..20 {
            let index = Index::default();
            for n in 0..TASKS {
                index.wrote_task(task(n, 1, WorkerPhase::Running));
                index.wrote_pod(pod(n, 2, PodPhase::Succeeded));
            }
            PodFeed(index.clone()).synced_to(2);
            let over = AtomicBool::new(false);
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    for n in 0..TASKS {
                        index.wrote_task(task(n, 3, WorkerPhase::Succeeded));
                        index.change(|s| s.delete_pod(pod(n, 4, PodPhase::Succeeded)));
                    }
                    over.store(true, Ordering::Release);
                });
                while !over.load(Ordering::Acquire) {
                    let workers = index.workers(&Selection::default());
                    assert_eq!(workers.len(), 400);
                    for worker in workers {
                        assert_eq!(worker.view.state(), ClientState::Succeeded, "{worker:?}");
                    }
                    let old = task(TASKS - 1, 1, WorkerPhase::Running);
                    assert_eq!(index.workers_of(&old)[0].state(), ClientState::Succeeded);
                }
            });
        }
    }
}
