#![expect(clippy::unwrap_used)]
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Client, ResourceExt, client::Body};
use serde_json::{Value, json};

use super::*;
use crate::cluster::crd::WorkerTask;

#[tokio::test]
async fn a_list_comes_in_pages_of_one_moment() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let recorded = asked.clone();
    let client = Client::new(
        tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap().to_owned();
            let rest = if query.contains("continue=more") {
                ""
            } else {
                "more"
            };
            recorded.lock().unwrap().push(query);
            let page = json!({
                "metadata": {"resourceVersion": "7", "continue": rest},
                "items": [{"metadata": {"name": format!("before {rest}")}}],
            });
            async move { Ok::<_, Infallible>(Response::new(Body::from(page.to_string().into_bytes()))) }
        }),
        "n",
    );
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let found = list(&maps, ListParams::default().labels("a=b"), Some)
        .await
        .unwrap();
    let names: Vec<String> = found.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(
        (names.join(", "), parse_version(&found.version)),
        ("before more, before ".to_owned(), 7)
    );
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|q| q.contains("labelSelector=a")));
    // The size of the objects in the first page decides the size of the second.
    let has = |query: &str, limit: &str| query.split('&').any(|part| part == limit);
    assert!(has(&asked[0], "limit=50") && has(&asked[1], "limit=500"));
}

#[tokio::test]
async fn pages_follow_the_size_of_the_objects() {
    let (asked, text) = (Arc::new(Mutex::new(Vec::new())), "x".repeat(400 * 1024));
    let recorded = asked.clone();
    let client = Client::new(
        tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap().to_owned();
            let limit = query.split("limit=").nth(1).unwrap();
            let limit: usize = limit.split('&').next().unwrap().parse().unwrap();
            let mut asked = recorded.lock().unwrap();
            asked.push(limit);
            let rest = if asked.len() < 3 { "more" } else { "" };
            let item = json!({"metadata": {"name": "m"}, "data": {"a": text}});
            let page = json!({"metadata": {"resourceVersion": "7", "continue": rest}, "items": vec![item; limit]});
            async move { Ok::<_, Infallible>(Response::new(Body::from(page.to_string().into_bytes()))) }
        }),
        "n",
    );
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let found = list(&maps, ListParams::default(), |_| Some(()))
        .await
        .unwrap();
    assert_eq!(*asked.lock().unwrap(), [50, 10, 10]);
    assert_eq!(found.items.len(), 70);
}

/// A call of the handler.
#[derive(Debug, Clone, PartialEq)]
enum Received {
    Replaced(Vec<String>, Vec<Unread>, u64),
    Applied(String),
    Deleted(String),
    Unread(Unread),
    UnreadDeleted(Unread),
    SyncedTo(u64),
}

/// A handler that records its calls.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<(Instant, Received)>>>);

impl Recorder {
    fn record(&self, received: Received) {
        self.0.lock().unwrap().push((Instant::now(), received));
    }
}

impl WatchHandler<WorkerTask> for Recorder {
    type Item = String;

    fn project(object: WorkerTask) -> Option<String> {
        object.metadata.name
    }
    fn replace(&self, all: Vec<String>, unread: Vec<Unread>, version: u64) {
        self.record(Received::Replaced(all, unread, version));
    }
    fn apply(&self, object: WorkerTask) {
        self.record(Received::Applied(object.name_any()));
    }
    fn delete(&self, object: WorkerTask) {
        self.record(Received::Deleted(object.name_any()));
    }
    fn apply_unread(&self, object: Unread) {
        self.record(Received::Unread(object));
    }
    fn delete_unread(&self, object: Unread) {
        self.record(Received::UnreadDeleted(object));
    }
    fn synced_to(&self, version: u64) {
        self.record(Received::SyncedTo(version));
    }
}

fn task(name: &str, version: u64, workers: i64) -> Value {
    json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": version.to_string()},
        "spec": {"taskId": name, "repository": "r", "commitSha": "c", "digest": "d", "workers": workers},
    })
}

fn unread(name: &str, version: u64) -> Unread {
    Unread {
        kind: "WorkerTask".into(),
        name: name.into(),
        uid: name.into(),
        version,
        task: None,
        why: "spec.workers: expected u32".into(),
    }
}

/// Returns an API whose server answers each request by its query, with a status code and the
/// lines of the body.
fn answering(answer: impl FnMut(&str) -> (u16, Vec<Value>) + Send + 'static) -> Api<WorkerTask> {
    let answer = Arc::new(Mutex::new(answer));
    let client = Client::new(
        tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let (code, lines) = answer.lock().unwrap()(&query);
            let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let answer = Response::builder().status(code);
            async move { answer.body(Body::from(lines.into_bytes())) }
        }),
        "n",
    );
    Api::default_namespaced(client)
}

fn page(version: u64, items: &[Value]) -> (u16, Vec<Value>) {
    let metadata = json!({"resourceVersion": version.to_string()});
    (200, vec![json!({"metadata": metadata, "items": items})])
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// Runs a watch for so long, on paused time, and returns the calls of its handler.
async fn run_for(time: Duration, api: Api<WorkerTask>) -> Vec<(Instant, Received)> {
    let recorder = Recorder::default();
    let cancel = CancellationToken::new();
    let _ = timeout(time, run(api, Select::All, recorder.clone(), cancel)).await;
    recorder.0.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_decoded_holds_nobody_up() {
    let api = answering(|query| {
        if !query.contains("watch=true") {
            return page(
                5,
                &[task("good", 3, 1), task("bad", 4, -1), task("other", 5, 2)],
            );
        }
        // The events are sent once. The second watch begins after the last one.
        if !query.contains("resourceVersion=5") {
            assert!(query.contains("resourceVersion=10"), "{query}");
            return (200, vec![]);
        }
        let events = [
            event("ADDED", &task("worse", 6, 5_000_000_000)),
            event("MODIFIED", &task("good", 7, -2)),
            event("MODIFIED", &task("good", 8, 3)),
            event("DELETED", &task("bad", 9, -1)),
            event("NEWS", &task("bad", 9, -1)),
            event("BOOKMARK", &json!({"metadata": {"resourceVersion": "10"}})),
        ];
        (200, events.into())
    });
    let received = run_for(Duration::from_secs(1), api).await;
    let received: Vec<Received> = received.into_iter().map(|h| h.1).collect();
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect();
    assert_eq!(
        received,
        [
            Received::Replaced(names(&["good", "other"]), vec![unread("bad", 4)], 5),
            Received::Unread(unread("worse", 6)),
            Received::SyncedTo(6),
            Received::Unread(unread("good", 7)),
            Received::SyncedTo(7),
            Received::Applied("good".to_owned()),
            Received::SyncedTo(8),
            Received::UnreadDeleted(unread("bad", 9)),
            Received::SyncedTo(9),
            Received::SyncedTo(10),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn opening_a_watch_that_tells_nothing_is_no_sign_of_life() {
    let api = answering(|query| match query.contains("watch=true") {
        true => (200, vec![]),
        false => page(5, &[]),
    });
    let received = run_for(Duration::from_secs(60), api).await;
    assert_eq!(received.len(), 1, "{received:?}");
}

/// Returns the numbers of lists and of watches in ten minutes.
async fn calls(
    mut answer: impl FnMut(&str) -> (u16, Vec<Value>) + Send + 'static,
) -> (usize, usize) {
    let asked = Arc::new(Mutex::new((0, 0)));
    let count = asked.clone();
    let api = answering(move |query| {
        let mut count = count.lock().unwrap();
        match query.contains("watch=true") {
            true => count.1 += 1,
            false => count.0 += 1,
        }
        assert!(count.0 + count.1 < 10_000, "a tight loop");
        answer(query)
    });
    run_for(Duration::from_secs(600), api).await;
    let asked = asked.lock().unwrap();
    *asked
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_never_tells_anything_is_asked_for_ever_less_often() {
    let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    let is_watch = |query: &str| query.contains("watch=true");
    // The 410 comes as the status of the answer or as an event. Each costs a complete list.
    for code in [410, 200] {
        let gone = gone.clone();
        let (lists, watches) = calls(move |query| match (is_watch(query), code) {
            (false, _) => page(5, &[]),
            (true, 200) => (200, vec![event("ERROR", &gone)]),
            (true, code) => (code, vec![gone.clone()]),
        })
        .await;
        assert!(
            (10..60).contains(&lists) && watches == lists,
            "{lists} {watches}"
        );
    }
    // Each watch ends at once.
    let (lists, watches) = calls(move |query| match is_watch(query) {
        true => (200, vec![]),
        false => page(5, &[]),
    })
    .await;
    assert!(
        lists == 1 && (300..700).contains(&watches),
        "{lists} {watches}"
    );
    // The list is refused.
    let (lists, _) = calls(|_| (500, vec![json!({"code": 500, "message": "etcd"})])).await;
    assert!((300..700).contains(&lists), "{lists}");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_the_api_server_refuses_in_other_words_is_listed_anew() {
    let api = answering(|query| {
        if !query.contains("watch=true") {
            return page(5, &[]);
        }
        let text = "Too large resource version: 5, current: 3";
        (
            504,
            vec![json!({"code": 504, "reason": "Timeout", "message": text})],
        )
    });
    let received = run_for(Duration::from_secs(60), api).await;
    assert!((2..30).contains(&received.len()), "{received:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_told_something_is_opened_again_at_once() {
    let mut version = 5;
    let (lists, watches) = calls(move |query| {
        if !query.contains("watch=true") {
            return page(5, &[]);
        }
        version += 1;
        let mark = json!({"metadata": {"resourceVersion": version.to_string()}});
        match version {
            ..2_000 => (200, vec![event("BOOKMARK", &mark)]),
            _ => (200, vec![]),
        }
    })
    .await;
    assert!(lists == 1 && watches > 2_000, "{lists} {watches}");
}
