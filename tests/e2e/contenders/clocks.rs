//! Clocks that are set, jump and drift, under contenders in this process; the
//! API server is real.
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt as _;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Client, client::Body};
use ottoscaler::election::{Clock, LeaderContext, LeaderWork, Metrics, System, Time};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Court, Seat, chain, client, contender, create_pod, runtime, shared};
use crate::{
    faults::judge,
    processes::{Cell, SOON},
    proxy::{Fault, Proxy, Rule},
    support::wait_for,
};

const JUMP: Duration = Duration::from_secs(10);

/// The system's clocks, stepped and scaled.
struct Warp {
    began: Duration,
    rate: f64,
    boot_ahead: Mutex<Duration>,
    /// Seconds.
    wall_ahead: AtomicI64,
}

impl Warp {
    fn new(rate: f64) -> Arc<Self> {
        Arc::new(Self {
            began: System.boot(),
            rate,
            boot_ahead: Mutex::default(),
            wall_ahead: AtomicI64::new(0),
        })
    }

    fn jump(&self) {
        *self.boot_ahead.lock().unwrap() += JUMP;
    }

    fn wall_ahead(&self) -> SignedDuration {
        SignedDuration::from_secs(self.wall_ahead.load(Ordering::SeqCst))
    }
}

impl Time for Warp {
    fn boot(&self) -> Duration {
        let passed = System.boot() - self.began;
        self.began + passed.mul_f64(self.rate) + *self.boot_ahead.lock().unwrap()
    }

    fn started(&self) -> Timestamp {
        System.started() + self.wall_ahead()
    }
}

/// The API server as a process with this wall clock sees it: kube-leader-election
/// reads the system's, so the times on the Lease are shifted instead.
fn by_the_wall_of(warp: &Arc<Warp>, inner: Client) -> Client {
    let warp = warp.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (warp, inner) = (warp.clone(), inner.clone());
        async move {
            let one = request.uri().path().contains("/leases")
                && !request.uri().query().is_some_and(|q| q.contains("watch"));
            if !one {
                return Ok::<_, tower::BoxError>(inner.send(request).await?);
            }
            let (mut parts, body) = request.into_parts();
            parts.headers.remove(http::header::CONTENT_LENGTH);
            let body = shifted(&body.collect().await?.to_bytes(), warp.wall_ahead());
            let response = inner.send(http::Request::from_parts(parts, body)).await?;
            let (mut parts, body) = response.into_parts();
            parts.headers.remove(http::header::CONTENT_LENGTH);
            let body = shifted(&body.collect().await?.to_bytes(), -warp.wall_ahead());
            Ok(http::Response::from_parts(parts, body))
        }
    });
    Client::new(service, "default")
}

fn shifted(bytes: &[u8], by: SignedDuration) -> Body {
    let Ok(mut lease) = serde_json::from_slice::<Value>(bytes) else {
        return Body::from(bytes.to_vec());
    };
    for field in ["acquireTime", "renewTime"] {
        if let Some(time) = lease["spec"][field].as_str() {
            let time: Timestamp = time.parse().unwrap();
            lease["spec"][field] = json!(format!("{:.6}", time + by));
        }
    }
    Body::from(serde_json::to_vec(&lease).unwrap())
}

/// A contender with clocks, a proxy and a runtime of its own.
struct Side {
    warp: Arc<Warp>,
    proxy: Proxy,
    stop: CancellationToken,
    metrics: Metrics,
    run: JoinHandle<()>,
    runtime: Runtime,
}

impl Side {
    fn start(
        cell: &Cell,
        name: &str,
        warp: Arc<Warp>,
        rules: Vec<Rule>,
        work: Arc<impl LeaderWork>,
    ) -> Self {
        let proxy = Proxy::start(&cell.kubeconfig, cell.dir(), name);
        proxy.set(rules);
        let clock = Clock::new(warp.clone());
        let metrics = Metrics::new(clock.clone());
        let (runtime, stop) = (runtime(), CancellationToken::new());
        let kubeconfig = proxy.kubeconfig.to_string_lossy();
        let client = runtime.block_on(async { by_the_wall_of(&warp, client(&kubeconfig).await) });
        let one = contender(name, &cell.namespace, &client, &metrics, clock);
        let run = runtime.spawn(one.run(shared(work), stop.clone()));
        Self {
            warp,
            proxy,
            stop,
            metrics,
            run,
            runtime,
        }
    }

    fn end(self) {
        self.stop.cancel();
        self.runtime
            .block_on(async { tokio::time::timeout(SOON, self.run).await.unwrap().unwrap() });
    }

    /// Until it has been seen to look at the Lease, or write it, once more.
    fn wait_hit(&self, rule: usize, what: &str) {
        let before = self.proxy.hits_of(rule);
        wait_for(what, SOON, || {
            (self.proxy.hits_of(rule) > before).then_some(())
        });
    }
}

const READS: usize = 0;
const WRITES: usize = 1;

/// Only counts.
fn counted() -> Vec<Rule> {
    let at_once = Fault::AnswerLate(Duration::ZERO);
    vec![
        Rule::on("GET", "/leases/ottoscaler-leader", at_once),
        Rule::on("PATCH", "/leases/ottoscaler-leader", at_once),
    ]
}

/// And hears nothing: what it knows of the Lease it reads itself, so that its own
/// judgement of a silence is what decides.
fn deaf() -> Vec<Rule> {
    let mut rules = counted();
    rules.push(Rule::on("GET", "watch=true", Fault::RequestLost));
    rules
}

fn terms(court: &Court) -> Vec<(usize, i32)> {
    court.terms.lock().unwrap().clone()
}

fn wait_terms(court: &Court, count: usize) {
    wait_for("another term", SOON, || {
        (terms(court).len() >= count).then_some(())
    });
}

fn most(court: &Court) -> usize {
    court.most.load(Ordering::SeqCst)
}

/// A leader and a follower that hears nothing.
fn pair(cell: &Cell, court: &Arc<Court>) -> (Side, Side) {
    let seat = |n| Arc::new(Seat(n, court.clone()));
    let leader = Side::start(cell, "a", Warp::new(1.0), counted(), seat(0));
    wait_terms(court, 1);
    let follower = Side::start(cell, "b", Warp::new(1.0), deaf(), seat(1));
    follower.wait_hit(READS, "the follower knows the Lease");
    (leader, follower)
}

#[test]
fn wall_clocks_set_by_an_hour_change_nothing_and_a_release_still_hands_over() {
    let cell = Cell::without_replicas("wall", &[]);
    let court = Arc::new(Court::default());
    let (leader, follower) = pair(&cell, &court);
    let set = |ours: i64, theirs: i64| {
        leader.warp.wall_ahead.store(ours * 3600, Ordering::SeqCst);
        follower
            .warp
            .wall_ahead
            .store(theirs * 3600, Ordering::SeqCst);
    };
    for (ours, theirs) in [(1, 0), (-1, 0), (0, 1), (0, -1)] {
        set(ours, theirs);
        // By a Lease that was written since.
        leader.wait_hit(WRITES, "it is renewed");
        follower.wait_hit(READS, "the follower looks");
        println!(
            "the leader {ours:+} h, the follower {theirs:+} h: {:?}",
            terms(&court)
        );
    }
    assert_eq!(
        follower.proxy.hits_of(WRITES),
        0,
        "the follower tried to take it"
    );
    assert_eq!(terms(&court), [(0, 0)]);
    set(1, -1);
    leader.end();
    wait_terms(&court, 2);
    assert_eq!((terms(&court)[1], most(&court)), ((1, 1), 1));
    follower.end();
    judge(&cell, None);
}

/// In its first term its clock jumps between two writes.
struct Jumps {
    warp: Arc<Warp>,
    late: Mutex<Option<String>>,
    court: Arc<Court>,
}

impl LeaderWork for Jumps {
    async fn run(&self, leader: LeaderContext) {
        if leader.term.transitions == 0 {
            create_pod(&leader, "in-time").await.unwrap();
            self.warp.jump();
            let late = create_pod(&leader, "too-late").await;
            *self.late.lock().unwrap() =
                Some(late.map_or_else(|e| chain(&e), |_| "written".to_owned()));
            return leader.lost.cancelled().await;
        }
        Seat(0, self.court.clone()).run(leader).await;
    }
}

#[test]
fn a_leader_whose_boot_clock_jumps_sends_nothing_more_and_contends_again() {
    let cell = Cell::without_replicas("jump-lead", &[]);
    let (warp, court) = (Warp::new(1.0), Arc::new(Court::default()));
    let work = Arc::new(Jumps {
        warp: warp.clone(),
        late: Mutex::default(),
        court: court.clone(),
    });
    let side = Side::start(&cell, "jumps", warp, counted(), work.clone());
    let said = wait_for("the late write", SOON, || work.late.lock().unwrap().clone());
    assert!(said.contains("no longer leads"), "{said}");
    assert!(side.metrics.refused_by_clock() >= 1);
    wait_terms(&court, 1);
    assert_eq!(terms(&court), [(0, 1)], "no new term, or more than one");
    side.end();
    let audit = judge(&cell, None);
    let created: Vec<&String> = audit.creates.keys().collect();
    assert_eq!(created, ["in-time", "of-term-1"]);
    assert_eq!(audit.refusals, 0, "the API server had to refuse it");
}

#[test]
fn a_follower_whose_boot_clock_jumps_takes_the_lease_of_a_silent_leader_only() {
    let cell = Cell::without_replicas("jump-wait", &[]);
    let court = Arc::new(Court::default());
    let (leader, follower) = pair(&cell, &court);
    for round in 1..=3 {
        // It was away for so long, and the leader was not.
        leader.wait_hit(WRITES, "it is renewed");
        follower.warp.jump();
        follower.wait_hit(READS, "the follower looks");
        println!("jump {round}: {:?}", terms(&court));
    }
    leader.wait_hit(WRITES, "it is renewed");
    assert_eq!(
        follower.proxy.hits_of(WRITES),
        0,
        "it tried to take the Lease"
    );
    assert_eq!(terms(&court), [(0, 0)]);
    leader.proxy.set(vec![Rule::all(Fault::RequestLost)]);
    wait_for("the leader stopped by itself", SOON, || {
        (court.leading.load(Ordering::SeqCst) == 0).then_some(())
    });
    follower.warp.jump();
    wait_terms(&court, 2);
    assert_eq!((terms(&court)[1], most(&court)), ((1, 1), 1));
    leader.proxy.heal();
    leader.end();
    follower.end();
    judge(&cell, None);
}

/// Validity is over before a successor's wait is: also if a leader's clock is
/// slow by a tenth (4 s last 4.4 s) and a follower's fast by a tenth (6 s last
/// 5.5 s).
#[test]
fn clocks_that_drift_by_a_tenth_never_let_two_lead() {
    let cell = Cell::without_replicas("drift", &[]);
    let (court, rounds) = (Arc::new(Court::default()), 4);
    let sides: Vec<Side> = [0.9, 1.1]
        .into_iter()
        .enumerate()
        .map(|(n, rate)| {
            let seat = Arc::new(Seat(n, court.clone()));
            let side = Side::start(&cell, &format!("drift-{n}"), Warp::new(rate), vec![], seat);
            // The slow one leads first.
            wait_terms(&court, 1);
            side
        })
        .collect();
    for round in 1..=rounds {
        let (leader, _) = terms(&court)[round - 1];
        assert_eq!(terms(&court).len(), round);
        sides[leader].proxy.set(vec![Rule::all(Fault::RequestLost)]);
        wait_terms(&court, round + 1);
        sides[leader].proxy.heal();
    }
    // They took turns: each of them was the slow leader, and the fast follower.
    assert_eq!(terms(&court), [(0, 0), (1, 1), (0, 2), (1, 3), (0, 4)]);
    sides.into_iter().for_each(Side::end);
    // The one that ended last may have led once more.
    let led = terms(&court);
    println!("{} terms by drifting clocks: {led:?}", led.len());
    assert_eq!(most(&court), 1, "two led at once: {led:?}");
    let audit = judge(&cell, None);
    assert_eq!(
        (audit.creates.len(), audit.terms.len()),
        (led.len(), led.len())
    );
}
