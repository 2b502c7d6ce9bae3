//! What otto-handler hears of workers, whatever becomes of it, of pods, tasks and leaders.
#![expect(clippy::unwrap_used)]
use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    super::{
        Scale as _,
        test_api::{Api, Leader, parsed, until},
    },
    *,
};
use crate::domain::request::{OutcomeKind, ScaleRequest};

/// How otto-handler takes what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Takes,
    Away,
    Refuses,
    /// Answers once it takes again.
    Slow,
}

struct Handler {
    mood: tokio::sync::watch::Sender<Mood>,
    tries: AtomicUsize,
    /// In the order in which they were taken.
    taken: Mutex<Vec<WorkerStatusNotification>>,
}

impl Handler {
    fn new(mood: Mood) -> Arc<Self> {
        Arc::new(Self {
            mood: tokio::sync::watch::Sender::new(mood),
            tries: AtomicUsize::new(0),
            taken: Mutex::default(),
        })
    }

    fn is(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Worker and state, each event once.
    fn heard(&self) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        let taken = self.taken.lock().unwrap();
        let new = taken
            .iter()
            .filter(|n| seen.insert(&n.metadata["event-id"]));
        let short = |n: &WorkerStatusNotification| {
            let worker = n.worker_id.trim_start_matches("otto-agent-");
            format!("{worker} {:?}", n.status())
        };
        new.map(short).collect()
    }

    async fn hears(&self, all: &[&str]) {
        let what = format!("heard {all:?}");
        let is_so = || self.heard() == all;
        let heard = tokio::time::timeout(Duration::from_secs(20), until(&what, is_so)).await;
        assert!(heard.is_ok(), "heard {:?}, not {all:?}", self.heard());
    }
}

#[tonic::async_trait]
impl NotificationSink for Handler {
    async fn tell(&self, notification: WorkerStatusNotification) -> Result<(), Untold> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        let mut mood = self.mood.subscribe();
        let now = *mood.borrow_and_update();
        match now {
            Mood::Away => return Err(Untold::Away("connection refused".into())),
            Mood::Refuses => return Err(Untold::Refused("answered ERROR".into())),
            Mood::Slow => drop(mood.wait_for(|m| *m == Mood::Takes).await),
            Mood::Takes => {}
        }
        self.taken.lock().unwrap().push(notification);
        Ok(())
    }
}

async fn scale_up(leader: &Leader) {
    let request = ScaleRequest {
        task_id: "t".into(),
        worker_count: 1,
        ..ScaleRequest::default()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    let answer = leader
        .manager
        .scale_up(parsed(request), deadline)
        .await
        .unwrap();
    assert_eq!(answer.kind, OutcomeKind::Success, "{answer:?}");
}

const POD: &str = "otto-agent-t-1";
const RETRY: &str = "otto-agent-t-1-r1";

async fn is_there(api: &Api, pod: &str) {
    until(pod, || api.pods().iter().any(|p| p == pod)).await;
}

/// The first attempt runs, is evicted, and another one follows it.
async fn evicted_once(api: &Arc<Api>, leader: &Leader) {
    scale_up(leader).await;
    api.run_pod(POD);
    tokio::time::sleep(Duration::from_millis(50)).await;
    api.end_pod(POD, 137, "Evicted");
    is_there(api, RETRY).await;
}

#[tokio::test]
async fn attempts_that_were_missed_are_told_in_order_with_their_own_facts() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Away));
    let leader = Leader::start(&api, 1, handler.clone());
    evicted_once(&api, &leader).await;
    api.run_pod(RETRY);
    tokio::time::sleep(Duration::from_millis(50)).await;
    api.end_pod(RETRY, 0, "");
    handler.is(Mood::Takes);
    let all = [
        "t-1 Created",
        "t-1 Running",
        "t-1-r1 Created",
        "t-1-r1 Running",
        "t-1-r1 Completed",
    ];
    handler.hears(&all).await;
    let taken = handler.taken.lock().unwrap();
    let attempts: Vec<&str> = taken.iter().map(|n| &*n.metadata["attempt"]).collect();
    assert_eq!(attempts, ["1", "1", "2", "2", "2"]);
    // The second attempt came a second later at least.
    assert!(taken[1].timestamp < taken[2].timestamp, "{taken:?}");
    assert_eq!(
        (&*taken[1].reason, &*taken[4].metadata["exit-code"]),
        ("", "0")
    );
}

#[tokio::test]
async fn attempts_that_were_missed_are_told_by_the_next_leader_too() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Away));
    let leader = Leader::start(&api, 1, handler.clone());
    evicted_once(&api, &leader).await;
    let row = || api.task("t").unwrap()["status"]["workers"][0].to_string();
    until("the second attempt is stored", || {
        row().contains("attempt=2")
    })
    .await;
    drop(leader);
    // Nothing of the first attempt is left but the record.
    api.remove_pod(POD);
    handler.is(Mood::Takes);
    api.restart();
    let _leader = Leader::start(&api, 2, handler.clone());
    let all = ["t-1 Created", "t-1 Running", "t-1-r1 Created"];
    handler.hears(&all).await;
}

#[tokio::test]
async fn a_pod_deleted_by_force_is_told_and_tried_again() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Takes));
    let leader = Leader::start(&api, 1, handler.clone());
    scale_up(&leader).await;
    api.run_pod(POD);
    tokio::time::sleep(Duration::from_millis(50)).await;
    api.remove_pod(POD);
    is_there(&api, RETRY).await;
    api.end_pod(RETRY, 7, "");
    let all = [
        "t-1 Created",
        "t-1 Running",
        "t-1-r1 Created",
        "t-1-r1 Running",
        "t-1-r1 Failed",
    ];
    handler.hears(&all).await;
}

#[tokio::test]
async fn a_task_made_anew_under_its_id_is_told_its_own_history() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Takes));
    let leader = Leader::start(&api, 1, handler.clone());
    scale_up(&leader).await;
    api.run_pod(POD);
    handler.hears(&["t-1 Created", "t-1 Running"]).await;
    // The end of the first task's worker is under way while the task is made anew.
    handler.is(Mood::Slow);
    api.end_pod(POD, 0, "");
    let tries = handler.tries.load(Ordering::SeqCst);
    until("it is under way", || {
        handler.tries.load(Ordering::SeqCst) > tries
    })
    .await;
    api.remove_pod(POD);
    api.delete_task("t");
    scale_up(&leader).await;
    api.end_pod(POD, 0, "");
    tokio::time::sleep(Duration::from_millis(100)).await;
    handler.is(Mood::Takes);
    until("both ends are told", || {
        let heard = handler.heard();
        heard.iter().filter(|n| n.ends_with("Completed")).count() == 2
    })
    .await;
    assert_eq!(handler.heard().len(), 6, "{:?}", handler.heard());
}

/// The pod is asked to end, ends, and then its worker's last word is told.
async fn ends_as_terminated(api: &Api, handler: &Handler) {
    api.delete_pod(POD);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(handler.heard().last().unwrap(), "t-1 Running");
    api.end_pod(POD, 143, "");
    api.remove_pod(POD);
    let all = ["t-1 Created", "t-1 Running", "t-1 Terminated"];
    handler.hears(&all).await;
}

async fn runs(api: &Arc<Api>, handler: &Arc<Handler>) -> Leader {
    let leader = Leader::start(api, 1, handler.clone());
    scale_up(&leader).await;
    api.run_pod(POD);
    handler.hears(&["t-1 Created", "t-1 Running"]).await;
    leader
}

#[tokio::test]
async fn workers_of_a_task_that_is_deleted_are_terminated() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Takes));
    let _leader = runs(&api, &handler).await;
    api.delete_task("t");
    ends_as_terminated(&api, &handler).await;
    let taken = handler.taken.lock().unwrap();
    let last = taken.last().unwrap();
    let facts = (&*last.reason, &*last.metadata["exit-code"]);
    assert_eq!(facts, ("TaskDeleted", "143"));
    assert_eq!(taken.len(), 3, "each once");
}

#[tokio::test]
async fn workers_of_a_task_that_waits_for_its_pods_to_go_are_terminated() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Takes));
    let _leader = runs(&api, &handler).await;
    api.delete_task_in_foreground("t");
    ends_as_terminated(&api, &handler).await;
    api.delete_task("t");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(handler.taken.lock().unwrap().len(), 3, "each once");
    assert_eq!(api.created(), [POD]);
}

#[tokio::test]
async fn workers_of_a_task_that_is_deleted_are_terminated_by_the_next_leader_too() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Takes));
    let leader = runs(&api, &handler).await;
    api.delete_task("t");
    drop(leader);
    // One that knows the task's pods only.
    api.restart();
    let _leader = Leader::start(&api, 2, handler.clone());
    ends_as_terminated(&api, &handler).await;
}

#[tokio::test]
async fn workers_of_a_task_that_went_while_nobody_led_are_terminated() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Takes));
    let leader = runs(&api, &handler).await;
    drop(leader);
    api.delete_task("t");
    api.remove_pod(POD);
    let _leader = Leader::start(&api, 2, handler.clone());
    let all = ["t-1 Created", "t-1 Running", "t-1 Terminated"];
    handler.hears(&all).await;
}

#[tokio::test(start_paused = true)]
async fn what_otto_handler_refuses_is_given_up_at_task_ttl() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Refuses));
    let leader = Leader::start(&api, 1, handler.clone());
    let hours = |n: u64| Duration::from_secs(n * 3_600);
    scale_up(&leader).await;
    api.run_pod(POD);
    tokio::time::sleep(hours(23)).await;
    assert_eq!(leader.metrics.given_up.get(), 0);
    tokio::time::sleep(hours(2)).await;
    assert_eq!(leader.metrics.given_up.get(), 1);
    let tries = handler.tries.load(Ordering::SeqCst);
    tokio::time::sleep(hours(2)).await;
    assert_eq!(handler.tries.load(Ordering::SeqCst), tries);
    // What comes next is told.
    handler.is(Mood::Takes);
    api.end_pod(POD, 0, "");
    handler.hears(&["t-1 Completed"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_otto_handler_that_is_away_is_waited_for() {
    let (api, handler) = (Api::new(), Handler::new(Mood::Away));
    let leader = Leader::start(&api, 1, handler.clone());
    scale_up(&leader).await;
    api.run_pod(POD);
    tokio::time::sleep(Duration::from_secs(30 * 3_600)).await;
    assert_eq!(leader.metrics.given_up.get(), 0);
    handler.is(Mood::Takes);
    handler.hears(&["t-1 Created", "t-1 Running"]).await;
    // Of a task that is gone nothing is kept for longer.
    handler.is(Mood::Away);
    api.remove_pod(POD);
    api.delete_task("t");
    tokio::time::sleep(Duration::from_secs(25 * 3_600)).await;
    assert_eq!(leader.metrics.given_up.get(), 1);
}
