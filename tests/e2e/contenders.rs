//! Contenders of the library inside this process, against a real API server: for
//! what a whole replica cannot be made to do.
mod clocks;
mod growth;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use fenced_lease::Timings;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Container, Pod, PodSpec},
};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, Patch, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};
use ottoscaler::{
    args::{LeaseOptions, ReplicaOptions},
    election::{Clients, Clock, Election, LeaderContext, LeaderWork, Metrics},
    supervisor::Supervisor,
};
use serde_json::json;
use tokio::{
    runtime::Runtime,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    faults::judge,
    processes::{Cell, SOON, fence_policy},
    support::{is_full, wait_for},
};

pub const LEASE: &str = "ottoscaler-leader";

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

pub async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(Path::new(kubeconfig)).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.unwrap()).unwrap()
}

/// As in production, with a short handover.
fn contender(
    name: &str,
    namespace: &str,
    client: &Client,
    metrics: &Metrics,
    clock: Clock,
) -> Election {
    let lease = LeaseOptions {
        name: LEASE.to_owned(),
        timings: Timings {
            handover_timeout: Duration::from_secs(1),
            ..Timings::default()
        },
        fence_policy: Some(fence_policy(namespace)),
    };
    let replica = ReplicaOptions {
        pod_name: name.to_owned(),
        pod_uid: None,
        address: "127.0.0.1:1".to_owned(),
    };
    let clients = Clients {
        lease: client.clone(),
        work: client.clone(),
        runtime: None,
    };
    Election::new(&lease, &replica, namespace, clients, metrics.clone(), clock).unwrap()
}

/// Work that the test looks into.
fn shared(work: Arc<impl LeaderWork>) -> impl LeaderWork {
    move |leader: LeaderContext| {
        let work = work.clone();
        async move { work.run(leader).await }
    }
}

/// A contender on its own in `runtime`.
fn start(
    runtime: &Runtime,
    cell: &Cell,
    name: &str,
    metrics: &Metrics,
    work: Arc<impl LeaderWork>,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let client = runtime.block_on(client(&cell.kubeconfig));
    let one = contender(name, &cell.namespace, &client, metrics, Clock::default());
    runtime.spawn(one.run(shared(work), stop.clone()))
}

/// A write that the fence judges.
async fn create_pod(leader: &LeaderContext, name: &str) -> kube::Result<Pod> {
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([("ottoscaler.io/attempt".to_owned(), "1".to_owned())].into()),
            ..Default::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "worker".into(),
                image: Some("busybox".into()),
                ..Default::default()
            }],
            ..Default::default()
        }),
        status: None,
    };
    leader
        .client
        .pods()
        .create(&PostParams::default(), &pod)
        .await
}

/// Counts who leads, and how many at once.
#[derive(Default)]
struct Court {
    leading: AtomicUsize,
    most: AtomicUsize,
    /// Terms in the order in which they began, with the number of the contender.
    terms: Mutex<Vec<(usize, i32)>>,
}

struct Seat(usize, Arc<Court>);

impl LeaderWork for Seat {
    async fn run(&self, leader: LeaderContext) {
        let Self(number, court) = self;
        let now = court.leading.fetch_add(1, Ordering::SeqCst) + 1;
        court.most.fetch_max(now, Ordering::SeqCst);
        let transitions = leader.term.transitions;
        create_pod(&leader, &format!("of-term-{transitions}"))
            .await
            .unwrap();
        court.terms.lock().unwrap().push((*number, transitions));
        tokio::select! {
            () = leader.drain.cancelled() => {}
            () = leader.lost.cancelled() => {}
        }
        court.leading.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Contenders that come and go, and what is known of their terms.
struct Contest {
    cell: Cell,
    court: Arc<Court>,
    runtime: Runtime,
    client: Client,
    stops: Vec<CancellationToken>,
    all: JoinSet<()>,
}

impl Contest {
    fn of(namespace: &str, contenders: usize) -> Self {
        let cell = Cell::without_replicas(namespace, &[]);
        let runtime = runtime();
        let client = runtime.block_on(client(&cell.kubeconfig));
        let mut contest = Self {
            cell,
            court: Arc::default(),
            runtime,
            client,
            stops: vec![],
            all: JoinSet::new(),
        };
        (0..contenders).for_each(|_| contest.join());
        contest
    }

    /// One more.
    fn join(&mut self) {
        let (n, stop) = (self.stops.len(), CancellationToken::new());
        let _entered = self.runtime.enter();
        let one = contender(
            &format!("c{n}"),
            &self.cell.namespace,
            &self.client,
            &Metrics::default(),
            Clock::default(),
        );
        let seat = Seat(n, self.court.clone());
        self.all.spawn(one.run(seat, stop.clone()));
        self.stops.push(stop);
    }

    /// The leader of term `round` leaves, once there is one.
    fn dismiss(&self, round: usize) {
        let (leader, _) = wait_for("another term", SOON, || {
            let terms = self.court.terms.lock().unwrap();
            (terms.len() >= round).then(|| terms[round - 1])
        });
        self.stops[leader].cancel();
    }

    /// One led at a time, and the API server agrees.
    fn judge(self, rounds: usize) {
        self.stops.iter().for_each(CancellationToken::cancel);
        self.runtime.block_on(self.all.join_all());
        let terms = self.court.terms.lock().unwrap().clone();
        let most = self.court.most.load(Ordering::SeqCst);
        assert_eq!(most, 1, "two led at once: {terms:?}");
        assert!(terms.is_sorted_by(|a, b| a.1 < b.1), "{terms:?}");
        let audit = judge(&self.cell, None);
        assert!(audit.terms.len() >= rounds && audit.creates.len() == audit.terms.len());
        println!("{} terms, one at a time", terms.len());
    }
}

#[test]
fn of_a_hundred_contenders_one_leads_at_a_time() {
    let (contest, rounds) = (Contest::of("hundred", 100), 20);
    for round in 1..=rounds {
        contest.dismiss(round);
    }
    contest.judge(rounds);
}

#[test]
fn of_two_contenders_one_leads_at_a_time() {
    let (mut contest, rounds) = (Contest::of("two", 2), if is_full() { 50 } else { 20 });
    for round in 1..=rounds {
        contest.dismiss(round);
        // Another comes when it has gone.
        contest.runtime.block_on(contest.all.join_next());
        contest.join();
    }
    contest.judge(rounds);
}

/// What the guard is for: as it comes, the crate lets several win.
#[test]
fn the_bare_crate_lets_contenders_acquire_together() {
    let cell = Cell::without_replicas("bare", &[]);
    let races = 30;
    let together = runtime().block_on(async {
        let client = client(&cell.kubeconfig).await;
        let leases: Api<Lease> = Api::namespaced(client.clone(), &cell.namespace);
        let expired = json!({"metadata": {"name": LEASE}, "spec": {"holderIdentity": "gone",
            "leaseDurationSeconds": 1, "leaseTransitions": 0, "acquireTime": "2020-01-01T00:00:00.000000Z",
            "renewTime": "2020-01-01T00:00:00.000000Z"}});
        leases
            .create(&PostParams::default(), &serde_json::from_value(expired.clone()).unwrap())
            .await
            .unwrap();
        let mut together = 0;
        for race in 0..races {
            leases
                .patch(LEASE, &Default::default(), &Patch::Merge(&expired))
                .await
                .unwrap();
            let locks: Vec<LeaseLock> = (0..3)
                .map(|n| {
                    let params = LeaseLockParams {
                        lease_name: LEASE.to_owned(),
                        holder_id: format!("race-{race}-{n}"),
                        lease_ttl: Duration::from_secs(6),
                    };
                    LeaseLock::new(client.clone(), &cell.namespace, params)
                })
                .collect();
            let results =
                futures::future::join_all(locks.iter().map(LeaseLock::try_acquire_or_renew)).await;
            let won = |r: &&Result<_, _>| matches!(r, Ok(LeaseLockResult::Acquired(_)));
            together += usize::from(results.iter().filter(won).count() > 1);
        }
        together
    });
    println!("the bare crate let several acquire in {together} of {races} races");
    assert!(together > 0, "then the guard would not be needed");
}

/// Work that nothing ends, as a blocked thread.
struct Stuck(Mutex<mpsc::Receiver<()>>, AtomicUsize);

impl LeaderWork for Stuck {
    async fn run(&self, _: LeaderContext) {
        self.1.store(1, Ordering::SeqCst);
        tokio::task::block_in_place(|| self.0.lock().unwrap().recv().ok());
    }
}

#[test]
fn while_work_lives_the_lease_is_not_released() {
    let cell = Cell::without_replicas("stuck", &[]);
    let (free, blocked) = mpsc::channel();
    let work = Arc::new(Stuck(Mutex::new(blocked), AtomicUsize::new(0)));
    let stop = CancellationToken::new();
    let runtime = runtime();
    let run = start(
        &runtime,
        &cell,
        "stuck",
        &Metrics::default(),
        work.clone(),
        &stop,
    );
    wait_for("it leads", SOON, || {
        (work.1.load(Ordering::SeqCst) == 1).then_some(())
    });
    let holder = cell.holder();
    stop.cancel();
    runtime.block_on(async { tokio::time::timeout(SOON, run).await.unwrap().unwrap() });
    let lease = cell.lease().unwrap();
    assert_eq!(cell.holder(), holder, "released while its work lives");
    assert!(lease["metadata"]["annotations"]["ottoscaler.io/released-by"].is_null());
    free.send(()).unwrap();
    judge(&cell, None);
}

/// Blocks every thread of its runtime, then writes.
struct Saturated {
    threads: usize,
    gate: Arc<Mutex<mpsc::Receiver<()>>>,
    blocked: Arc<AtomicUsize>,
    late: Arc<Mutex<Option<String>>>,
}

impl LeaderWork for Saturated {
    async fn run(&self, leader: LeaderContext) {
        create_pod(&leader, "in-time").await.unwrap();
        let mut hogs = JoinSet::new();
        for _ in 0..self.threads {
            let (gate, blocked) = (self.gate.clone(), self.blocked.clone());
            hogs.spawn(async move {
                blocked.fetch_add(1, Ordering::SeqCst);
                // On purpose: a thread of the runtime stands still.
                let _ = gate.lock().unwrap().recv();
            });
        }
        hogs.join_all().await;
        let late = create_pod(&leader, "too-late").await;
        *self.late.lock().unwrap() =
            Some(late.map_or_else(|e| chain(&e), |_| "written".to_owned()));
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|c| format!(": {}", chain(c)));
    format!("{error}{}", cause.unwrap_or_default())
}

#[test]
fn after_a_saturated_runtime_the_clock_stops_the_write() {
    let cell = Cell::without_replicas("saturated", &[]);
    let (open, gate) = mpsc::channel::<()>();
    let (blocked, late) = (Arc::new(AtomicUsize::new(0)), Arc::default());
    let work = Saturated {
        threads: 2,
        gate: Arc::new(Mutex::new(gate)),
        blocked: blocked.clone(),
        late: Arc::clone(&late),
    };
    let stop = CancellationToken::new();
    let (old, new) = (runtime(), runtime());
    let metrics = Metrics::default();
    let first = start(&old, &cell, "old", &metrics, Arc::new(work), &stop);
    wait_for("the runtime stands still", SOON, || {
        (blocked.load(Ordering::SeqCst) == 2).then_some(())
    });
    let court = Arc::new(Court::default());
    let second = start(
        &new,
        &cell,
        "new",
        &Metrics::default(),
        Arc::new(Seat(0, court.clone())),
        &stop,
    );
    wait_for("another leads", SOON, || {
        (!court.terms.lock().unwrap().is_empty()).then_some(())
    });
    drop(open);
    let said = wait_for("the late write", SOON, || late.lock().unwrap().clone());
    assert!(said.contains("no longer leads"), "{said}");
    assert_eq!(metrics.refused_by_clock(), 1);
    stop.cancel();
    old.block_on(first).unwrap();
    new.block_on(second).unwrap();
    let audit = judge(&cell, None);
    assert_eq!(audit.creates.len(), 2, "{:?}", audit.creates);
}

/// Panics in its first term.
struct Panics(AtomicUsize);

impl LeaderWork for Panics {
    async fn run(&self, leader: LeaderContext) {
        assert!(
            self.0.fetch_add(1, Ordering::SeqCst) > 0,
            "as a test told it to"
        );
        tokio::select! {
            () = leader.drain.cancelled() => {}
            () = leader.lost.cancelled() => {}
        }
    }
}

#[test]
fn work_that_panics_ends_its_term_and_the_next_one_begins() {
    let cell = Cell::without_replicas("panics", &[]);
    let (work, stop) = (
        Arc::new(Panics(AtomicUsize::new(0))),
        CancellationToken::new(),
    );
    let runtime = runtime();
    let run = start(
        &runtime,
        &cell,
        "panics",
        &Metrics::default(),
        work.clone(),
        &stop,
    );
    wait_for("a second term", SOON, || {
        (work.0.load(Ordering::SeqCst) == 2).then_some(())
    });
    assert_eq!(cell.lease().unwrap()["spec"]["leaseTransitions"], 1);
    stop.cancel();
    runtime.block_on(run).unwrap();
}

#[test]
fn an_election_task_that_panics_begins_the_shutdown() {
    let runtime = runtime();
    let (shutdown, until) = (CancellationToken::new(), CancellationToken::new());
    let failed = runtime.block_on(async {
        let broken = Client::new(
            tower::service_fn(|request: http::Request<kube::client::Body>| async move {
                assert!(
                    !request.uri().path().contains("leases"),
                    "as a test told it to"
                );
                Err::<http::Response<kube::client::Body>, tower::BoxError>("away".into())
            }),
            "n",
        );
        let one = contender(
            "broken",
            "n",
            &broken,
            &Metrics::default(),
            Clock::default(),
        );
        let mut tasks = Supervisor::new(shutdown.clone());
        let told = shutdown.clone();
        tasks.essential("election", async move {
            one.run(Panics(AtomicUsize::new(1)), told).await;
            Ok(())
        });
        tasks.watch(&until).await
    });
    assert!(failed.is_err_and(|e| e.to_string().contains("panicked")));
    assert!(shutdown.is_cancelled());
}
