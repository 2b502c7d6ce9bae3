//! The real admission, its creates answered by an API server that a test plays, on paused
//! time.
#![expect(clippy::unwrap_used)]
mod property;

use std::collections::{BTreeSet, VecDeque};

use tokio::sync::watch;

use super::{
    super::test_shared::{client, shared, status, task},
    *,
};
use crate::{domain::refusal::Refusal, election::Pause, workers::outcome::WriteResult};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;
/// An answer takes so long.
const QUICK: Duration = Duration::from_millis(20);
/// The longest wait for the next try, and what the API server and the loop take.
const ONE_BACKOFF: Duration = Duration::from_secs(11);

/// What the API server says of a pod that it forbids.
fn forbidden(said: &str) -> WriteResult {
    refused(403, &format!("pods \"p\" is forbidden: {said}"))
}

fn refused(code: u16, message: &str) -> WriteResult {
    let status = serde_json::from_value(status(code, "", message).1).unwrap();
    WriteResult::of_create(&kube::Error::Api(Box::new(status)))
}

fn over_quota(memory: &str) -> WriteResult {
    forbidden(&format!(
        "exceeded quota: q, requested: limits.memory={memory}, used: limits.memory=0, limited: limits.memory=4Gi"
    ))
}

const RBAC: &str = "pods is forbidden: User \"o\" cannot create resource \"pods\" in API group \"\" in the namespace \"n\"";

fn webhook_fails() -> WriteResult {
    refused(
        500,
        "Internal error occurred: failed calling webhook \"w\": context deadline exceeded",
    )
}

/// The loop beside the admission: asks for what is wanted, and again once a create ended.
struct Sim {
    admission: Admission,
    pause: watch::Sender<Option<Arc<str>>>,
    wanted: BTreeMap<Arc<str>, (Task, BTreeSet<Attempt>)>,
    /// Tasks to be asked for.
    due: Vec<(Instant, Arc<str>)>,
    under_way: VecDeque<(Instant, Create, WriteResult, Permit)>,
    tries: Vec<(Instant, Create)>,
    made: BTreeMap<Create, Instant>,
    failed: BTreeMap<Create, (Instant, String)>,
    most_under_way: usize,
}

impl Sim {
    fn new(settings: &[(&str, &str)]) -> Self {
        let (set, pause) = Pause::channel(false);
        let nobody = client(|_, _, _| status(404, "NotFound", "nothing is there"));
        Self {
            admission: Admission::new(shared(nobody, pause, settings)),
            pause: set,
            wanted: BTreeMap::new(),
            due: vec![],
            under_way: VecDeque::new(),
            tries: vec![],
            made: BTreeMap::new(),
            failed: BTreeMap::new(),
            most_under_way: 0,
        }
    }

    fn want(&mut self, task: Task, workers: u32) -> Arc<str> {
        let name: Arc<str> = Arc::from(task.name.as_str());
        let attempts = (1..=workers).map(|index| Attempt { index, attempt: 1 });
        self.wanted.insert(name.clone(), (task, attempts.collect()));
        self.due.push((Instant::now(), name.clone()));
        name
    }

    fn ask(&mut self, name: &Arc<str>) {
        let (task, attempts) = &self.wanted[name];
        let creates = attempts.iter().copied().collect();
        self.admission.ask(name, task, creates);
    }

    /// Until then; `answer` says what becomes of a create, and when.
    async fn run(
        &mut self,
        until: Instant,
        mut answer: impl FnMut(&Create) -> (Duration, WriteResult),
    ) {
        let mut turns = 0;
        loop {
            let now = Instant::now();
            turns += 1;
            assert!(turns < 200_000, "it spins");
            for (_, name) in self
                .due
                .extract_if(.., |(at, _)| *at <= now)
                .collect::<Vec<_>>()
            {
                self.ask(&name);
            }
            let over = self.under_way.iter().position(|(at, ..)| *at <= now);
            if let Some((_, create, result, permit)) = over.and_then(|n| self.under_way.remove(n)) {
                self.ended(create, &result, permit);
                continue;
            }
            for (create, permit) in self.admission.admit() {
                let twice = self.under_way.iter().any(|(_, c, ..)| *c == create);
                assert!(
                    !twice && !self.made.contains_key(&create),
                    "{create:?} twice"
                );
                self.tries.push((now, create.clone()));
                let (takes, result) = answer(&create);
                self.under_way
                    .push_back((now + takes, create, result, permit));
            }
            self.most_under_way = self.most_under_way.max(self.under_way.len());
            if now >= until {
                return;
            }
            let next = self.under_way.iter().map(|(at, ..)| *at);
            let next = next.chain(self.due.iter().map(|(at, _)| *at));
            let next = next
                .chain(self.admission.wake_at())
                .chain(self.admission.shared.scheduler.wake_at())
                .chain([until])
                .min();
            tokio::time::sleep_until(next.unwrap()).await;
        }
    }

    fn ended(&mut self, create: Create, result: &WriteResult, permit: Permit) {
        let (name, attempt) = &create;
        let outcome = self.admission.ended(name, *attempt, result);
        permit.ended(result, result.is_done());
        let now = Instant::now();
        for (task, attempt, why) in outcome.failed {
            self.wanted.get_mut(&task).unwrap().1.remove(&attempt);
            self.due.push((now, task.clone()));
            self.failed.insert((task, attempt), (now, why));
        }
        if result.is_done() {
            self.wanted.get_mut(name).unwrap().1.remove(attempt);
            self.made.insert(create.clone(), now);
        }
        self.due
            .push((now + outcome.again.max(MS(100)), name.clone()));
    }

    fn made(&self, name: &str) -> usize {
        self.made.keys().filter(|(task, _)| &**task == name).count()
    }

    fn tries(&self, name: &str) -> Vec<Instant> {
        let of = self.tries.iter().filter(|(_, (task, _))| &**task == name);
        of.map(|(at, _)| *at).collect()
    }

    fn lacks(&self, name: &str) -> String {
        self.admission.shared.wait_reason(name).text
    }
}

const BIG: &[(&str, &str)] = &[("OTTO_MEMORY_LIMIT", "8Gi")];

#[tokio::test(start_paused = true)]
async fn what_fits_a_quota_passes_what_does_not_whatever_the_order() {
    for (big, small, priority) in [
        ("r", "r", "0"),
        ("a", "b", "0"),
        ("b", "a", "0"),
        ("r", "r", "-9"),
    ] {
        let mut sim = Sim::new(&[]);
        let start = Instant::now();
        let answer = |create: &Create| match &*create.0 {
            "big" => (QUICK, over_quota("8Gi")),
            _ => (QUICK, WriteResult::Done),
        };
        sim.want(task("big", big, BIG), 2);
        sim.run(start + S(5), answer).await;
        sim.want(task("small", small, &[("OTTO_PRIORITY", priority)]), 3);
        sim.run(start + S(5) + ONE_BACKOFF, answer).await;
        assert_eq!(sim.made("small"), 3, "{big} {small} {priority}");
        // The big one is tried for as long as it is wanted, ever less often.
        sim.run(start + S(600), answer).await;
        let tries = sim.tries("big").len();
        assert!((58..80).contains(&tries), "{tries}");
        assert!(sim.failed.is_empty(), "a quota can be raised");
        assert!(
            sim.lacks("big")
                .starts_with("ask for more than the quota has in all (exceeded quota"),
            "{}",
            sim.lacks("big")
        );
        assert_eq!(sim.lacks("small"), "wait for the API server");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_is_not_counted_yet_is_waited_for() {
    let mut sim = Sim::new(&[]);
    let start = Instant::now();
    sim.want(task("t", "r", &[]), 2);
    let unknown = "status unknown for quota: q, resources: limits.memory";
    sim.run(start + S(3), |_| (QUICK, forbidden(unknown))).await;
    assert_eq!(
        sim.lacks("t"),
        format!("wait for room in the quota ({unknown})")
    );
    sim.run(start + S(3) + ONE_BACKOFF, |_| (QUICK, WriteResult::Done))
        .await;
    assert_eq!((sim.made("t"), sim.failed.len()), (2, 0));
    assert_eq!(sim.lacks("t"), "wait for the API server");
}

#[tokio::test(start_paused = true)]
async fn an_ended_pause_or_quota_is_told_no_more() {
    let mut sim = Sim::new(&[]);
    let start = Instant::now();
    sim.pause.send_replace(Some("for a test".into()));
    sim.want(task("t", "r", &[]), 1);
    sim.run(start + S(1), |_| (QUICK, WriteResult::Done)).await;
    assert_eq!(sim.lacks("t"), "wait for the end of the pause (for a test)");
    assert!(sim.admission.shared.lacks_places("t"));
    // Nobody waits any more when it ends.
    sim.admission.forget(&Arc::from("t"));
    sim.pause.send_replace(None);
    sim.admission.admit();
    assert_eq!(sim.lacks("t"), "wait for the API server");

    sim.want(task("u", "r", &[]), 1);
    sim.run(start + S(2), |_| (QUICK, over_quota("128Mi")))
        .await;
    assert!(sim.lacks("u").contains("quota"));
    sim.admission.forget(&Arc::from("u"));
    sim.want(task("v", "r", &[]), 1);
    sim.ask(&Arc::from("v"));
    assert!(
        sim.lacks("v").contains("quota"),
        "it waits at the same gate"
    );
    sim.run(start + S(20), |_| (QUICK, WriteResult::Done)).await;
    for name in ["u", "v"] {
        assert_eq!(sim.lacks(name), "wait for the API server");
        assert!(!sim.admission.shared.lacks_places(name));
    }
}

#[tokio::test(start_paused = true)]
async fn max_workers_is_told_while_somebody_waits_for_it() {
    let mut sim = Sim::new(&[("MAX_WORKERS", "2")]);
    let start = Instant::now();
    sim.want(task("t", "r", &[]), 3);
    sim.run(start + MS(10), |_| (S(60), WriteResult::Done))
        .await;
    assert_eq!(sim.lacks("t"), "wait for room (MAX_WORKERS is 2)");
}

#[tokio::test(start_paused = true)]
async fn what_repeats_for_long_fails_with_its_text_and_those_beside_it() {
    let mut sim = Sim::new(&[("REFUSED_TIMEOUT", "2m")]);
    let start = Instant::now();
    for n in 0..20 {
        sim.want(task(&format!("t{n}"), "r", &[]), 2);
    }
    let user = |_: &Create| (QUICK, refused(403, RBAC));
    sim.run(start + S(119), user).await;
    assert!(sim.failed.is_empty());
    assert!(
        sim.lacks("t7")
            .starts_with("are refused and tried again: RBAC: User")
    );
    // One that came later waits as long.
    sim.want(task("late", "r", &[]), 1);
    sim.run(start + S(122), user).await;
    assert_eq!(sim.failed.len(), 40);
    assert!(
        sim.failed
            .values()
            .all(|(_, why)| why.contains("cannot create resource"))
    );
    let tries = sim.tries.len();
    assert!(tries < 150, "one at a time asks for all: {tries}");
    sim.run(start + S(250), user).await;
    assert_eq!(sim.failed.len(), 41);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_starts_is_waited_for_and_work_goes_on_within_a_second() {
    for end in [
        || refused(403, RBAC),
        || forbidden("not yet ready to handle request"),
        || refused(503, "apiserver is shutting down"),
        || refused(401, "Unauthorized"),
    ] {
        let mut sim = Sim::new(&[]);
        let start = Instant::now();
        for n in 0..50 {
            sim.want(task(&format!("t{n}"), &format!("r{n}"), &[]), 2);
        }
        sim.run(start + S(30), |_| (MS(1), end())).await;
        let tries = sim.tries.len();
        assert!(tries < 700, "{tries}");
        let then = Instant::now();
        sim.run(then + MS(2_500), |_| (QUICK, WriteResult::Done))
            .await;
        assert_eq!((sim.made.len(), sim.failed.len()), (100, 0));
        let first = sim.made.values().min().unwrap();
        assert!(*first - then < MS(1_200), "{:?}", *first - then);
    }
}

/// One that does not answer delays a create by as long as it is waited for.
#[tokio::test(start_paused = true)]
async fn a_webhook_that_does_not_answer_delays_nobody_whom_it_is_not_asked_about() {
    let mut sim = Sim::new(&[]);
    let start = Instant::now();
    for n in 0..10 {
        sim.want(task(&format!("slow{n}"), "r", &[("OTTO_PRIORITY", "9")]), 3);
    }
    let answer = |create: &Create| match &create.0 {
        name if name.starts_with("slow") => (S(4), webhook_fails()),
        _ => (QUICK, WriteResult::Done),
    };
    sim.run(start + S(90), answer).await;
    sim.want(task("quick", "q", &[]), 20);
    sim.run(start + S(90) + ONE_BACKOFF, answer).await;
    assert_eq!(sim.made("quick"), 20);
    // Of a task no more are tried than one at a time, and all of them fail in the end.
    sim.run(start + S(300), answer).await;
    assert_eq!(sim.failed.len(), 30);
    assert!(
        sim.failed
            .values()
            .all(|(_, why)| why.contains("failed calling webhook"))
    );
}

/// Each asks for itself and gets no answer; the quota has room for the others.
#[tokio::test(start_paused = true)]
async fn who_gets_no_answer_at_a_quotas_gate_is_in_nobodys_way() {
    let mut sim = Sim::new(&[]);
    let start = Instant::now();
    sim.want(task("busy", "r", &[("OTTO_PRIORITY", "9")]), 50);
    sim.want(task("other", "r", &[]), 2);
    let full = |_: &Create| (QUICK, over_quota("128Mi"));
    sim.run(start + S(20), full).await;
    let answer = |create: &Create| match &*create.0 {
        "busy" => (QUICK, refused(500, "etcdserver: request timed out")),
        _ => (QUICK, WriteResult::Done),
    };
    sim.run(start + S(20) + ONE_BACKOFF, answer).await;
    assert_eq!(sim.made("other"), 2);
}

#[tokio::test(start_paused = true)]
async fn another_kind_of_refusal_begins_the_timeout_anew() {
    let mut sim = Sim::new(&[("REFUSED_TIMEOUT", "60s")]);
    let start = Instant::now();
    sim.want(task("t", "r", &[]), 1);
    sim.run(start + S(50), |_| (QUICK, webhook_fails())).await;
    let missing =
        "error looking up service account n/default: serviceaccount \"default\" not found";
    sim.run(start + S(100), |_| (QUICK, forbidden(missing)))
        .await;
    assert!(sim.failed.is_empty());
    sim.run(start + S(130), |_| (QUICK, forbidden(missing)))
        .await;
    let (_, why) = sim.failed.values().next().unwrap();
    assert!(why.contains("service account"));
}

#[tokio::test(start_paused = true)]
async fn who_denies_the_pod_itself_fails_it_at_once_and_nobody_else() {
    let mut sim = Sim::new(&[]);
    let start = Instant::now();
    sim.want(task("bad", "r", &[]), 3);
    sim.want(task("good", "r", &[]), 3);
    let violates = "violates PodSecurity \"restricted:latest\": runAsNonRoot != true";
    let answer = |create: &Create| match &*create.0 {
        "bad" => (QUICK, forbidden(violates)),
        _ => (QUICK, WriteResult::Done),
    };
    sim.run(start + S(1), answer).await;
    assert_eq!((sim.failed.len(), sim.made("good")), (3, 3));
    assert!(sim.failed.values().all(|(_, why)| why == violates));
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_that_name_is_told_waited_for_and_no_reason_for_others() {
    let mut sim = Sim::new(&[]);
    let start = Instant::now();
    sim.want(task("t", "r", &[]), 3);
    let answer = |create: &Create| match create.1.index {
        2 => (
            QUICK,
            WriteResult::Refused(Refusal::other_pod("otto-agent-t-2", false)),
        ),
        _ => (QUICK, WriteResult::Done),
    };
    sim.run(start + S(20), answer).await;
    assert_eq!(sim.made("t"), 2);
    assert_eq!(
        sim.lacks("t"),
        "find their name taken: pod otto-agent-t-2 exists and is not ours; delete it or use another task id"
    );
    sim.run(start + S(140), answer).await;
    assert_eq!(sim.failed.len(), 1);
    assert!(sim.tries("t").len() < 25);
}

/// One create after another takes seconds and is not answered, but the Lease is renewed: it
/// is not the API server that is silent.
#[tokio::test(start_paused = true)]
async fn creates_that_nobody_answers_fail_while_none_gets_through() {
    let silence = |_: &Create| {
        let why = "deadline has elapsed".to_owned();
        let retry_after = Duration::ZERO;
        (S(4), WriteResult::Busy { why, retry_after })
    };
    let mut sim = Sim::new(&[]);
    let start = Instant::now();
    sim.want(task("t", "r", &[]), 2);
    sim.run(start + S(100), silence).await;
    assert!(sim.failed.is_empty());
    assert!(sim.lacks("t").contains("webhook may not answer"));
    sim.run(start + S(135), silence).await;
    assert_eq!(sim.failed.len(), 2);
    // Where others get through it may be chance.
    let mut sim = Sim::new(&[]);
    let start = Instant::now();
    sim.want(task("t", "r", &[]), 2);
    for n in 0..20 {
        sim.want(task(&format!("u{n}"), "r", &[]), 1);
        sim.run(start + S(10 * (n + 1)), |create| match &*create.0 {
            "t" => silence(create),
            _ => (QUICK, WriteResult::Done),
        })
        .await;
    }
    assert_eq!((sim.failed.len(), sim.made.len()), (0, 20));
}

#[tokio::test(start_paused = true)]
async fn thousands_that_a_quota_has_no_room_for_ask_as_one() {
    let mut sim = Sim::new(&[("MAX_WORKERS", "100000")]);
    let start = Instant::now();
    for n in 0..2_000 {
        sim.want(task(&format!("t{n}"), &format!("r{}", n % 9), &[]), 1);
    }
    sim.run(start + S(60), |_| (MS(2), over_quota("128Mi")))
        .await;
    assert!(sim.tries.len() < 40, "{}", sim.tries.len());
    // There is room for a while: it is used at once, in growing numbers.
    sim.admission.heard_of_an_end();
    let then = Instant::now();
    sim.run(then + S(30), |_| (QUICK, WriteResult::Done)).await;
    assert_eq!(sim.made.len(), 2_000);
    let first = *sim.made.values().min().unwrap();
    assert!(first - then < MS(600), "{:?}", first - then);
}

/// Each task by itself: they need not have anything in common.
#[tokio::test(start_paused = true)]
async fn thousands_that_are_refused_one_by_one_ask_no_more_often_than_a_few() {
    let mut sim = Sim::new(&[("MAX_WORKERS", "100000"), ("REFUSED_TIMEOUT", "1h")]);
    let start = Instant::now();
    for n in 0..1_000 {
        sim.want(task(&format!("t{n}"), "r", &[]), 2);
    }
    sim.run(start + S(100), |_| (MS(2), webhook_fails())).await;
    let first: BTreeSet<_> = sim
        .tries
        .iter()
        .map(|(_, (task, _))| task.clone())
        .collect();
    assert_eq!(first.len(), 1_000, "each is tried");
    let more = sim.tries.len() - 1_000;
    assert!(more < 3_500, "{more}");
    assert!(sim.most_under_way <= 256);
}
