#![expect(clippy::unwrap_used)]
use std::sync::atomic::{AtomicU64, Ordering};

use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};

use super::*;

/// An API server with one Lease in it, as far as the crate asks.
#[derive(Default)]
struct Server {
    lease: Mutex<Option<Value>>,
    version: AtomicU64,
    queries: Mutex<Vec<String>>,
}

impl Server {
    fn client(self: &Arc<Self>) -> kube::Client {
        let server = self.clone();
        kube::Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    // Contenders really interleave.
                    tokio::task::yield_now().await;
                    let (code, answer) = server.answer(&parts, &body);
                    let response = Response::builder()
                        .status(code)
                        .body(Body::from(answer.to_string().into_bytes()));
                    Ok::<_, tower::BoxError>(response?)
                }
            }),
            "n",
        )
    }

    fn answer(&self, parts: &http::request::Parts, body: &[u8]) -> (u16, Value) {
        let mut lease = self.lease.lock().unwrap();
        let next = || (self.version.fetch_add(1, Ordering::Relaxed) + 1).to_string();
        let status = |code: u16, reason: &str| {
            (
                code,
                json!({"kind": "Status", "code": code, "reason": reason, "message": reason, "status": "Failure"}),
            )
        };
        if parts.method != Method::GET {
            self.queries
                .lock()
                .unwrap()
                .push(parts.uri.query().unwrap_or_default().to_owned());
        }
        match (parts.method.as_str(), lease.as_mut()) {
            ("GET", None) => status(404, "NotFound"),
            ("GET", Some(l)) => (200, l.clone()),
            ("POST", Some(_)) => status(409, "AlreadyExists"),
            ("POST", None) => {
                let mut new: Value = serde_json::from_slice(body).unwrap();
                new["metadata"]["uid"] = json!("lease-uid");
                // As the API server stores a map of strings.
                if let Some(all) = new["metadata"]["annotations"].as_object_mut() {
                    all.values_mut()
                        .filter(|v| v.is_null())
                        .for_each(|v| *v = json!(""));
                }
                new["metadata"]["resourceVersion"] = json!(next());
                *lease = Some(new.clone());
                (201, new)
            }
            (_, Some(l)) => {
                let patch: Value = serde_json::from_slice(body).unwrap();
                let given = &patch["metadata"]["resourceVersion"];
                if !given.is_null() && *given != l["metadata"]["resourceVersion"] {
                    return status(409, "Conflict");
                }
                merge(l, &patch);
                l["metadata"]["resourceVersion"] = json!(next());
                (200, l.clone())
            }
            _ => status(404, "NotFound"),
        }
    }

    fn put(&self, spec: Value, annotations: Value) {
        let version = (self.version.fetch_add(1, Ordering::Relaxed) + 1).to_string();
        *self.lease.lock().unwrap() = Some(json!({"metadata": {"name": "l", "uid": "lease-uid",
            "resourceVersion": version, "annotations": annotations}, "spec": spec}));
    }
}

fn merge(target: &mut Value, patch: &Value) {
    if let (Some(t), Some(p)) = (target.as_object_mut(), patch.as_object()) {
        for (k, v) in p {
            if v.is_null() {
                t.remove(k);
            } else if v.is_object() {
                merge(t.entry(k).or_insert(json!({})), v);
            } else {
                t.insert(k.clone(), v.clone());
            }
        }
    }
}

const LONG: Duration = Duration::from_secs(5);

struct One {
    guard: Arc<Guard>,
    lock: LeaseLock,
}

fn contender(server: &Arc<Server>, me: &str) -> One {
    contender_with(server, me, Duration::from_secs(6))
}

fn contender_with(server: &Arc<Server>, me: &str, duration: Duration) -> One {
    let guard = Arc::new(Guard::new(
        "l",
        duration,
        Duration::from_secs(4),
        LONG,
        Clock::default(),
    ));
    guard.become_identity(me);
    let params = LeaseLockParams {
        lease_name: "l".into(),
        holder_id: me.into(),
        lease_ttl: Duration::from_secs(6),
    };
    let lock = LeaseLock::new(guard.client(server.client(), "n"), "n", params);
    One { guard, lock }
}

async fn acquired(one: &One) -> bool {
    matches!(
        one.lock.try_acquire_or_renew().await,
        Ok(LeaseLockResult::Acquired(_))
    )
}

fn held_by(holder: &str) -> Value {
    json!({"holderIdentity": holder, "leaseDurationSeconds": 6, "leaseTransitions": 3,
        "renewTime": "2020-01-01T00:00:00.000000Z", "acquireTime": "2020-01-01T00:00:00.000000Z"})
}

#[tokio::test]
async fn of_contenders_that_race_for_a_released_lease_one_wins() {
    for _ in 0..100 {
        let server = Arc::new(Server::default());
        server.put(held_by(""), json!({RELEASED_BY: "x"}));
        let all: Vec<One> = (0..5)
            .map(|i| contender(&server, &format!("c{i}")))
            .collect();
        let won = futures::future::join_all(all.iter().map(acquired)).await;
        assert_eq!(won.iter().filter(|w| **w).count(), 1);
    }
}

/// The reason for the guard: the same race without it.
#[tokio::test]
async fn without_the_guard_several_are_told_that_they_won() {
    let server = Arc::new(Server::default());
    server.put(held_by("gone"), json!({}));
    let all: Vec<LeaseLock> = (0..5)
        .map(|i| {
            let params = LeaseLockParams {
                lease_name: "l".into(),
                holder_id: format!("c{i}"),
                lease_ttl: Duration::from_secs(6),
            };
            LeaseLock::new(server.client(), "n", params)
        })
        .collect();
    let won = futures::future::join_all(all.iter().map(LeaseLock::try_acquire_or_renew)).await;
    let winners = won
        .iter()
        .filter(|w| matches!(w, Ok(LeaseLockResult::Acquired(_))))
        .count();
    assert!(winners > 1, "the crate is safe by itself now: {winners}");
}

/// Its renewTime is years ago by the wall clock, but we have only just seen it.
#[tokio::test]
async fn no_wall_clock_makes_a_lease_expire() {
    let server = Arc::new(Server::default());
    server.put(held_by("other"), json!({}));
    assert!(!acquired(&contender(&server, "me")).await);
}

/// What it is shown lies years from any wall clock, on the side that we say.
#[tokio::test]
async fn no_wall_clock_turns_what_the_crate_is_shown() {
    let server = Arc::new(Server::default());
    let me = contender(&server, "me");
    let api: kube::Api<Lease> = kube::Api::namespaced(me.guard.client(server.client(), "n"), "n");
    let shown = || async {
        let spec = api.get("l").await.unwrap().spec.unwrap();
        spec.renew_time.unwrap().0.as_second() - jiff::Timestamp::now().as_second()
    };
    let year = 365 * 24 * 3600;
    server.put(held_by("other"), json!({}));
    assert!(shown().await > year);
    server.put(held_by("other"), json!({RELEASED_BY: "x"}));
    assert!(shown().await > year, "held, whatever the mark");
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    assert!(shown().await < -year);
}

#[tokio::test]
async fn a_proved_death_frees_the_lease_at_once() {
    let server = Arc::new(Server::default());
    server.put(held_by("other"), json!({}));
    let me = contender(&server, "me");
    me.guard.proved_dead("other".into());
    assert!(acquired(&me).await);
    let lease = server.lease.lock().unwrap().clone().unwrap();
    assert_eq!(
        (
            lease["spec"]["leaseTransitions"].as_i64(),
            lease["spec"]["holderIdentity"].as_str()
        ),
        (Some(4), Some("me"))
    );
}

#[tokio::test]
async fn stepping_down_leaves_a_mark_that_the_next_leader_takes_away() {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    let (a, b) = (contender(&server, "a"), contender(&server, "b"));
    assert!(acquired(&a).await && !acquired(&b).await);
    a.lock.step_down().await.unwrap();
    let released = server.lease.lock().unwrap().clone().unwrap();
    assert_eq!(released["metadata"]["annotations"][RELEASED_BY], "a");
    assert!(acquired(&b).await);
    let taken = server.lease.lock().unwrap().clone().unwrap();
    assert!(taken["metadata"]["annotations"][RELEASED_BY].is_null());
}

#[tokio::test]
async fn a_precondition_is_used_once() {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    let me = contender(&server, "me");
    assert!(acquired(&me).await);
    let api: kube::Api<Lease> = kube::Api::namespaced(me.guard.client(server.client(), "n"), "n");
    let patch = kube::api::Patch::Merge(json!({"spec": {"renewTime": "x"}}));
    assert!(api.patch("l", &Default::default(), &patch).await.is_err());
}

#[tokio::test]
async fn missing_fields_and_one_field_manager() {
    let server = Arc::new(Server::default());
    server.put(json!({}), json!({RELEASED_BY: "x"}));
    assert!(acquired(&contender(&server, "me")).await);
    let queries = server.queries.lock().unwrap().clone();
    assert!(
        !queries.is_empty()
            && queries
                .iter()
                .all(|q| q.contains("fieldManager=ottoscaler") && !q.contains("fieldManager=me")),
        "{queries:?}"
    );
}

#[tokio::test]
async fn our_own_old_record_is_taken_by_a_new_term_only() {
    let server = Arc::new(Server::default());
    server.put(held_by("me-1"), json!({}));
    let guard = Arc::new(Guard::new(
        "l",
        Duration::from_secs(6),
        Duration::from_secs(4),
        LONG,
        Clock::default(),
    ));
    guard.become_identity("me-1");
    guard.become_identity("me-2");
    let params = LeaseLockParams {
        lease_name: "l".into(),
        holder_id: "me-2".into(),
        lease_ttl: Duration::from_secs(6),
    };
    let lock = LeaseLock::new(guard.client(server.client(), "n"), "n", params);
    assert!(acquired(&One { guard, lock }).await);
    assert_eq!(
        server.lease.lock().unwrap().clone().unwrap()["spec"]["leaseTransitions"],
        4
    );
}

#[tokio::test]
async fn a_proof_that_comes_late_is_published_by_the_next_renewal() {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({ RELEASED_BY: "x" }));
    let me = contender(&server, "me");
    assert!(acquired(&me).await);
    me.guard.publish(Some(Proof {
        pod_uid: "u".into(),
        container_id: "c".into(),
    }));
    assert!(acquired(&me).await);
    let lease = server.lease.lock().unwrap().clone().unwrap();
    assert_eq!(lease["metadata"]["annotations"][HOLDER_CONTAINER_ID], "c");
    assert_eq!(lease["spec"]["leaseTransitions"], 4);
}

#[tokio::test]
async fn a_lease_that_we_created_bears_no_mark_of_a_release() {
    let server = Arc::new(Server::default());
    let me = contender_with(&server, "me", Duration::ZERO);
    // None is there: first seen, then waited out.
    assert!(!acquired(&me).await && acquired(&me).await);
    let lease = server.lease.lock().unwrap().clone().unwrap();
    assert!(
        lease["metadata"]["annotations"][RELEASED_BY].is_null(),
        "{lease}"
    );
    // Not even an empty one would count.
    server.put(held_by(""), json!({RELEASED_BY: ""}));
    assert!(!acquired(&contender(&server, "other")).await);
}
