#![expect(clippy::unwrap_used)]
use std::sync::Arc;

use super::{
    super::test_api::{Api, Leader, parsed, until},
    *,
};
use crate::{
    domain::request::ScaleRequest,
    handler::{NotificationSink, Untold},
    proto::WorkerStatusNotification,
};

const LONG: Duration = Duration::from_secs(30);

/// Takes everything.
struct Deaf;

#[tonic::async_trait]
impl NotificationSink for Deaf {
    async fn tell(&self, _: WorkerStatusNotification) -> Result<(), Untold> {
        Ok(())
    }
}

fn leader(api: &Arc<Api>) -> Leader {
    Leader::start(api, 1, Arc::new(Deaf))
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

async fn up(leader: &Leader, workers: i32, id: &str, within: Duration) -> Outcome {
    let deadline = Instant::now() + within;
    let answer = leader
        .manager
        .scale_up(parsed(request(workers, id)), deadline);
    answer.await.unwrap()
}

async fn down(leader: &Leader, workers: i32, id: &str) -> Outcome {
    let answer = leader
        .manager
        .scale_down(ScaleDown::parse(request(workers, id)).unwrap());
    answer.await.unwrap()
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|n| format!("otto-agent-t-{n}")).collect()
}

/// Three workers run, and two of them are ending.
async fn grown_and_shrunk(api: &Arc<Api>) -> Leader {
    let leader = leader(api);
    let made = up(&leader, 3, "a", LONG).await;
    assert_eq!(made.pod_names, names(&["1", "2", "3"]));
    names(&["1", "2", "3"]).iter().for_each(|n| api.run_pod(n));
    let ended = down(&leader, 1, "b").await;
    assert_eq!(ended.kind, OutcomeKind::Success);
    until("two are ending", || {
        api.is_deleting("otto-agent-t-2") && api.is_deleting("otto-agent-t-3")
    })
    .await;
    leader
}

#[tokio::test(start_paused = true)]
async fn growth_after_shrinking_waits_for_the_new_attempts_and_names_them() {
    let api = Api::new();
    let leader = grown_and_shrunk(&api).await;
    let ends = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        for name in names(&["2", "3"]) {
            api.remove_pod(&name);
        }
    };
    let (grown, ()) = futures::future::join(up(&leader, 3, "c", LONG), ends).await;
    assert_eq!(grown.kind, OutcomeKind::Success, "{grown:?}");
    assert_eq!(grown.pod_names, names(&["1", "2-r1", "3-r1"]));
    assert!(api.pods().contains(&"otto-agent-t-3-r1".to_owned()));
    // The same call once more changes nothing and is answered alike.
    let created = api.created();
    let again = up(&leader, 3, "c", LONG).await;
    assert_eq!((again.kind, again.pod_names), (grown.kind, grown.pod_names));
    assert_eq!(api.created(), created);
}

#[tokio::test(start_paused = true)]
async fn growth_whose_new_attempts_find_no_room_is_partial() {
    let api = Api::new();
    let leader = grown_and_shrunk(&api).await;
    api.set_quota(Some(1));
    for name in names(&["2", "3"]) {
        api.remove_pod(&name);
    }
    let grown = up(&leader, 3, "c", LONG).await;
    assert_eq!(grown.kind, OutcomeKind::Partial, "{grown:?}");
    assert_eq!(grown.pod_names, names(&["1"]));
    assert!(grown.message.contains("quota"), "{}", grown.message);
}

#[tokio::test(start_paused = true)]
async fn attempts_that_wait_for_the_end_of_those_before_are_told_so() {
    let api = Api::new();
    let leader = grown_and_shrunk(&api).await;
    let grown = up(&leader, 3, "c", LONG).await;
    assert_eq!(grown.kind, OutcomeKind::Partial, "{grown:?}");
    assert_eq!(grown.pod_names, names(&["1"]));
    assert_eq!(
        grown.message,
        "2 of 3 workers wait for the end of the pods before them"
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_no_longer_wanted_is_not_waited_for() {
    let api = Api::new();
    let leader = leader(&api);
    leader.pause.send_replace(Some(Arc::from("maintenance")));
    let began = Instant::now();
    let shrinks = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        down(&leader, 0, "b").await
    };
    let (grown, _) = futures::future::join(up(&leader, 2, "a", LONG), shrinks).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{grown:?}");
}

#[tokio::test(start_paused = true)]
async fn a_scale_up_answers_before_its_callers_deadline_what_waits() {
    let api = Api::new();
    let leader = leader(&api);
    leader.pause.send_replace(Some(Arc::from("maintenance")));
    for (workers, within) in [(1, 5_000), (2, 1_000), (3, 200), (4, 20)] {
        let within = Duration::from_millis(within);
        let began = Instant::now();
        let answer = up(&leader, workers, &workers.to_string(), within).await;
        let took = began.elapsed();
        assert_eq!(answer.kind, OutcomeKind::Partial);
        assert!(answer.message.contains("maintenance"), "{answer:?}");
        assert!(took < within && took > within / 2, "{took:?} of {within:?}");
    }
    // However much time the caller gives.
    let began = Instant::now();
    up(&leader, 5, "5", LONG).await;
    let took = began.elapsed();
    assert!((10_000..10_100).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_id_stands_for_one_verb_and_count() {
    let api = Api::new();
    let leader = leader(&api);
    let first = up(&leader, 3, "a", LONG).await;
    let repeat = up(&leader, 3, "a", LONG).await;
    assert_eq!(
        (repeat.kind, &repeat.pod_names),
        (first.kind, &first.pod_names)
    );
    assert_eq!(api.created().len(), 3);

    let more = up(&leader, 5, "a", LONG).await;
    assert_eq!(more.kind, OutcomeKind::Success);
    assert_eq!(more.pod_names.len(), 5);

    let fewer = down(&leader, 2, "a").await;
    assert_eq!(
        (fewer.kind, fewer.pod_names.len()),
        (OutcomeKind::Success, 3)
    );
    let workers = || api.task("t").unwrap()["spec"]["workers"].clone();
    assert_eq!(workers(), 2);
    // Its answer was lost: the same one, and nothing more ends.
    let repeat = down(&leader, 2, "a").await;
    assert_eq!(
        (repeat.kind, repeat.pod_names),
        (fewer.kind, fewer.pod_names)
    );
    assert_eq!(workers(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_being_deleted_is_waited_for_and_made_anew() {
    let api = Api::new();
    let leader = leader(&api);
    up(&leader, 1, "a", LONG).await;
    let pod = "otto-agent-t-1";
    api.run_pod(pod);
    api.delete_task_in_foreground("t");
    api.delete_pod(pod);
    let short = leader.manager.scale_up(
        parsed(request(1, "b")),
        Instant::now() + Duration::from_secs(3),
    );
    let refused = short.await.unwrap_err();
    let is_told = matches!(&refused, Refusal::Unavailable(why) if why.contains("being deleted"));
    assert!(is_told, "{refused:?}");
    assert_eq!(
        down(&leader, 0, "c").await.kind,
        OutcomeKind::AlreadyProcessed
    );

    let goes = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        api.remove_pod(pod);
        api.delete_task("t");
    };
    let (made, ()) = futures::future::join(up(&leader, 1, "d", LONG), goes).await;
    assert_eq!(made.kind, OutcomeKind::Success, "{made:?}");
    assert_eq!(api.created(), [pod, pod]);
}

#[tokio::test(start_paused = true)]
async fn a_task_deleted_while_a_scale_up_waits_is_told_as_such() {
    let api = Api::new();
    let leader = leader(&api);
    leader.pause.send_replace(Some(Arc::from("maintenance")));
    let goes = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        api.delete_task("t");
    };
    let (answer, ()) = futures::future::join(up(&leader, 1, "a", LONG), goes).await;
    assert_eq!(answer.kind, OutcomeKind::Partial);
    assert!(answer.message.contains("deleted"), "{answer:?}");
    assert_eq!(answer.pod_names, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_task_and_its_events_name_the_caller_who_changed_it() {
    let api = Api::new();
    let leader = leader(&api);
    let of = |caller: Option<&str>, workers, id: &str| ScaleRequest {
        caller: caller.map(str::to_owned),
        triggered_by: "a client's word".to_owned(),
        ..request(workers, id)
    };
    let up = async |request| {
        let deadline = Instant::now() + LONG;
        leader
            .manager
            .scale_up(parsed(request), deadline)
            .await
            .unwrap()
    };
    let recorded = || {
        let task = api.task("t").unwrap();
        let caller = task["metadata"]["annotations"]["ottoscaler.io/caller"].clone();
        (caller, task["spec"]["triggeredBy"].clone())
    };
    let told = |text: &str| api.notes().iter().filter(|note| *note == text).count();
    up(of(Some("ci"), 1, "a")).await;
    assert_eq!(recorded(), (json!("ci"), json!("a client's word")));
    // What changes nothing is nobody's change.
    up(of(Some("other"), 1, "b")).await;
    up(of(Some("other"), 1, "a")).await;
    assert_eq!(recorded().0, "ci");
    up(of(Some("ops"), 2, "c")).await;
    assert_eq!(recorded(), (json!("ops"), json!("a client's word")));
    let down = ScaleDown::parse(of(Some("night"), 1, "d")).unwrap();
    leader.manager.scale_down(down).await.unwrap();
    assert_eq!(recorded().0, "night");
    until("each change was told", || {
        told("ci changed how many workers are wanted, by ScaleUp") == 1
            && told("ops changed how many workers are wanted, by ScaleUp") == 1
            && told("night changed how many workers are wanted, by ScaleDown") == 1
    })
    .await;
    assert!(!api.notes().iter().any(|note| note.contains("other")));
}
