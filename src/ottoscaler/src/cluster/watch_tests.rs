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
    let heard = asked.clone();
    let client = Client::new(
        tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap().to_owned();
            let rest = if query.contains("continue=more") {
                ""
            } else {
                "more"
            };
            heard.lock().unwrap().push(query);
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
    let names: Vec<String> = found.all.iter().map(ResourceExt::name_any).collect();
    assert_eq!(
        (names.join(", "), number(&found.version)),
        ("before more, before ".to_owned(), 7)
    );
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|q| q.contains("labelSelector=a")));
    // How large the objects are shows how many may come at once.
    let has = |query: &str, limit: &str| query.split('&').any(|part| part == limit);
    assert!(has(&asked[0], "limit=50") && has(&asked[1], "limit=500"));
}

#[tokio::test]
async fn pages_follow_the_size_of_the_objects() {
    let (asked, text) = (Arc::new(Mutex::new(Vec::new())), "x".repeat(400 * 1024));
    let heard = asked.clone();
    let client = Client::new(
        tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap().to_owned();
            let limit = query.split("limit=").nth(1).unwrap();
            let limit: usize = limit.split('&').next().unwrap().parse().unwrap();
            let mut asked = heard.lock().unwrap();
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
    assert_eq!(found.all.len(), 70);
}

/// What a sink was told.
#[derive(Debug, Clone, PartialEq)]
enum Heard {
    Reset(Vec<String>, Vec<Unread>, u64),
    Applied(String),
    Deleted(String),
    Unread(Unread),
    UnreadDeleted(Unread),
    Version(u64),
}

#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<(Instant, Heard)>>>);

impl Ear {
    fn hear(&self, heard: Heard) {
        self.0.lock().unwrap().push((Instant::now(), heard));
    }
}

impl Sink<WorkerTask> for Ear {
    type Kept = String;

    fn keep(object: WorkerTask) -> Option<String> {
        object.metadata.name
    }
    fn listed(&self, all: Vec<String>, unread: Vec<Unread>, version: u64) {
        self.hear(Heard::Reset(all, unread, version));
    }
    fn applied(&self, object: WorkerTask) {
        self.hear(Heard::Applied(object.name_any()));
    }
    fn deleted(&self, object: WorkerTask) {
        self.hear(Heard::Deleted(object.name_any()));
    }
    fn unread(&self, object: Unread) {
        self.hear(Heard::Unread(object));
    }
    fn unread_deleted(&self, object: Unread) {
        self.hear(Heard::UnreadDeleted(object));
    }
    fn heard(&self, version: u64) {
        self.hear(Heard::Version(version));
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

/// Answers each request by its query: with a status code and the lines of its body.
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

/// Runs for so long, on paused time.
async fn run_for(time: Duration, api: Api<WorkerTask>) -> Vec<(Instant, Heard)> {
    let ear = Ear::default();
    let cancel = CancellationToken::new();
    let _ = timeout(time, run(api, Select::All, ear.clone(), cancel)).await;
    ear.0.lock().unwrap().clone()
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
        // Once only: the connection breaks off before the last event.
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
    let heard = run_for(Duration::from_secs(1), api).await;
    let heard: Vec<Heard> = heard.into_iter().map(|h| h.1).collect();
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect();
    assert_eq!(
        heard,
        [
            Heard::Reset(names(&["good", "other"]), vec![unread("bad", 4)], 5),
            Heard::Unread(unread("worse", 6)),
            Heard::Version(6),
            Heard::Unread(unread("good", 7)),
            Heard::Version(7),
            Heard::Applied("good".to_owned()),
            Heard::Version(8),
            Heard::UnreadDeleted(unread("bad", 9)),
            Heard::Version(9),
            Heard::Version(10),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn opening_a_watch_that_tells_nothing_is_no_sign_of_life() {
    let api = answering(|query| match query.contains("watch=true") {
        true => (200, vec![]),
        false => page(5, &[]),
    });
    let heard = run_for(Duration::from_secs(60), api).await;
    assert_eq!(heard.len(), 1, "{heard:?}");
}

/// The calls of a minute, of whatever kind.
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
    // 410, by its status or as an event; each costs a list of everything.
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
    // It ends at once.
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
    let heard = run_for(Duration::from_secs(60), api).await;
    assert!((2..30).contains(&heard.len()), "{heard:?}");
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
