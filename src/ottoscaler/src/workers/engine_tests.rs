#![expect(clippy::unwrap_used)]
use std::time::Duration;

use tokio::time::sleep;

use super::{
    super::{
        Scale as _, notify,
        test_api::{Api, Leader, parsed, until},
        test_shared::{client, shared, status, task},
    },
    *,
};
use crate::{
    domain::{
        request::{ScaleDown, ScaleRequest},
        task::Task,
    },
    election::Pause,
    handler::{NotificationSink, Untold},
    proto::WorkerStatusNotification,
};

const S: fn(u64) -> Duration = Duration::from_secs;

/// Takes everything.
struct Deaf;

#[tonic::async_trait]
impl NotificationSink for Deaf {
    async fn tell(&self, _: WorkerStatusNotification) -> Result<(), Untold> {
        Ok(())
    }
}

fn request(task: &str, workers: i32) -> ScaleRequest {
    ScaleRequest {
        task_id: task.into(),
        repository: "r".into(),
        worker_count: workers,
        request_id: workers.to_string(),
        ..ScaleRequest::default()
    }
}

async fn up(leader: &Leader, task: &str, workers: i32) {
    let answer = leader
        .manager
        .scale_up(parsed(request(task, workers)), Instant::now() + S(20));
    answer.await.unwrap();
}

/// Says that otto-handler has all lines of a pod.
fn drained(api: &Api, leader: &Leader, pod: &str) {
    let pod = api.index().pod(pod).unwrap();
    leader.manager.shared.drained.drained(&pod, 0);
}

#[tokio::test]
async fn changes_that_were_missed_make_everything_due() {
    let (_set, pause) = Pause::channel(false);
    let shared = shared(client(|_, _, _| status(404, "", "")), pause, &[]);
    let (outbox, _inbox) = notify::channel();
    let mut engine = Engine::new(shared.clone(), outbox);
    let mut changes = shared.index.subscribe();
    shared.index.wrote_task(Task {
        resource_version: 1,
        ..task("missed", "r", &[])
    });
    for _ in 0..9_999 {
        shared
            .index
            .announce(Arc::from("other"), index::ChangeKind::PodWaits);
    }
    engine.take_all(&mut changes);
    assert_eq!(engine.due.pop(Instant::now()).as_deref(), Some("missed"));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_others_wait_for_is_free_at_once() {
    let api = Api::new();
    let settings = [("MAX_WORKERS", "1")];
    let leader = Leader::start_with(&api, 1, Arc::new(Deaf), api.clocks(0), &settings);
    up(&leader, "t", 1).await;
    api.run_pod("otto-agent-t-1");
    sleep(S(30)).await;
    let ends = async {
        sleep(S(2)).await;
        api.end_pod("otto-agent-t-1", 0, "");
        drained(&api, &leader, "otto-agent-t-1");
        let ended = Instant::now();
        until("the next has its pod", || {
            api.pods() == ["otto-agent-u-1".to_owned()]
        })
        .await;
        ended.elapsed()
    };
    let ((), took) = futures::future::join(up(&leader, "u", 1), ends).await;
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_had_ended_when_it_was_to_be_deleted_goes_once_its_log_is_taken() {
    let api = Api::new();
    let leader = Leader::start(&api, 1, Arc::new(Deaf));
    up(&leader, "t", 1).await;
    api.run_pod("otto-agent-t-1");
    sleep(S(30)).await;
    let down = ScaleDown::parse(request("t", 0)).unwrap();
    let down = leader.manager.scale_down(down);
    down.await.unwrap();
    // The delete that follows finds out; the watch tells later.
    let tell = api.end_pod_unseen("otto-agent-t-1");
    sleep(S(3)).await;
    tell();
    drained(&api, &leader, "otto-agent-t-1");
    until("it goes", || api.pods().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_stored_at_a_drain() {
    let api = Api::new();
    let leader = Leader::start(&api, 1, Arc::new(Deaf));
    up(&leader, "t", 2).await;
    api.run_pod("otto-agent-t-1");
    sleep(S(30)).await;
    api.run_pod("otto-agent-t-2");
    sleep(S(5)).await;
    let running = || api.task("t").unwrap()["status"]["counts"]["running"].clone();
    assert_eq!(running(), 1, "it may wait for a minute");
    leader.manager.shared.drain.cancel();
    sleep(S(1)).await;
    assert_eq!(running(), 2);
}

#[tokio::test]
async fn changes_that_nobody_waits_for_share_a_later_plan() {
    use index::ChangeKind::{EndedPodDeleted, Other, PodWaits, ProgressAcknowledged};
    let (_set, pause) = Pause::channel(false);
    let shared = shared(client(|_, _, _| status(404, "", "")), pause, &[]);
    let (outbox, _inbox) = notify::channel();
    let mut engine = Engine::new(shared, outbox);
    for kind in [PodWaits, EndedPodDeleted, ProgressAcknowledged, Other] {
        let task: Arc<str> = format!("{kind:?}").into();
        engine.changed(Ok(index::TaskChanged { task, kind }));
    }
    assert_eq!(engine.due.pop(Instant::now()).as_deref(), Some("Other"));
    assert_eq!(engine.due.pop(Instant::now()), None);
}
