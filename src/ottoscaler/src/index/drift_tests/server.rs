//! A simulated API server: objects, one sequence of versions, and the events of watches.
//!
//! It executes or refuses each write by the stored objects, and asserts what no leader may do.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;

use crate::{
    cluster::{
        ATTEMPT, POD_KEY, REPOSITORY, TASK_ID, TERM,
        convert::{
            ConditionView, ContainerStateView, ContainerStatusView, PodSpecView, PodStatusView,
            PodView, RunningView, TerminatedView,
        },
        crd::{WorkerTask, WorkerTaskSpec},
    },
    domain::{
        names,
        queue::Attempt,
        task::{Task, TaskSpec, TaskStatus},
    },
};

#[derive(Debug, Clone)]
pub(super) enum Event<K> {
    Applied(K),
    Deleted(K),
}

/// The requested version is no longer kept (410 Gone).
#[derive(Debug)]
pub(super) struct Expired;

/// The objects of a kind and their history.
pub(super) struct Kind<K> {
    pub(super) objects: BTreeMap<String, K>,
    events: VecDeque<(u64, Event<K>)>,
    /// The version up to which events are dropped.
    compacted: u64,
}

impl<K> Default for Kind<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            events: VecDeque::new(),
            compacted: 0,
        }
    }
}

impl<K: Resource + Clone> Kind<K> {
    fn put(&mut self, version: u64, mut object: K) -> K {
        object.meta_mut().resource_version = Some(version.to_string());
        let name = object.meta().name.clone().unwrap();
        self.objects.insert(name, object.clone());
        self.events
            .push_back((version, Event::Applied(object.clone())));
        object
    }

    fn remove(&mut self, version: u64, name: &str) {
        let mut last = self.objects.remove(name).unwrap();
        last.meta_mut().resource_version = Some(version.to_string());
        self.events.push_back((version, Event::Deleted(last)));
    }

    /// Returns the first event after `version`.
    pub(super) fn after(&self, version: u64) -> Result<Option<(u64, Event<K>)>, Expired> {
        if version < self.compacted {
            return Err(Expired);
        }
        let at = self.events.partition_point(|(v, _)| *v <= version);
        Ok(self.events.get(at).cloned())
    }

    pub(super) fn compact(&mut self, version: u64) {
        while let Some((v, _)) = self.events.front().filter(|(v, _)| *v <= version) {
            self.compacted = *v;
            self.events.pop_front();
        }
    }

    pub(super) fn list(&self) -> Vec<K> {
        self.objects.values().cloned().collect()
    }
}

#[derive(Default)]
pub(super) struct Server {
    pub(super) version: u64,
    pub(super) now: i64,
    /// The term of the Lease; writes of another term are refused.
    pub(super) term: String,
    pub(super) tasks: Kind<WorkerTask>,
    pub(super) pods: Kind<PodView>,
    uids: u64,
    /// The task uid, index and attempt of each pod that was ever created.
    made: BTreeSet<(String, u32, u32)>,
    /// The version of the task from which each pod was created, by the uid of the pod.
    born: BTreeMap<String, u64>,
    /// The version at which ScaleDown last removed a worker, by the uid of its task and its index.
    taken: BTreeMap<(String, u32), u64>,
    /// The pods whose logs otto-handler has acknowledged, by uid.
    pub(super) acked: BTreeSet<String>,
    /// The times at which pods ended, by uid.
    ended: BTreeMap<String, i64>,
    /// The pods on nodes that send no heartbeats, by uid.
    pub(super) lost: BTreeSet<String>,
    /// The time at which the node of each pod first sent no heartbeats, by uid.
    first_lost: BTreeMap<String, i64>,
}

/// The time within which otto-handler has to acknowledge a log, in seconds.
pub(super) const LOG_DRAIN: i64 = 900;

pub(super) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap()
}

fn owner(pod: &PodView) -> &OwnerReference {
    &pod.metadata.owner_references.as_ref().unwrap()[0]
}

/// Returns the index and attempt in the name of a pod, because anybody may change its labels.
fn index_and_attempt(pod: &PodView) -> (u32, u32) {
    let name = pod.metadata.name.as_deref().unwrap();
    names::parse_pod_name(&owner(pod).name, name).unwrap()
}

/// The annotation of a task that no replica can decode.
const BROKEN: &str = "broken";

pub(super) fn is_broken(meta: &ObjectMeta) -> bool {
    meta.annotations
        .as_ref()
        .is_some_and(|a| a.contains_key(BROKEN))
}

pub(super) fn is_terminal(pod: &PodView) -> bool {
    matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")
}

impl Server {
    pub(super) fn new() -> Self {
        Self {
            now: 1_000_000,
            ..Self::default()
        }
    }

    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn meta(&mut self, name: String) -> ObjectMeta {
        self.uids += 1;
        ObjectMeta {
            name: Some(name),
            uid: Some(format!("uid-{}", self.uids)),
            creation_timestamp: Some(self.time()),
            ..ObjectMeta::default()
        }
    }

    fn time(&self) -> Time {
        Time(jiff::Timestamp::from_second(self.now).unwrap())
    }

    pub(super) fn make_task(&mut self, spec: TaskSpec) -> WorkerTask {
        let metadata = ObjectMeta {
            annotations: Some([(TERM.to_owned(), self.term.clone())].into()),
            ..self.meta(spec.task_id.clone())
        };
        let task = WorkerTask {
            metadata,
            spec: WorkerTaskSpec(spec),
            status: None,
        };
        let version = self.next();
        self.tasks.put(version, task)
    }

    pub(super) fn unfinished(&self) -> Vec<WorkerTask> {
        let mut tasks = self.tasks.list();
        tasks.retain(|t| !t.status.as_ref().is_some_and(|s| s.phase.is_finished()));
        tasks
    }

    pub(super) fn put_task(&mut self, task: WorkerTask) -> WorkerTask {
        let version = self.next();
        let name = task.metadata.name.as_deref().unwrap();
        if let Some(before) = self.tasks.objects.get(name) {
            let taken = (1..=before.spec.0.top())
                .filter(|n| before.spec.0.wants(*n) && !task.spec.0.wants(*n));
            let of = |n| ((uid(&task.metadata).to_owned(), n), version);
            self.taken.extend(taken.map(of));
        }
        self.tasks.put(version, task)
    }

    /// Returns the stored version of a task.
    fn task(&self, task: &Task) -> Option<&WorkerTask> {
        let stored = self.tasks.objects.get(&task.name);
        stored.filter(|t| uid(&t.metadata) == task.uid)
    }

    pub(super) fn seal(&mut self, task: &Task, term: &str) -> Option<WorkerTask> {
        if term != self.term {
            return None;
        }
        let mut sealed = self.task(task)?.clone();
        let annotations = sealed.metadata.annotations.get_or_insert_default();
        annotations.insert(TERM.to_owned(), term.to_owned());
        Some(self.put_task(sealed))
    }

    pub(super) fn store(
        &mut self,
        task: &Task,
        status: TaskStatus,
        term: &str,
    ) -> Option<WorkerTask> {
        let read = task.resource_version.to_string();
        let stored = self.task(task)?;
        if term != self.term || stored.metadata.resource_version.as_ref() != Some(&read) {
            return None;
        }
        let status = TaskStatus {
            term: term.to_owned(),
            ..status
        };
        let written = WorkerTask {
            status: Some(status),
            ..stored.clone()
        };
        Some(self.put_task(written))
    }

    pub(super) fn forget(&mut self, task: &Task) {
        let read = task.resource_version.to_string();
        let current = self
            .task(task)
            .is_some_and(|t| t.metadata.resource_version.as_ref() == Some(&read));
        if current {
            self.remove_task(&task.name);
        }
    }

    pub(super) fn remove_task(&mut self, name: &str) {
        let version = self.next();
        self.tasks.remove(version, name);
    }

    /// Creates a pod, or returns the one that has its name, whoever created it.
    pub(super) fn create(&mut self, task: &Task, which: Attempt, term: &str) -> Option<PodView> {
        if term != self.term {
            return None;
        }
        let Attempt { index, attempt } = which;
        let name = names::pod_name(&task.spec.task_id, index, attempt);
        if let Some(there) = self.pods.objects.get(&name) {
            return Some(there.clone());
        }
        let first = self.made.insert((task.uid.clone(), index, attempt));
        // A late create for a deleted task is harmless: the garbage collector deletes the pod.
        assert!(
            first || self.task(task).is_none(),
            "{name} is made a second time"
        );
        let of_worker = |p: &&PodView| owner(p).uid == task.uid && index_and_attempt(p).0 == index;
        if let Some(other) = self
            .pods
            .objects
            .values()
            .filter(of_worker)
            .find(|p| !is_terminal(p))
        {
            panic!(
                "{name} is made while {} is alive",
                other.metadata.name.as_ref().unwrap()
            );
        }
        let labels = [
            ("worker-index", index.to_string()),
            (ATTEMPT, attempt.to_string()),
            (POD_KEY, names::pod_key(&task.uid, index, attempt)),
        ];
        let annotations = [
            (TASK_ID, &task.spec.task_id),
            (REPOSITORY, &task.spec.repository),
        ];
        let metadata = ObjectMeta {
            labels: Some(labels.map(|(k, v)| (k.to_owned(), v)).into_iter().collect()),
            annotations: Some(
                annotations
                    .map(|(k, v)| (k.to_owned(), v.clone()))
                    .into_iter()
                    .collect(),
            ),
            owner_references: Some(vec![OwnerReference {
                api_version: "ottoscaler.io/v1alpha1".to_owned(),
                kind: "WorkerTask".to_owned(),
                name: task.name.clone(),
                uid: task.uid.clone(),
                ..OwnerReference::default()
            }]),
            ..self.meta(name)
        };
        let status = PodStatusView {
            phase: "Pending".to_owned(),
            ..PodStatusView::default()
        };
        let pod = PodView {
            metadata,
            spec: PodSpecView::default(),
            status,
        };
        let pod = self.put_pod(pod);
        self.born
            .insert(uid(&pod.metadata).to_owned(), task.resource_version);
        Some(pod)
    }

    /// Returns the time since the node of a pod sent no heartbeats or its deletion began, in
    /// seconds.
    pub(super) fn silent_for(&self, asked: &str) -> i64 {
        let mut pods = self.pods.objects.values();
        // The pod may have been deleted meanwhile.
        let Some(pod) = pods.find(|p| uid(&p.metadata) == asked) else {
            return i64::MAX;
        };
        let deleted = pod.metadata.deletion_timestamp.as_ref();
        let deleted = deleted.map(|at| at.0.as_second());
        let since = self
            .first_lost
            .get(asked)
            .copied()
            .into_iter()
            .chain(deleted);
        since.min().map_or(0, |at| self.now - at)
    }

    /// Reports whether an attempt of a worker ever had a pod.
    pub(super) fn made_pod(&self, task_uid: &str, index: u32, attempt: u32) -> bool {
        self.made.contains(&(task_uid.to_owned(), index, attempt))
    }

    fn put_pod(&mut self, pod: PodView) -> PodView {
        let version = self.next();
        self.pods.put(version, pod)
    }

    /// Executes a delete of the leader. Its pod must be one that the stored record no longer needs.
    pub(super) fn delete(&mut self, name: &str, asked: &str) {
        let Some(pod) = self.pods.objects.get(name) else {
            return;
        };
        if uid(&pod.metadata) != asked {
            return;
        }
        let done = self.task_of(pod).is_none_or(|t| {
            let (index, attempt) = index_and_attempt(pod);
            let records = t.status.iter().flat_map(|s| &s.workers);
            records.filter(|r| r.index == index).any(|r| {
                r.attempt > attempt
                    || (r.attempt == attempt && r.phase.is_final())
                    || (r.stopping && r.uid.as_deref() == Some(asked) && self.is_taken(pod))
            })
        });
        assert!(done, "{name} is deleted, and no record is done with it");
        if is_terminal(pod) && self.task_of(pod).is_some() {
            let ran = !pod.status.container_statuses.is_empty();
            let waited = self.now - self.ended[asked];
            let may_go = !ran || self.acked.contains(asked) || waited >= LOG_DRAIN;
            assert!(
                may_go,
                "{name} is deleted {waited} s after its end, with its logs"
            );
        }
        self.end(name);
    }

    /// Reports whether ScaleDown removed the worker while exactly this attempt existed.
    fn is_taken(&self, pod: &PodView) -> bool {
        let worker = (owner(pod).uid.clone(), index_and_attempt(pod).0);
        self.taken.get(&worker) > self.born.get(uid(&pod.metadata))
    }

    /// Executes a delete that requires the pod to be alive still; the real one names the version.
    pub(super) fn delete_living(&mut self, name: &str, asked: &str) {
        if self.pods.objects.get(name).is_some_and(|p| !is_terminal(p)) {
            self.delete(name, asked);
        }
    }

    /// Lets the heartbeats of the pod's node stop or return.
    pub(super) fn set_lost(&mut self, name: &str, lost: bool) {
        let mut pod = self.pods.objects[name].clone();
        let uid = uid(&pod.metadata).to_owned();
        let status = if lost { "False" } else { "True" };
        pod.status.conditions = vec![ConditionView {
            kind: "Ready".to_owned(),
            status: status.to_owned(),
            last_transition_time: Some(self.time()),
            ..ConditionView::default()
        }];
        self.put_pod(pod);
        if lost {
            self.lost.insert(uid.clone());
            self.first_lost.entry(uid).or_insert(self.now);
        } else {
            self.lost.remove(&uid);
        }
    }

    /// Removes a pod's labels and annotations, or overwrites them, as a user could.
    pub(super) fn relabel(&mut self, name: &str, text: Option<&str>) {
        let mut pod = self.pods.objects[name].clone();
        let all = [&mut pod.metadata.labels, &mut pod.metadata.annotations];
        for map in all.into_iter().flatten() {
            match text {
                None => map.clear(),
                Some(text) => map.values_mut().for_each(|value| text.clone_into(value)),
            }
        }
        self.put_pod(pod);
    }

    /// Makes a task undecodable, or decodable again.
    pub(super) fn set_broken(&mut self, name: &str, is_broken: bool) {
        let mut task = self.tasks.objects[name].clone();
        let annotations = task.metadata.annotations.get_or_insert_default();
        if is_broken {
            annotations.insert(BROKEN.to_owned(), String::new());
        } else {
            annotations.remove(BROKEN);
        }
        self.put_task(task);
    }

    /// Deletes the pod with this key if it has ended; reports whether there was one.
    pub(super) fn delete_ended(&mut self, key: &str) -> bool {
        let has_key = |p: &PodView| {
            p.metadata
                .labels
                .as_ref()
                .is_some_and(|l| l.get(POD_KEY).is_some_and(|k| k == key))
        };
        let mut pods = self.pods.objects.iter();
        if let Some((name, pod)) = pods.find(|(_, p)| has_key(p) && is_terminal(p)) {
            let (name, uid) = (name.clone(), uid(&pod.metadata).to_owned());
            self.delete(&name, &uid);
            return true;
        }
        false
    }

    /// Deletes a pod: with a grace period if it is on a node, else at once.
    pub(super) fn end(&mut self, name: &str) {
        let mut pod = self.pods.objects[name].clone();
        if pod.spec.node_name.is_empty() || is_terminal(&pod) {
            self.remove_pod(name);
        } else if pod.metadata.deletion_timestamp.is_none() {
            pod.metadata.deletion_timestamp = Some(self.time());
            self.put_pod(pod);
        }
    }

    pub(super) fn remove_pod(&mut self, name: &str) {
        let version = self.next();
        let uid = uid(&self.pods.objects[name].metadata).to_owned();
        self.born.remove(&uid);
        self.acked.remove(&uid);
        self.ended.remove(&uid);
        self.lost.remove(&uid);
        self.first_lost.remove(&uid);
        self.pods.remove(version, name);
    }

    pub(super) fn task_of(&self, pod: &PodView) -> Option<&WorkerTask> {
        let stored = self.tasks.objects.get(&owner(pod).name);
        stored.filter(|t| uid(&t.metadata) == owner(pod).uid)
    }

    /// Reports whether the stored record of the pod's worker names the pod, or will never need it.
    /// If another pod is lost, that looks the same as if it had never been created.
    pub(super) fn is_recorded(&self, pod: &PodView) -> bool {
        self.task_of(pod).is_none_or(|t| {
            let mut records = t.status.iter().flat_map(|s| &s.workers);
            records.any(|r| r.uid.as_deref() == Some(uid(&pod.metadata)))
        })
    }

    pub(super) fn run(&mut self, name: &str) {
        let mut pod = self.pods.objects[name].clone();
        pod.spec.node_name = "node".to_owned();
        "Running".clone_into(&mut pod.status.phase);
        let running = RunningView {
            started_at: Some(self.time()),
        };
        pod.status.container_statuses = vec![ContainerStatusView {
            name: "worker".to_owned(),
            state: ContainerStateView {
                running: Some(running),
                ..ContainerStateView::default()
            },
            ..ContainerStatusView::default()
        }];
        self.put_pod(pod);
    }

    /// Lets the container end by itself, or the kubelet evict the pod.
    pub(super) fn terminate(&mut self, name: &str, exit_code: i32, evicted: bool) {
        let mut pod = self.pods.objects[name].clone();
        let phase = if exit_code == 0 && !evicted {
            "Succeeded"
        } else {
            "Failed"
        };
        phase.clone_into(&mut pod.status.phase);
        if evicted {
            "Evicted".clone_into(&mut pod.status.reason);
        }
        let now = self.time();
        self.ended.insert(uid(&pod.metadata).to_owned(), self.now);
        for container in &mut pod.status.container_statuses {
            let running = container.state.running.take();
            container.state.terminated = Some(TerminatedView {
                exit_code,
                started_at: running.and_then(|r| r.started_at),
                finished_at: Some(now.clone()),
                ..TerminatedView::default()
            });
        }
        self.put_pod(pod);
    }

    /// Runs the garbage collector, which deletes the pods whose task is gone.
    pub(super) fn collect(&mut self) {
        let orphans = self
            .pods
            .objects
            .values()
            .filter(|p| self.task_of(p).is_none());
        let names: Vec<String> = orphans.filter_map(|p| p.metadata.name.clone()).collect();
        for name in names {
            self.end(&name);
        }
    }
}
