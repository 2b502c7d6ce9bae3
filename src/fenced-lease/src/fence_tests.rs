#![expect(clippy::unwrap_used)]
use std::sync::Mutex;

use kube::api::{Patch, PostParams};
use tokio::time::{Instant, sleep};

use super::*;
use crate::test_server::{Asked, Fate, POLICY, Server, TERM, paused_clock};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;
const TERM_TEXT: &str = "u/1/h";

#[tokio::test]
async fn every_write_carries_the_term_where_the_policy_looks() {
    let stamped = |mut object: Value, path: &str| {
        fence().stamp(&mut object, path).unwrap();
        object
    };
    let pod = json!({"metadata": {"name": "p", "annotations": {"a": "b"}}});
    let pod = stamped(pod, "/api/v1/namespaces/n/pods");
    assert_eq!(
        pod["metadata"]["annotations"],
        json!({"a": "b", TERM: TERM_TEXT})
    );
    for metadata in [json!(null), json!({}), json!({"annotations": null})] {
        let pod = stamped(json!({"metadata": metadata}), "/api/v1/namespaces/n/pods");
        assert_eq!(pod["metadata"]["annotations"], json!({TERM: TERM_TEXT}));
    }
    let path = "/apis/x/namespaces/n/workertasks/w/status";
    let status = stamped(json!({"status": {"phase": "Running"}}), path);
    assert_eq!(
        status["status"],
        json!({"phase": "Running", "term": TERM_TEXT})
    );
    // Of objects without such a field it is left alone.
    let mut fence = fence();
    fence.options.policy.status_field = None;
    let mut status = json!({"status": {}});
    fence.stamp(&mut status, path).unwrap();
    assert_eq!(status, json!({"status": {}}));
}

#[tokio::test]
async fn what_cannot_carry_the_term_is_not_sent() {
    let one = valid_for(S(60));
    let patch = Patch::<Pod>::Json(
        serde_json::from_value(json!([{"op": "remove", "path": "/metadata/labels"}])).unwrap(),
    );
    let (pods, params) = (one.client.pods(), Default::default());
    let refused = pods.patch("p", &params, &patch).await.unwrap_err();
    let innermost = std::iter::successors(Some(&refused as &dyn std::error::Error), |e| e.source())
        .last()
        .unwrap();
    assert_eq!(innermost.to_string(), CannotCarryTerm.to_string());
    for object in [
        json!({"metadata": "x"}),
        json!({"metadata": {"annotations": 1}}),
    ] {
        assert!(
            fence().stamp(&mut object.clone(), "/p").is_err(),
            "{object}"
        );
    }
    assert!(fence().stamp(&mut json!([]), "/p/status").is_err());
    assert!(one.sent().is_empty());
}

#[test]
fn the_api_server_is_told_how_long_we_wait() {
    let with = |uri: &str| {
        with_timeout(&uri.parse().unwrap(), MS(1500))
            .unwrap()
            .to_string()
    };
    assert_eq!(with("/api/v1/pods"), "/api/v1/pods?timeout=1500ms");
    assert_eq!(with("/api/v1/pods?"), "/api/v1/pods?timeout=1500ms");
    assert_eq!(with("/api/v1/pods?a=b"), "/api/v1/pods?a=b&timeout=1500ms");
}

/// A leader's client, its validity not begun.
struct One {
    server: Arc<Server>,
    client: LeaderClient,
    validity: Arc<Validity>,
    refused: Arc<Mutex<Vec<Barrier>>>,
}

fn options(observer: Observer) -> FenceOptions {
    FenceOptions {
        annotation: TERM.to_owned(),
        policy: FencePolicy::named(POLICY).with_status_field("term"),
        observer,
    }
}

fn fence() -> Fence {
    let clock = paused_clock();
    Fence {
        inner: Arc::new(Server::default()).client(),
        options: options(Observer::default()),
        term: TERM_TEXT.to_owned(),
        since: clock.boot(),
        validity: Arc::new(Validity::new(S(4), clock)),
    }
}

fn one() -> One {
    let server = Arc::new(Server::default());
    let validity = Arc::new(Validity::new(S(4), paused_clock()));
    let refused: Arc<Mutex<Vec<Barrier>>> = Arc::default();
    let told = refused.clone();
    let observer = Observer::new(move |event| {
        if let Event::WriteRefused(by) = event {
            told.lock().unwrap().push(by);
        }
    });
    let client = LeaderClient::new(
        server.client(),
        "n",
        TERM_TEXT.parse().unwrap(),
        validity.clone(),
        options(observer),
    );
    One {
        server,
        client,
        validity,
        refused,
    }
}

fn valid_for(left: Duration) -> One {
    let one = one();
    one.validity.set(one.validity.now() + left);
    one
}

impl One {
    async fn create(&self) -> kube::Result<Pod> {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": null})).unwrap();
        let pods = self.client.pods();
        pods.create(&PostParams::default(), &pod).await
    }

    async fn patch(&self) -> kube::Result<Pod> {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
        let pods = self.client.pods();
        pods.patch("p", &Default::default(), &patch).await
    }

    async fn delete(&self) -> bool {
        let pods = self.client.pods();
        pods.delete("p", &Default::default()).await.is_ok()
    }

    fn sent(&self) -> Vec<Asked> {
        self.server.seen()
    }

    fn refused(&self) -> [usize; 3] {
        let all = self.refused.lock().unwrap();
        [Barrier::Clock, Barrier::Policy, Barrier::Version]
            .map(|by| all.iter().filter(|b| **b == by).count())
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_late_once_half_its_time_is_over() {
    let one = valid_for(S(4));
    assert!(!one.client.is_late());
    sleep(S(2)).await;
    assert!(!one.client.is_late());
    sleep(MS(1)).await;
    assert!(one.client.is_late() && one.client.is_valid());
    one.validity.set(one.validity.now() + S(4));
    assert!(!one.client.is_late());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_once_validity_is_over() {
    let one = one();
    let all_fail =
        async || !one.delete().await && one.create().await.is_err() && one.patch().await.is_err();
    assert!(all_fail().await && !one.client.is_valid());
    assert!(one.sent().is_empty());
    one.validity.set(one.validity.now() + S(5));
    assert!(one.client.is_valid());
    assert!(one.create().await.is_ok());
    sleep(MS(4999)).await;
    assert!(one.create().await.is_ok() && one.delete().await);
    let sent = one.sent().len();
    // By time alone, and when it is ended.
    sleep(MS(1)).await;
    assert!(all_fail().await && !one.client.is_valid());
    one.validity.set(one.validity.now() + S(5));
    one.validity.end();
    assert!(all_fail().await && !one.client.is_valid());
    assert_eq!(one.sent().len(), sent);
    assert_eq!(one.refused(), [9, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_goes_out_bears_the_term_and_is_bounded_by_what_is_left() {
    let one = valid_for(MS(1500));
    one.create().await.unwrap();
    one.patch().await.unwrap();
    assert!(one.delete().await);
    let sent = one.sent();
    assert_eq!(sent.len(), 3);
    for asked in &sent {
        assert!(asked.query.ends_with("timeout=1500ms"), "{asked:?}");
        assert_eq!(asked.length, None, "of the body before the stamp");
    }
    for asked in &sent[..2] {
        assert_eq!(asked.body["metadata"]["annotations"][TERM], TERM_TEXT);
    }
    assert_eq!(one.client.term().to_string(), TERM_TEXT);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_ends_with_validity_or_after_ten_seconds() {
    for (left, ends) in [(S(3), S(3)), (S(60), S(10))] {
        let one = valid_for(left);
        one.server.on(|_| Fate::Lost);
        let began = Instant::now();
        let ended = timeout(S(100), one.create()).await;
        assert!(ended.unwrap().is_err());
        assert!(began.elapsed() >= ends && began.elapsed() < ends + MS(5));
    }
}

/// A stale read does no harm, and a follow lasts long.
#[tokio::test(start_paused = true)]
async fn reads_pass_whatever_the_time() {
    let one = one();
    one.server.put_pod("p", json!({"metadata": {}}));
    assert!(one.client.pods().get("p").await.is_ok());
    assert_eq!(one.sent()[0].query, "");
    assert_eq!(one.refused(), [0, 0, 0]);
}

/// The API server may not have seen the new Lease yet.
#[tokio::test(start_paused = true)]
async fn a_new_leaders_write_that_the_policy_refused_is_tried_again() {
    let one = valid_for(S(60));
    let server = one.server.clone();
    one.server.on(move |_| {
        if server.now() < MS(1900) {
            Fate::Fenced
        } else {
            Fate::Answered
        }
    });
    assert!(one.create().await.is_ok());
    let sent = one.sent();
    let gaps = sent.windows(2).map(|s| s[1].at - s[0].at);
    assert!(gaps.clone().min() >= Some(RETRY_DELAY) && gaps.max() < Some(MS(20)));
    assert_eq!(one.refused(), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leaders_write_is_refused_by_the_policy_and_counted() {
    let one = valid_for(S(60));
    one.server.on(|_| Fate::Fenced);
    // Two seconds into the term it is no longer new.
    let refused = one.create().await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 403));
    assert!(one.server.now() >= LEASE_UNSEEN && one.server.now() < LEASE_UNSEEN + MS(20));
    assert_eq!(one.refused(), [0, 1, 0]);
    let sent = one.sent().len();
    assert!(one.create().await.is_err());
    assert_eq!(one.sent().len(), sent + 1);
    assert_eq!(one.refused(), [0, 2, 0]);
}

/// Two seconds are the API server's time to see it, and not more.
#[tokio::test(start_paused = true)]
async fn two_seconds_into_the_term_a_refusal_counts_at_once() {
    let one = valid_for(S(60));
    one.server.on(|_| Fate::Fenced);
    tokio::time::advance(LEASE_UNSEEN).await;
    assert_eq!(one.server.now(), LEASE_UNSEEN);
    assert!(one.create().await.is_err());
    assert_eq!(one.sent().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_term_that_is_renewed_and_refused_is_told_what_helps() {
    let one = valid_for(S(60));
    one.server.on(|_| Fate::Fenced);
    for (until, told) in [(S(14), false), (S(16), true)] {
        tokio::time::sleep(until.saturating_sub(one.server.now())).await;
        let refused = one.create().await.unwrap_err().to_string();
        assert_eq!(refused.contains(STALE_POLICY), told, "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_refusals_are_the_callers_and_only_a_changed_object_is_counted() {
    let one = valid_for(S(60));
    one.server.on(|_| Fate::Refused(403));
    assert!(one.create().await.is_err());
    // Its message is the API server's, whole.
    let refused = one.patch().await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.message == "Refused"));
    assert_eq!(one.sent().len(), 2);
    one.server.on(|_| Fate::Refused(500));
    assert!(one.patch().await.is_err());
    assert_eq!(one.refused(), [0, 0, 0]);
    one.server.on(|_| Fate::Refused(409));
    // Of a create: it exists.
    assert!(one.create().await.is_err());
    assert_eq!(one.refused(), [0, 0, 0]);
    assert!(one.patch().await.is_err());
    assert_eq!(one.refused(), [0, 0, 1]);
}

/// As the API server 1.37 words them, the second under load (code 422).
#[tokio::test(start_paused = true)]
async fn a_policy_that_cannot_be_judged_is_no_refusal_for_good() {
    let denied = "pods \"p\" is forbidden: ValidatingAdmissionPolicy 'n.o-fence' with binding 'n.o-fence-pods' denied request: ";
    let over = format!("{denied}ottoscaler fence: the term a is over, the Lease says b");
    let unjudged = format!("{denied}failed to configure binding: context deadline exceeded");
    // Another policy whose name ends likewise.
    let other = denied.replace("'n.o-fence'", "'another-fence'");
    let pods = "pods \"otto-agent-fence-1\" is forbidden: violates PodSecurity".to_owned();
    for (code, message, fenced) in [
        (403, over, true),
        (422, unjudged, true),
        (403, other, false),
        (403, pods, false),
    ] {
        let one = valid_for(S(60));
        tokio::time::advance(LEASE_UNSEEN).await;
        let said = message.clone();
        one.server
            .on(move |_| Fate::Said(code, said.clone().leak()));
        let refused = one.create().await.unwrap_err();
        let kube::Error::Api(status) = refused else {
            unreachable!("{refused:?}");
        };
        assert_eq!((status.code, &*status.message), (code, &*message));
        assert_eq!(crate::is_fenced(&status), fenced, "{message}");
    }
}

#[tokio::test]
async fn an_object_is_named_in_full() {
    let pod = one().client.reference::<Pod>("p", "u");
    let wanted = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some("p".into()),
        namespace: Some("n".into()),
        uid: Some("u".into()),
        ..ObjectReference::default()
    };
    assert_eq!(pod, wanted);
}
