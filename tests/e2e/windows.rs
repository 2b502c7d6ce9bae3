//! How long the fence policy judges by the Lease of yesterday, with two API
//! servers on one etcd: each reads the Lease from its own watch cache.
//!
//! The Lease is changed through server A. From the moment its change is answered,
//! an old leader and a new one write through both, and each write's answer is
//! timed. A late write that is accepted must change nothing.
use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams, WatchParams},
};
use ottoscaler::{cluster::crd::WorkerTask, domain::task::TaskStatus};
use serde_json::{Value, json};
use tokio::{
    runtime::Runtime,
    task::{JoinHandle, JoinSet},
};

use super::{
    contenders::{LEASE, client, runtime},
    processes::{Cell, SOON},
    server::SecondServer,
    support::{is_full, pass},
};

/// The policy has made up its mind after as many equal answers.
const SURE: usize = 8;
/// Milliseconds after the change.
const SENT_AT: [u64; 9] = [0, 1, 2, 3, 5, 8, 13, 21, 34];
/// Creates that wait in the sockets of a server that stands still.
const WAITING: usize = 20;
const STILL: Duration = Duration::from_secs(2);

/// How the server says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Accepted,
    /// Past the policy, but the name is taken or the object has changed.
    Met,
    Fenced,
}

fn answer<T>(result: kube::Result<T>) -> Answer {
    match result {
        Ok(_) => Answer::Accepted,
        Err(kube::Error::Api(status)) if status.code == 409 => Answer::Met,
        Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => {
            Answer::Fenced
        }
        Err(error) => panic!("neither yes nor no: {error:?}"),
    }
}

/// One server as our ServiceAccount sees it.
#[derive(Clone)]
struct Side {
    pods: Api<Pod>,
    tasks: Api<WorkerTask>,
}

impl Side {
    async fn new(kubeconfig: &str, namespace: &str) -> Self {
        let client = client(kubeconfig).await;
        Self {
            pods: Api::namespaced(client.clone(), namespace),
            tasks: Api::namespaced(client, namespace),
        }
    }

    async fn create(&self, name: &str, term: &str, dry_run: bool) -> Answer {
        let pod = json!({"metadata": {"name": name,
                "labels": {"ottoscaler.io/attempt": "1"},
                "annotations": {"ottoscaler.io/term": term}},
            "spec": {"schedulerName": "nobody",
                "containers": [{"name": "worker", "image": "busybox"}]}});
        let params = PostParams {
            dry_run,
            ..PostParams::default()
        };
        let pod = serde_json::from_value(pod).unwrap();
        answer(self.pods.create(&params, &pod).await)
    }

    async fn seal(&self, task: &str, term: &str) -> Answer {
        let patch = json!({"metadata": {"annotations": {"ottoscaler.io/term": term}}});
        let params = PatchParams::default();
        answer(self.tasks.patch(task, &params, &Patch::Merge(patch)).await)
    }

    /// Decided on `version`.
    async fn status(&self, task: &str, version: &str, term: &str) -> Answer {
        let patch = json!({"metadata": {"resourceVersion": version},
            "status": {"term": term, "phase": "Failed"}});
        let patch = Patch::Merge(patch);
        let params = PatchParams::default();
        answer(self.tasks.patch_status(task, &params, &patch).await)
    }

    /// Sends creates at fixed moments, then one after the other until the answer
    /// stays `last`; tells when each was sent and answered.
    async fn probe(self, term: Arc<str>, last: Answer) -> Vec<Probe> {
        let began = tokio::time::Instant::now();
        let shots = SENT_AT.map(|ms| {
            let (side, term) = (&self, &term);
            async move {
                tokio::time::sleep_until(began + Duration::from_millis(ms)).await;
                side.shot(term).await
            }
        });
        let mut all = futures::future::join_all(shots).await;
        let mut equal = 0;
        while equal < SURE {
            let shot = self.shot(&term).await;
            equal = if shot.2 == last { equal + 1 } else { 0 };
            all.push(shot);
        }
        all
    }

    async fn shot(&self, term: &str) -> Probe {
        let sent = Instant::now();
        let got = self.create("probe", term, true).await;
        (sent, Instant::now(), got)
    }
}

/// When it was sent, when answered, and how.
type Probe = (Instant, Instant, Answer);

/// Of one change, at one server: answers to writes that were sent after it.
#[derive(Debug, Default, Clone)]
struct Window {
    /// Of the old term, accepted; until when.
    late: usize,
    late_until: Duration,
    /// Of the new term, refused; until when.
    early: usize,
    early_until: Duration,
}

type Probes = JoinHandle<Vec<Probe>>;

async fn window(old: Probes, new: Probes, since: Instant) -> Window {
    let (old, new) = (old.await.unwrap(), new.await.unwrap());
    let count = |all: Vec<Probe>, what| {
        let after = all
            .into_iter()
            .filter(|(sent, _, got)| *sent >= since && *got == what);
        let answered: Vec<Duration> = after.map(|(_, at, _)| at.duration_since(since)).collect();
        let until = answered.iter().max().copied().unwrap_or_default();
        (answered.len(), until)
    };
    let ((late, late_until), (early, early_until)) =
        (count(old, Answer::Accepted), count(new, Answer::Fenced));
    Window {
        late,
        late_until,
        early,
        early_until,
    }
}

/// What one change of the Lease let through.
struct Change {
    windows: Vec<Window>,
    /// The old leader's create of a pod that the new one makes too.
    create: Answer,
    /// Of the pods that nobody else wants: past the policy of how many.
    waiting: (usize, usize),
    /// The old leader's status write, sent once the new one's seal was answered.
    status: Answer,
}

struct Ground {
    leases: Api<Lease>,
    tasks: Api<WorkerTask>,
    pods: Api<Pod>,
    a: Side,
    b: Side,
    second: SecondServer,
    uid: String,
    changes: i32,
}

impl Ground {
    fn term(&self) -> Arc<str> {
        format!("{}/{}/h-{}", self.uid, self.changes, self.changes).into()
    }

    fn lease(&self) -> Value {
        json!({"metadata": {"name": LEASE}, "spec": {
            "holderIdentity": format!("h-{}", self.changes), "leaseTransitions": self.changes}})
    }

    /// Both servers know the Lease, and that policy.
    async fn settled(&self) {
        for side in [&self.a, &self.b] {
            let (ours, forged) = (self.term(), Arc::from("some/0/body"));
            side.clone().probe(forged, Answer::Fenced).await;
            side.clone().probe(ours, Answer::Accepted).await;
        }
    }

    /// Changes the Lease, with `still` while B stands still, and writes as the old
    /// leader and as the new one.
    fn change(&mut self, runtime: &Runtime, mode: &str, still: bool) -> Change {
        let old = self.term();
        self.changes += 1;
        let (new, name) = (self.term(), format!("{mode}-{}", self.changes));
        let version = runtime.block_on(async {
            self.warm(&old).await;
            self.task(&name).await
        });
        if still {
            self.second.signal("STOP");
        }
        let terms = [(&old, Answer::Fenced), (&new, Answer::Accepted)];
        let probe = |side: &Side| {
            terms.map(|(term, last)| runtime.spawn(side.clone().probe(term.clone(), last)))
        };
        let (since, mut probes, late, sealed) = runtime.block_on(async {
            let params = PatchParams::default();
            let patch = Patch::Merge(self.lease());
            self.leases.patch(LEASE, &params, &patch).await.unwrap();
            let since = Instant::now();
            // The old leader's create and the new one's at once: the name is one of theirs.
            let late = (!still).then(|| runtime.spawn(self.late_creates(&name, &old, 0)));
            let probes: Vec<[Probes; 2]> = match still {
                true => vec![probe(&self.a)],
                false => vec![probe(&self.a), probe(&self.b)],
            };
            let (a, name, new) = (self.a.clone(), name.clone(), new.clone());
            let sealed = runtime.spawn(async move {
                while a.seal(&name, &new).await == Answer::Fenced {}
                while a.create(&name, &new, false).await == Answer::Fenced {}
            });
            (since, probes, late, sealed)
        });
        runtime.block_on(sealed).unwrap();
        let status_write = self.late_status(&name, &version, &old);
        let mut woken = since;
        let (status, creates);
        if still {
            pass(STILL);
            let sent = runtime.spawn(status_write);
            let late = runtime.spawn(self.late_creates(&name, &old, WAITING));
            // They lie in its sockets.
            pass(Duration::from_millis(200));
            woken = Instant::now();
            self.second.signal("CONT");
            probes.push(probe(&self.b));
            creates = runtime.block_on(late).unwrap();
            status = runtime.block_on(sent).unwrap();
        } else {
            status = runtime.block_on(status_write);
            creates = runtime.block_on(late.unwrap()).unwrap();
        }
        let since = [since, woken];
        let windows = probes.into_iter().zip(since);
        let windows = windows.map(|([old, new], since)| runtime.block_on(window(old, new, since)));
        let past = creates[1..].iter().filter(|a| **a != Answer::Fenced);
        Change {
            windows: windows.collect(),
            create: creates[0],
            waiting: (past.count(), creates.len() - 1),
            status,
        }
    }

    /// A task that the old leader has read, and as of when.
    async fn task(&self, name: &str) -> String {
        let task = json!({"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask",
            "metadata": {"name": name}, "spec": {"taskId": name, "repository": "org/repo",
                "commitSha": "abc", "workers": 1, "digest": "d"}});
        let task = serde_json::from_value(task).unwrap();
        let made = self.tasks.create(&PostParams::default(), &task).await;
        made.unwrap().metadata.resource_version.unwrap()
    }

    /// Connections, as many as will be used at once.
    async fn warm(&self, term: &Arc<str>) {
        for side in [&self.a, &self.b] {
            let calls = (0..=WAITING + 1).map(|_| side.create("probe", term, true));
            futures::future::join_all(calls).await;
        }
    }

    fn late_creates(
        &self,
        name: &str,
        term: &Arc<str>,
        more: usize,
    ) -> impl Future<Output = Vec<Answer>> + use<> {
        let (b, name, term) = (self.b.clone(), name.to_owned(), term.clone());
        async move {
            // The first is of the task's own name.
            let names: Vec<String> = std::iter::once(name.clone())
                .chain((0..more).map(|n| format!("{name}-late-{n}")))
                .collect();
            let calls = names.iter().map(|name| b.create(name, &term, false));
            futures::future::join_all(calls).await
        }
    }

    fn late_status(
        &self,
        name: &str,
        version: &str,
        term: &Arc<str>,
    ) -> impl Future<Output = Answer> + use<> {
        let b = self.b.clone();
        let (name, version, term) = (name.to_owned(), version.to_owned(), term.clone());
        async move { b.status(&name, &version, &term).await }
    }

    /// One pod of the task's name, and the record as the new leader left it.
    async fn judge(&self, mode: &str) {
        let name = format!("{mode}-{}", self.changes);
        assert!(self.pods.get_opt(&name).await.unwrap().is_some(), "{name}");
        let task = self.tasks.get(&name).await.unwrap();
        let told = task.status.unwrap_or_default();
        assert_eq!(told, TaskStatus::default(), "{name}");
        let terms = task.metadata.annotations.unwrap();
        assert_eq!(terms["ottoscaler.io/term"], *self.term());
    }
}

/// Lists, watches and creates at a server, by admin, until dropped.
fn load(runtime: &Runtime, kubeconfig: &str, namespace: &str) -> JoinSet<()> {
    let client: Client = runtime.block_on(client(kubeconfig));
    let mut all = JoinSet::new();
    for n in 0..24 {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let call = async move {
            use futures::TryStreamExt as _;
            let pod = json!({"metadata": {"name": format!("load-{n}")},
                "spec": {"containers": [{"name": "worker", "image": "busybox"}]}});
            let pod = serde_json::from_value(pod).unwrap();
            let dry = PostParams {
                dry_run: true,
                ..PostParams::default()
            };
            loop {
                // So that it can be dropped, even where calls fail at once.
                tokio::task::yield_now().await;
                match n % 3 {
                    0 => drop(pods.list_metadata(&ListParams::default()).await),
                    1 => drop(pods.create(&dry, &pod).await),
                    _ => {
                        let Ok(events) = pods.watch(&WatchParams::default(), "0").await else {
                            continue;
                        };
                        let mut events = Box::pin(events);
                        while let Ok(Some(_)) = events.try_next().await {}
                    }
                }
            }
        };
        all.spawn_on(call, runtime.handle());
    }
    all
}

fn milliseconds(mut all: Vec<Duration>) -> String {
    all.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1_000.0;
    format!(
        "median {:.1} ms, at most {:.1} ms",
        ms(all[all.len() / 2]),
        ms(all[all.len() - 1])
    )
}

/// Prints a mode's figures; returns how many late writes passed the policy.
fn tell(mode: &str, changes: &[Change], raw: &mut String) -> usize {
    let mut passed = 0;
    for (n, server) in ["A", "B"].into_iter().enumerate() {
        let all: Vec<&Window> = changes.iter().map(|c| &c.windows[n]).collect();
        let late: usize = all.iter().map(|w| w.late).sum();
        let early: usize = all.iter().map(|w| w.early).sum();
        println!(
            "{mode}, {} changes, server {server}: the old term accepted until {} ({late} writes, in {} changes); \
             the new one refused until {} ({early} writes, in {} changes)",
            all.len(),
            milliseconds(all.iter().map(|w| w.late_until).collect()),
            all.iter().filter(|w| w.late > 0).count(),
            milliseconds(all.iter().map(|w| w.early_until).collect()),
            all.iter().filter(|w| w.early > 0).count(),
        );
        for (n, w) in all.iter().enumerate() {
            let ms = |d: Duration| d.as_secs_f64() * 1_000.0;
            let (late, early) = (ms(w.late_until), ms(w.early_until));
            let _ = writeln!(
                raw,
                "{mode},{n},{server},{},{late:.3},{},{early:.3}",
                w.late, w.early
            );
        }
        passed += late;
    }
    let of = |f: &dyn Fn(&Change) -> Answer, what| changes.iter().filter(|c| f(c) == what).count();
    let (create, status) = (|c: &Change| c.create, |c: &Change| c.status);
    let waiting = changes
        .iter()
        .map(|c| c.waiting)
        .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!(
        "{mode}: late creates of a wanted pod: {} first, {} found it there, {} refused by policy; \
         late status writes: {} refused by version, {} by policy; of {} creates in a still server's sockets {} took effect",
        of(&create, Answer::Accepted),
        of(&create, Answer::Met),
        of(&create, Answer::Fenced),
        of(&status, Answer::Met),
        of(&status, Answer::Fenced),
        waiting.1,
        waiting.0
    );
    passed + waiting.0 + changes.len() - of(&create, Answer::Fenced)
}

#[test]
fn late_writes_that_an_api_server_accepts_change_nothing() {
    let cell = Cell::without_replicas("windows", &[]);
    let second = SecondServer::start(&cell.cluster, cell.dir());
    let at_second = second.kubeconfig_of(&cell.kubeconfig, "ottoscaler");
    let admin = cell.cluster.var("KUBECONFIG").to_owned();
    let admin_of_second = second.kubeconfig.clone();
    let runtime = runtime();
    let mut ground = runtime.block_on(async {
        let admin = client(&admin).await;
        Ground {
            leases: Api::namespaced(admin.clone(), &cell.namespace),
            tasks: Api::namespaced(admin.clone(), &cell.namespace),
            pods: Api::namespaced(admin, &cell.namespace),
            a: Side::new(&cell.kubeconfig, &cell.namespace).await,
            b: Side::new(&at_second, &cell.namespace).await,
            second,
            uid: String::new(),
            changes: 0,
        }
    });
    runtime.block_on(async {
        let lease = serde_json::from_value(ground.lease()).unwrap();
        let lease = ground.leases.create(&PostParams::default(), &lease).await;
        ground.uid = lease.unwrap().metadata.uid.unwrap();
        tokio::time::timeout(SOON, ground.settled()).await.unwrap();
    });
    let full = is_full();
    let (many, few) = if full { (60, 30) } else { (8, 2) };
    let mut raw = String::from("mode,change,server,late,late_until_ms,early,early_until_ms\n");
    let mut passed = 0;
    for (mode, changes) in [("idle", many), ("loaded", many), ("still", few)] {
        let loaded = (mode == "loaded").then(|| load(&runtime, &admin_of_second, &cell.namespace));
        let all: Vec<Change> = (0..changes)
            .map(|_| {
                let change = ground.change(&runtime, mode, mode == "still");
                // The seal came first: whatever the policy thought, it fails.
                assert_ne!(change.status, Answer::Accepted, "a late status write");
                runtime.block_on(ground.judge(mode));
                change
            })
            .collect();
        drop(loaded);
        passed += tell(mode, &all, &mut raw);
    }
    println!("{passed} late writes in all passed the policy");
    if let Ok(dir) = std::env::var("OTTO_TEST_SAMPLES_DIR") {
        std::fs::write(format!("{dir}/fence-windows.csv"), raw).unwrap();
    }
    for server in [&ground.a, &ground.b] {
        let old = format!("{}/0/h-0", ground.uid).into();
        let refused = server.clone().probe(old, Answer::Fenced);
        runtime.block_on(async { tokio::time::timeout(SOON, refused).await.unwrap() });
    }
}
