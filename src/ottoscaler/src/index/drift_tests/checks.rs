//! The checks that index, plan and API server agree once everything in flight has arrived.
use super::*;

impl World {
    /// Lets everything in flight arrive without new events, then checks the properties.
    pub(super) fn quiet(&mut self) {
        self.seen.quiet += 1;
        for (name, task) in self.server.tasks.objects.clone() {
            if is_broken(&task.metadata) {
                self.server.set_broken(&name, false);
            }
        }
        for _ in 0..500 {
            if !self.settle() {
                self.check();
                return;
            }
        }
        panic!("it does not settle: {:?}", self.leader.calls);
    }

    /// Runs one round; returns false when nothing is left to do.
    pub(super) fn settle(&mut self) -> bool {
        let before = self.server.version;
        let mut busy = !self.stale.is_empty();
        while !self.stale.is_empty() {
            self.late_call();
        }
        while !self.leader.calls.is_empty() {
            busy = true;
            self.call();
        }
        let going = |p: &PodView| p.metadata.deletion_timestamp.is_some();
        for (name, pod) in self.server.pods.objects.clone() {
            if going(&pod) {
                self.server.remove_pod(&name);
            } else if is_terminal(&pod) {
                let uid = uid(&pod.metadata).to_owned();
                self.server.acked.insert(uid.clone());
                self.leader.drained.insert(uid);
            } else if self.server.lost.contains(uid(&pod.metadata)) {
                self.server.set_lost(&name, false);
            }
        }
        for (name, task) in self.server.tasks.objects.clone() {
            if task.metadata.deletion_timestamp.is_some() {
                self.server.remove_task(&name);
            }
        }
        self.server.collect();
        for replica in &mut self.replicas {
            // The next bookmark of the tasks shows that a pod has no task.
            for tasks in [true, false, true] {
                while replica.step(tasks, &self.server, &mut self.seen) {}
            }
        }
        while !self.leader.caught_up {
            self.list();
        }
        let index = self.index();
        self.leader.wake_at = None;
        for task in index.tasks() {
            self.judge(&index, &task.name, true);
        }
        self.leader.sweep(&index);
        busy |= !self.leader.calls.is_empty() || self.server.version != before;
        // A retry waits for its backoff.
        let soon = self.leader.wake_at.filter(|at| *at <= self.server.now + 64);
        if let Some(at) = soon.filter(|_| !busy) {
            self.server.now = at;
        }
        busy || soon.is_some()
    }

    pub(super) fn check(&mut self) {
        let fresh = Replica::new();
        let (tasks, pods) = (self.server.tasks.list(), self.server.pods.list());
        TaskFeed(fresh.index.clone()).reset(projected::<TaskFeed, _>(tasks), self.server.version);
        PodFeed(fresh.index.clone()).reset(projected::<PodFeed, _>(pods), self.server.version);
        for (n, replica) in self.replicas.iter().enumerate() {
            assert!(
                *replica.index.read() == *fresh.index.read(),
                "replica {n} drifted by event {}: {}, the list has: {}",
                self.seen.events,
                summary(&replica.index),
                summary(&fresh.index)
            );
        }
        let mut wanted = BTreeMap::new();
        for task in fresh.index.tasks() {
            for record in &task.status.workers {
                let wants = task.spec.wants(record.index) && task.spec.workers > 0;
                assert!(
                    record.phase.is_final() || wants,
                    "{record:?} goes on: {task:?}"
                );
                if !record.phase.is_final() {
                    let name = names::pod_name(&task.spec.task_id, record.index, record.attempt);
                    wanted.insert(name, record.uid.clone().unwrap_or_default());
                }
            }
            let known = task.status.workers.len();
            assert!(known >= task.spec.workers as usize, "{task:?}");
        }
        let pods = &self.server.pods.objects;
        let there: BTreeMap<_, _> = pods
            .iter()
            .map(|(name, pod)| (name.clone(), uid(&pod.metadata).to_owned()))
            .collect();
        assert_eq!(there, wanted, "pods that are, and pods that are wanted");
        self.seen.pods += there.len();
    }

    /// Lets all workers succeed and all tasks expire.
    pub(super) fn end(&mut self) {
        for _ in 0..20 {
            self.quiet();
            for (name, pod) in self.server.pods.objects.clone() {
                if pod.spec.node_name.is_empty() {
                    self.server.run(&name);
                }
                if !is_terminal(&pod) {
                    self.server.terminate(&name, 0, false);
                }
            }
            self.server.now += 100;
        }
        self.quiet();
    }
}

fn summary(index: &Index) -> String {
    let tasks = index.tasks();
    let tasks = tasks.iter().map(|t| (&t.name, &t.uid, t.resource_version));
    let pods = index.pods();
    let pods: BTreeMap<_, _> = pods
        .iter()
        .map(|p| (&p.name, (&p.uid, p.resource_version)))
        .collect();
    let tombstones = index.read().describe_tombstones();
    format!(
        "{:?} {pods:?} tombstones {tombstones:?}",
        tasks.collect::<Vec<_>>()
    )
}
