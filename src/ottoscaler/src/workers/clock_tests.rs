//! The whole manager, under clocks that are off and between writes that meet.
#![expect(clippy::unwrap_used)]
use std::sync::{Arc, Mutex, atomic::Ordering};

use tokio::time::{Duration, Instant, sleep};

use super::{
    Scale as _,
    test_api::{Api, Leader, parsed, until},
};
use crate::{
    domain::request::{ScaleDown, ScaleRequest},
    handler::{NotificationSink, Untold},
    proto::{WorkerStatusNotification, worker_status_notification::StatusType},
};

const HOUR: i64 = 3_600;

/// Takes everything, and notes what the task's stored rows said then.
struct Handler {
    api: Arc<Api>,
    told: Mutex<Vec<(StatusType, String)>>,
}

impl Handler {
    fn new(api: &Arc<Api>) -> Arc<Self> {
        let (api, told) = (api.clone(), Mutex::default());
        Arc::new(Self { api, told })
    }

    fn told(&self, state: StatusType) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let of = told.iter().filter(|(s, _)| *s == state);
        of.map(|(_, row)| row.clone()).collect()
    }
}

#[tonic::async_trait]
impl NotificationSink for Handler {
    async fn tell(&self, told: WorkerStatusNotification) -> Result<(), Untold> {
        let rows = rows(&self.api);
        let index = told.worker_id.split('-').nth(3).unwrap_or_default();
        let row = rows.iter().find(|r| r.split(' ').next() == Some(index));
        let row = row.cloned().unwrap_or_default();
        self.told.lock().unwrap().push((told.status(), row));
        Ok(())
    }
}

/// The stored records.
fn rows(api: &Api) -> Vec<String> {
    let task = api.task("t").unwrap_or_default();
    let rows = task["status"]["workers"].as_array().cloned();
    let rows = rows.unwrap_or_default();
    rows.iter()
        .map(|r| r.as_str().unwrap().to_owned())
        .collect()
}

fn request(workers: i32, id: &str) -> ScaleRequest {
    ScaleRequest {
        task_id: "t".into(),
        repository: "r".into(),
        worker_count: workers,
        request_id: id.into(),
        ..ScaleRequest::default()
    }
}

async fn up(leader: &Leader, workers: i32, id: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let answer = leader
        .manager
        .scale_up(parsed(request(workers, id)), deadline);
    answer.await.unwrap();
}

async fn down(leader: &Leader, workers: i32, id: &str) {
    let answer = leader
        .manager
        .scale_down(ScaleDown::parse(request(workers, id)).unwrap());
    answer.await.unwrap();
}

fn name(of: &str) -> String {
    format!("otto-agent-t-{of}")
}

#[tokio::test(start_paused = true)]
async fn growth_after_shrinking_makes_one_new_attempt_and_it_lives_whoever_leads() {
    for killed in [false, true] {
        let api = Api::new();
        let handler = Handler::new(&api);
        let mut leader = Leader::start(&api, 1, handler.clone());
        up(&leader, 2, "a").await;
        ["1", "2"].iter().for_each(|n| api.run_pod(&name(n)));
        down(&leader, 1, "b").await;
        until("it is ending", || api.is_deleting(&name("2"))).await;
        api.remove_pod(&name("2"));
        sleep(Duration::from_secs(1)).await;
        up(&leader, 2, "c").await;
        if killed {
            // Before it is stored that there is another attempt.
            assert!(rows(&api)[1].contains("attempt=1"), "{:?}", rows(&api));
            leader = Leader::start(&api, 2, handler);
        }
        api.run_pod(&name("2-r1"));
        sleep(Duration::from_secs(120)).await;
        assert_eq!(api.created(), ["1", "2", "2-r1"].map(name));
        assert!(!api.is_deleting(&name("2-r1")));
        assert!(
            rows(&api)[1].starts_with("2 Running attempt=2"),
            "{:?}",
            rows(&api)
        );
        drop(leader);
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ends_as_scale_down_deletes_it_keeps_its_logs_until_they_are_taken() {
    let api = Api::new();
    let leader = Leader::start(&api, 1, Handler::new(&api));
    up(&leader, 1, "a").await;
    api.run_pod(&name("1"));
    sleep(Duration::from_secs(30)).await;
    down(&leader, 0, "b").await;
    // The delete is planned once that is stored; the watch is behind.
    let tell = api.end_pod_unseen(&name("1"));
    sleep(Duration::from_secs(20)).await;
    assert_eq!(api.pods(), [name("1")]);
    tell();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(api.pods(), [name("1")], "its log waits");
    let pod = api.index().pod(&name("1")).unwrap();
    leader.manager.shared.drained.drained(&pod, 0);
    until("it goes", || api.pods().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_leader_decides_is_told_when_it_is_stored_and_its_pod_goes_at_once() {
    let api = Api::new();
    let handler = Handler::new(&api);
    let settings = [("PENDING_TIMEOUT", "20s")];
    let leader = Leader::start_with(&api, 1, handler.clone(), api.clocks(0), &settings);
    up(&leader, 1, "a").await;
    sleep(Duration::from_secs(19)).await;
    assert_eq!(
        (api.pods(), handler.told(StatusType::Failed)),
        (vec![name("1")], vec![])
    );
    until("it is told", || {
        !handler.told(StatusType::Failed).is_empty()
    })
    .await;
    let told = handler.told(StatusType::Failed);
    assert!(told[0].starts_with("1 Failed"), "{told:?}");
    // Not after LOG_DRAIN_TIMEOUT.
    until("its pod is gone", || api.pods().is_empty()).await;
    assert_eq!(handler.told(StatusType::Failed).len(), 1);
}

/// A pod that waits and one that has ended whose log nobody takes; then a clock is set, and
/// another leads.
#[tokio::test(start_paused = true)]
async fn no_clock_ends_anything_before_its_time_however_far_it_is_off() {
    let settings = [
        ("PENDING_TIMEOUT", "60s"),
        ("LOG_DRAIN_TIMEOUT", "60s"),
        ("TASK_TTL", "2h"),
    ];
    let seconds = |n| sleep(Duration::from_secs(n));
    for off in [HOUR, -HOUR, 72 * HOUR, -72 * HOUR] {
        for which in ["leader", "API server", "nodes", "API server then"] {
            let api = Api::new();
            let handler = Handler::new(&api);
            match which {
                "nodes" => api.nodes_off.store(off, Ordering::Relaxed),
                // It is set right afterwards.
                "API server then" => api.off.store(off, Ordering::Relaxed),
                _ => {}
            }
            let lead = |n, by: i64| {
                Leader::start_with(&api, n, handler.clone(), api.clocks(by), &settings)
            };
            let leader = lead(1, 0);
            up(&leader, 2, "a").await;
            api.run_pod(&name("2"));
            api.end_pod(&name("2"), 0, "");
            seconds(30).await;
            drop(leader);
            let by = if which == "leader" { off } else { 0 };
            let server = if which == "API server" { off } else { 0 };
            api.off.store(server, Ordering::Relaxed);
            let leader = lead(2, by);
            seconds(58).await;
            let said = || format!("{which} {off}: {:?}", rows(&api));
            assert_eq!(api.pods(), ["1", "2"].map(name), "{}", said());
            assert_eq!(handler.told(StatusType::Failed).len(), 0, "{}", said());
            // Each ends when its time has passed.
            seconds(30).await;
            assert_eq!(api.pods(), [""; 0], "{}", said());
            assert!(rows(&api)[0].starts_with("1 Failed"), "{}", said());
            // The history stays for as long as it is to, and goes when both clocks say so.
            seconds(2 * 3_600 - 60).await;
            assert!(api.task("t").is_some(), "{}", said());
            drop(leader);
            api.off.store(0, Ordering::Relaxed);
            let leader = lead(3, 0);
            // An answer tells it the API server's time.
            down(&leader, 0, "z").await;
            seconds(120).await;
            // What was stored by a clock that was ahead stays longer.
            let late = off > 0 && which != "nodes";
            assert_eq!(api.task("t").is_some(), late, "{}", said());
        }
    }
}
