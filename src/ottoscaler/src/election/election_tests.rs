#![expect(clippy::unwrap_used)]
use std::sync::Mutex;

use fenced_lease::{AcquireReason, EndReason, Event};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::cluster::TERM;

/// An API server that takes everything, and what it was sent.
fn api_server() -> (kube::Client, Arc<Mutex<Vec<Value>>>) {
    let sent: Arc<Mutex<Vec<Value>>> = Arc::default();
    let seen = sent.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let seen = seen.clone();
        async move {
            let body = request.into_body().collect().await?.to_bytes();
            let body: Value = serde_json::from_slice(&body)?;
            seen.lock().unwrap().push(body.clone());
            Ok::<_, tower::BoxError>(Response::new(Body::from(serde_json::to_vec(&body)?)))
        }
    });
    (kube::Client::new(service, "n"), sent)
}

fn term() -> Term {
    "lease-uid/4/me_10.0.0.1:9090_00000001".parse().unwrap()
}

#[tokio::test]
async fn each_change_of_leader_is_an_event_on_the_lease() {
    let (client, sent) = api_server();
    let (events, mut publisher) = LeaderEvents::channel(client, "n", "l", "me");
    let term = &term();
    let reason = Some(AcquireReason::Released);
    events.observe(Event::Acquired { term, reason });
    for reason in [EndReason::HandedOver, EndReason::NotRenewed] {
        events.observe(Event::Ended { term, reason });
    }
    events.observe(Event::LeaseObserved(None));
    drop(events);
    publisher.run().await;
    let events = sent.lock().unwrap().clone();
    let told: Vec<_> = events
        .iter()
        .map(|e| ["reason", "type", "note"].map(|key| e[key].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            [
                "LeaderElected",
                "Normal",
                "me leads term 4 (the Lease was released)"
            ],
            [
                "LeaderStopped",
                "Normal",
                "me no longer leads term 4: handed over"
            ],
            [
                "LeaderStopped",
                "Warning",
                "me no longer leads term 4: it could not be renewed in time"
            ],
        ]
    );
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "name": "l",
        "namespace": "n", "uid": "lease-uid"});
    assert!(events.iter().all(|e| e["regarding"] == lease), "{events:?}");
}

#[tokio::test]
async fn a_leader_writes_under_ottoscalers_names() {
    let (client, sent) = api_server();
    let client = test_client(client, "n", term());
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": []}});
    let pod = serde_json::from_value(pod).unwrap();
    client
        .pods()
        .create(&Default::default(), &pod)
        .await
        .unwrap();
    let text = term().to_string();
    let sent = sent.lock().unwrap();
    assert_eq!(sent[0]["metadata"]["annotations"], json!({ TERM: text }));
}

/// The publisher ends although a leader's client is still there.
#[tokio::test(start_paused = true)]
async fn the_election_ends_at_shutdown() {
    let (client, _) = api_server();
    let lease = LeaseOptions {
        name: "l".to_owned(),
        timings: fenced_lease::Timings::default(),
        fence_policy: None,
    };
    let replica = ReplicaOptions {
        pod_name: "me".to_owned(),
        pod_uid: None,
        address: "h:1".to_owned(),
    };
    let clients = Clients {
        lease: client.clone(),
        work: client,
        runtime: None,
    };
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let election = Election::new(
        &lease,
        &replica,
        "n",
        clients,
        Metrics::default(),
        Clock::default(),
    );
    let run = election.unwrap().run(async |_: LeaderContext| {}, shutdown);
    tokio::time::timeout(Duration::from_secs(60), run)
        .await
        .unwrap();
}

/// As the chart names it, and no other whose name ends likewise.
#[test]
fn the_fence_policy_is_known_by_its_exact_name() {
    let refusal = |name: &str| {
        format!("ValidatingAdmissionPolicy '{name}' with binding '{name}-pods' denied request: x")
    };
    for (name, policy) in [
        (None, "n.ottoscaler-fence"),
        (Some("n.o-fence"), "n.o-fence"),
    ] {
        let fence = super::policy(name, "n");
        assert!(fence.is_refusal(&refusal(policy)));
        for other in ["fence", "x.ottoscaler-fence", "another-fence"] {
            assert!(!fence.is_refusal(&refusal(other)), "{other}");
        }
    }
}
