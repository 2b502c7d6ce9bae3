#![expect(clippy::unwrap_used)]
use std::sync::{Arc, Mutex};

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::json;
use tokio::task::JoinSet;

use super::*;
use crate::{
    test_contender::{MS, S},
    test_server::{Asked, Fate, Server, held_by},
};

/// A watch of the Lease, and what it has reported.
struct Watching {
    reported: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

fn watching(server: &Arc<Server>) -> Watching {
    let reported: Arc<Mutex<Vec<String>>> = Arc::default();
    let (client, to) = (server.client(), reported.clone());
    let report = move |change: Change<Lease>| {
        let holder = |lease: Lease| lease.spec.unwrap().holder_identity.unwrap();
        to.lock().unwrap().push(match change {
            Change::Present(lease) => format!("present {}", holder(lease)),
            Change::Deleted(lease) => format!("deleted {}", holder(lease)),
            Change::Absent => "absent".to_owned(),
        });
    };
    let mut task = JoinSet::new();
    task.spawn(async move { watch(client, "n", "l", report).await });
    Watching {
        reported,
        _task: task,
    }
}

impl Watching {
    fn reported(&self) -> Vec<String> {
        self.reported.lock().unwrap().clone()
    }
}

fn held() -> Arc<Server> {
    let server = Arc::new(Server::default());
    server.put(held_by("a"), json!({}));
    server
}

fn lists(server: &Server) -> Vec<Asked> {
    server.seen_where(|a| a.query.contains("fieldSelector") && !a.is_watch())
}

#[tokio::test(start_paused = true)]
async fn each_change_is_reported_and_of_a_deletion_the_last_state() {
    let server = held();
    let one = watching(&server);
    sleep(S(1)).await;
    server.put(held_by("b"), json!({}));
    server.delete();
    server.put(held_by("c"), json!({}));
    sleep(S(1)).await;
    let all = ["present a", "present b", "deleted b", "present c"];
    assert_eq!(one.reported(), all);
    let nothing = Arc::new(Server::default());
    let one = watching(&nothing);
    sleep(S(1)).await;
    assert_eq!(one.reported(), ["absent"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_in_its_time_is_opened_again_and_nothing_is_listed() {
    let server = held();
    let one = watching(&server);
    sleep(S(61)).await;
    let watches = server.seen_where(Asked::is_watch);
    let gaps: Vec<Duration> = watches.windows(2).map(|w| w[1].at - w[0].at).collect();
    assert_eq!(watches.len(), 5, "{gaps:?}");
    assert!(gaps.iter().all(|g| *g < S(15) + MS(10)), "{gaps:?}");
    server.put(held_by("b"), json!({}));
    sleep(S(1)).await;
    assert_eq!(one.reported(), ["present a", "present b"]);
    assert_eq!(lists(&server).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_longer_available_is_listed_anew_with_backoff() {
    let server = held();
    server.on(|a| {
        if a.is_watch() {
            Fate::Refused(410)
        } else {
            Fate::Answered
        }
    });
    let one = watching(&server);
    sleep(S(1)).await;
    server.put(held_by("b"), json!({}));
    sleep(S(60)).await;
    assert_eq!(one.reported().last().unwrap(), "present b");
    let lists = lists(&server);
    let gaps: Vec<Duration> = lists.windows(2).map(|l| l[1].at - l[0].at).collect();
    assert!(gaps[0] >= MS(100), "{gaps:?}");
    assert!(gaps.is_sorted_by(|a, b| *b + MS(25) >= *a), "{gaps:?}");
    let longest = gaps.iter().max().unwrap();
    assert!(*longest >= S(1) && *longest < S(1) + MS(30), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_refused_is_repeated_with_backoff() {
    let server = held();
    server.on(|_| Fate::Refused(503));
    let _one = watching(&server);
    sleep(S(20)).await;
    let lists = lists(&server);
    let gaps: Vec<Duration> = lists.windows(2).map(|l| l[1].at - l[0].at).collect();
    assert!(gaps[0] >= MS(100) && gaps[0] < MS(200), "{gaps:?}");
    let last = gaps.last().unwrap();
    assert!(*last >= S(1) && *last < S(1) + MS(30), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn after_five_refusals_it_is_listed_anew() {
    for (code, listed) in [(500, true), (503, false), (403, false)] {
        let server = held();
        server.on(move |a| {
            if a.is_watch() {
                Fate::Refused(code)
            } else {
                Fate::Answered
            }
        });
        let _one = watching(&server);
        sleep(S(30)).await;
        let watches = server.seen_where(Asked::is_watch).len();
        let wanted = if listed { watches.div_ceil(5) } else { 1 };
        let lists = lists(&server).len();
        assert!(
            lists.abs_diff(wanted) <= 1 && (lists > 1) == listed,
            "{code}: {lists} {watches}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_is_repeated() {
    let server = held();
    server.on(|_| Fate::Lost);
    let _one = watching(&server);
    sleep(S(35)).await;
    let lists = lists(&server);
    let gaps: Vec<Duration> = lists.windows(2).map(|l| l[1].at - l[0].at).collect();
    assert!(
        gaps.len() >= 2 && gaps.iter().all(|g| *g >= S(10) && *g < S(12)),
        "{gaps:?}"
    );
    let server = held();
    server.on(|a| {
        if a.is_watch() {
            Fate::Lost
        } else {
            Fate::Answered
        }
    });
    let _one = watching(&server);
    sleep(S(20)).await;
    let watches = server.seen_where(Asked::is_watch);
    let gaps: Vec<Duration> = watches.windows(2).map(|w| w[1].at - w[0].at).collect();
    assert!(
        gaps.len() >= 2 && gaps.iter().all(|g| *g >= S(5) && *g < S(7)),
        "{gaps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_decoded_is_not_reported_as_absent() {
    let server = Arc::new(Server::default());
    server.put(json!({"holderIdentity": 7}), json!({}));
    let one = watching(&server);
    sleep(S(1)).await;
    assert_eq!(one.reported(), [""; 0]);
    server.put(held_by("a"), json!({}));
    server.put(json!({"holderIdentity": 7}), json!({}));
    sleep(S(1)).await;
    assert_eq!(one.reported(), ["present a"]);
    // Once it is deleted it is absent.
    server.delete();
    sleep(S(1)).await;
    assert_eq!(one.reported(), ["present a", "absent"]);
}
