#![expect(clippy::unwrap_used)]
use std::{collections::BTreeMap, sync::Mutex};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::Value;

use super::*;

fn lease(annotation: Option<&str>) -> Lease {
    let mut lease = Lease::default();
    let pair = annotation.map(|why| (PAUSED.to_owned(), why.to_owned()));
    lease.metadata.annotations = Some(pair.into_iter().collect::<BTreeMap<_, _>>());
    lease
}

#[test]
fn any_value_of_the_annotation_pauses() {
    let upgrade = lease(Some("node upgrade"));
    assert_eq!(of(Some(&upgrade)).as_deref(), Some("node upgrade"));
    let empty = lease(Some(""));
    assert_eq!(of(Some(&empty)).as_deref(), Some("no reason given"));
    assert_eq!(of(Some(&lease(None))), None);
    assert_eq!(of(Some(&Lease::default())), None);
    assert_eq!(of(None), None);
}

#[test]
fn the_setting_pauses_whatever_the_lease_says() {
    let (set, pause) = Pause::channel(true);
    set.send_replace(None);
    assert_eq!(pause.why().as_deref(), Some("by the setting PAUSED"));
    assert_eq!(pause.configured(), Some("by the setting PAUSED"));
    let (set, pause) = Pause::channel(false);
    assert_eq!((pause.why(), pause.configured()), (None, None));
    set.send_replace(Some("x".into()));
    assert_eq!(pause.why().as_deref(), Some("x"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_a_change_and_by_nothing_else() {
    let (set, mut pause) = Pause::channel(false);
    let second = Duration::from_secs(1);
    assert!(timeout(second, pause.changed()).await.is_err());
    set.send_replace(Some("x".into()));
    assert!(timeout(second, pause.changed()).await.is_ok());
    drop(set);
    assert!(timeout(second, pause.changed()).await.is_err());
}

type Sent = Arc<Mutex<Vec<(Method, String, Value)>>>;

/// A Lease at an API server that answers with this code, and what it was sent.
fn switch(code: u16) -> (PauseSwitch, Sent) {
    let sent = Sent::default();
    let seen = sent.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect().await?.to_bytes())?;
            let path = head.uri.path().to_owned();
            seen.lock().unwrap().push((head.method, path, body));
            let answer = match code {
                0 => std::future::pending().await,
                200 => serde_json::to_vec(&lease(None))?,
                _ => serde_json::to_vec(
                    &json!({"kind": "Status", "code": code, "message": "m", "reason": "r", "status": "Failure"}),
                )?,
            };
            let answer = Response::builder().status(code).body(Body::from(answer));
            Ok::<_, tower::BoxError>(answer?)
        }
    });
    let client = kube::Client::new(service, "n");
    (PauseSwitch::new(client, "n", "l"), sent)
}

#[tokio::test(start_paused = true)]
async fn a_switch_changes_one_annotation_and_says_what_went_wrong() {
    let (on, sent) = switch(200);
    on.set(Some("why")).await.unwrap();
    on.set(None).await.unwrap();
    let path = "/apis/coordination.k8s.io/v1/namespaces/n/leases/l".to_owned();
    let patch =
        |value: Value| json!({"metadata": {"annotations": {"ottoscaler.io/paused": value}}});
    let sent = sent.lock().unwrap().clone();
    let wanted = [patch(json!("why")), patch(Value::Null)];
    assert_eq!(sent, wanted.map(|p| (Method::PATCH, path.clone(), p)));
    assert!(matches!(
        switch(404).0.set(None).await,
        Err(NotSet::NoLease)
    ));
    assert!(matches!(switch(500).0.set(None).await, Err(NotSet::Api(_))));
    assert!(matches!(switch(0).0.set(None).await, Err(NotSet::Timeout)));
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_told_when_the_lease_begins_or_ends_it_and_only_then() {
    let source = PauseSource::default();
    let mut pause = source.pause(false);
    let second = Duration::from_secs(1);
    for (why, is_news) in [
        (None, false),
        (Some("x"), true),
        (Some("x"), false),
        (None, true),
        (None, false),
    ] {
        source.observe(Event::LeaseObserved(Some(&lease(why))));
        let told = timeout(second, pause.changed()).await.is_ok();
        assert_eq!((told, pause.why().as_deref()), (is_news, why));
    }
}
