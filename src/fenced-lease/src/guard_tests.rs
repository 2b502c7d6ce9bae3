#![expect(clippy::unwrap_used)]
use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};

use super::*;
use crate::test_server::{
    Asked, Fate, HOLDER_CONTAINER_ID, HOLDER_POD_UID, RELEASED_BY, Server, held_by, paused_clock,
    test_keys,
};

fn guard(duration: Duration, clock: Clock) -> Guard {
    let timings = Timings {
        lease_duration: duration,
        renew_deadline: Duration::from_secs(4),
        ..Timings::default()
    };
    Guard::new(&timings, LONG, test_keys(), clock)
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
    let guard = Arc::new(self::guard(duration, Clock::default()));
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

#[tokio::test]
async fn a_proved_death_frees_the_lease_at_once() {
    let server = Arc::new(Server::default());
    server.put(held_by("other"), json!({}));
    let me = contender(&server, "me");
    me.guard.proved_dead("other".into());
    assert!(acquired(&me).await);
    let lease = server.lease();
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
    let released = server.lease();
    assert_eq!(released["metadata"]["annotations"][RELEASED_BY], "a");
    assert!(acquired(&b).await);
    let taken = server.lease();
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
    let writes = server.seen_where(Asked::is_write);
    assert!(
        !writes.is_empty()
            && writes
                .iter()
                .all(|w| w.query.contains("fieldManager=ottoscaler")
                    && !w.query.contains("fieldManager=me")),
        "{writes:?}"
    );
}

#[tokio::test]
async fn our_own_old_record_is_taken_by_a_new_term_only() {
    let server = Arc::new(Server::default());
    server.put(held_by("me-1"), json!({}));
    let guard = Arc::new(self::guard(Duration::from_secs(6), Clock::default()));
    guard.become_identity("me-1");
    guard.become_identity("me-2");
    let params = LeaseLockParams {
        lease_name: "l".into(),
        holder_id: "me-2".into(),
        lease_ttl: Duration::from_secs(6),
    };
    let lock = LeaseLock::new(guard.client(server.client(), "n"), "n", params);
    assert!(acquired(&One { guard, lock }).await);
    assert_eq!(server.lease()["spec"]["leaseTransitions"], 4);
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
    let lease = server.lease();
    assert_eq!(lease["metadata"]["annotations"][HOLDER_CONTAINER_ID], "c");
    assert_eq!(lease["spec"]["leaseTransitions"], 4);
}

#[tokio::test]
async fn a_lease_that_we_created_bears_no_mark_of_a_release() {
    let server = Arc::new(Server::default());
    let me = contender_with(&server, "me", Duration::ZERO);
    // None is there: first seen, then waited out.
    assert!(!acquired(&me).await && acquired(&me).await);
    let lease = server.lease();
    assert!(
        lease["metadata"]["annotations"][RELEASED_BY].is_null(),
        "{lease}"
    );
    // Not even an empty one would count.
    server.put(held_by(""), json!({RELEASED_BY: ""}));
    assert!(!acquired(&contender(&server, "other")).await);
}

#[test]
fn the_field_manager_is_replaced_and_the_rest_kept() {
    let one = |uri: &str| {
        one_field_manager(&uri.parse().unwrap(), "ottoscaler")
            .unwrap()
            .to_string()
    };
    assert_eq!(one("/l"), "/l?fieldManager=ottoscaler");
    assert_eq!(
        one("/l?&a=b&fieldManager=me&c=d"),
        "/l?a=b&c=d&fieldManager=ottoscaler"
    );
}

/// The holder's clock may be hours ahead.
#[tokio::test]
async fn a_released_lease_is_free_whatever_its_renew_time_says() {
    let server = Arc::new(Server::default());
    let mut spec = held_by("");
    spec["renewTime"] = json!("2999-01-01T00:00:00.000000Z");
    server.put(spec, json!({RELEASED_BY: "x"}));
    assert!(acquired(&contender(&server, "me")).await);
}

#[tokio::test]
async fn a_write_that_lost_its_race_is_no_success_and_what_was_read_is_demanded() {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    let me = contender(&server, "me");
    let racing = server.clone();
    // Between the read and the write somebody else writes.
    server.on(move |asked| {
        if asked.is_write() {
            racing.patch(&json!({"spec": {"holderIdentity": "other"}}));
        }
        Fate::Answered
    });
    assert!(me.lock.try_acquire_or_renew().await.is_err());
    assert_eq!(server.lease()["spec"]["holderIdentity"], "other");
    let write = server.seen_where(Asked::is_write).remove(0);
    assert_eq!(write.body["metadata"]["uid"], "lease-uid");
    assert_eq!(write.body["metadata"]["resourceVersion"], "1");
}

/// A Lease made anew may reach the same resourceVersion on another cluster's
/// store; the uid tells.
#[tokio::test]
async fn a_lease_made_anew_is_another() {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    let me = contender(&server, "me");
    let anew = server.clone();
    server.on(move |asked| {
        if asked.is_write() {
            anew.rename_uid("another");
        }
        Fate::Answered
    });
    assert!(me.lock.try_acquire_or_renew().await.is_err());
    assert_eq!(server.lease()["spec"]["holderIdentity"], "");
}

#[tokio::test]
async fn only_what_the_protocol_needs_passes() {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    let me = contender(&server, "me");
    let api: kube::Api<Lease> = kube::Api::namespaced(me.guard.client(server.client(), "n"), "n");
    assert!(api.delete("l", &Default::default()).await.is_err());
    // Nor a patch of what was not read.
    let patch = kube::api::Patch::Merge(json!({"spec": {}}));
    assert!(api.patch("l", &Default::default(), &patch).await.is_err());
    assert!(server.seen().is_empty());
    // What the API server refuses, the crate is told.
    server.on(|_| Fate::Refused(418));
    let refused = api.get("l").await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 418));
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_in_time() {
    for writes in [false, true] {
        let server = Arc::new(Server::default());
        server.put(held_by(""), json!({RELEASED_BY: "x"}));
        server.on(move |a| {
            if a.is_write() == writes {
                Fate::Lost
            } else {
                Fate::Answered
            }
        });
        let me = contender(&server, "me");
        let ended = timeout(LONG * 9, me.lock.try_acquire_or_renew()).await;
        assert!(ended.unwrap().is_err());
        assert!(server.now() >= LONG && server.now() < LONG + Duration::from_millis(5));
    }
}

fn proof() -> Option<Proof> {
    Some(Proof {
        pod_uid: "u".into(),
        container_id: "c".into(),
    })
}

#[tokio::test]
async fn a_renewal_carries_the_proof_until_one_was_acknowledged_and_not_again() {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({ RELEASED_BY: "x" }));
    let me = contender(&server, "me");
    assert!(acquired(&me).await && acquired(&me).await);
    me.guard.publish(proof());
    server.on(|a| {
        if a.is_write() {
            Fate::Refused(500)
        } else {
            Fate::Answered
        }
    });
    assert!(!acquired(&me).await);
    server.on(|_| Fate::Answered);
    assert!(acquired(&me).await && acquired(&me).await);
    let writes = server.seen_where(Asked::is_write);
    let carried: Vec<bool> = writes
        .iter()
        .map(|w| w.body["metadata"]["annotations"][HOLDER_POD_UID] == "u")
        .collect();
    assert_eq!(carried, [false, false, true, true, false]);
    assert!(writes[1].body["metadata"]["annotations"].is_null());
    assert!(writes[4].body["metadata"]["annotations"].is_null());
    // Of the body before it was changed.
    assert!(writes.iter().all(|w| w.length.is_none()));
    let lease = server.lease();
    assert_eq!(lease["metadata"]["annotations"][HOLDER_CONTAINER_ID], "c");
}

#[tokio::test]
async fn a_new_holder_publishes_its_own_proof_and_takes_the_former_away() {
    let server = Arc::new(Server::default());
    let left = json!({RELEASED_BY: "x", HOLDER_POD_UID: "old", HOLDER_CONTAINER_ID: "old"});
    server.put(held_by(""), left);
    let me = contender(&server, "me");
    assert!(acquired(&me).await);
    let annotations = || server.lease()["metadata"]["annotations"].clone();
    assert_eq!(annotations(), json!({}));
    me.guard.publish(proof());
    me.lock.step_down().await.unwrap();
    let seconds = server.lease()["spec"]["leaseDurationSeconds"].clone();
    assert_eq!(seconds, 6, "a step-down shortens no Lease");
    // As another identity: what the last wrote no longer counts as written.
    me.guard.become_identity("me-2");
    let params = LeaseLockParams {
        lease_name: "l".into(),
        holder_id: "me-2".into(),
        lease_ttl: Duration::from_secs(6),
    };
    let lock = LeaseLock::new(me.guard.client(server.client(), "n"), "n", params);
    assert!(lock.try_acquire_or_renew().await.is_ok());
    assert_eq!(
        annotations(),
        json!({HOLDER_POD_UID: "u", HOLDER_CONTAINER_ID: "c"})
    );
}

#[tokio::test(start_paused = true)]
async fn what_we_saw_decides_and_for_how_long() {
    let guard = self::guard(LONG, paused_clock());
    guard.become_identity("me");
    let lease = |version: &str| -> Lease {
        serde_json::from_value(json!({"metadata": {"uid": "u", "resourceVersion": version},
            "spec": {"holderIdentity": "x", "leaseDurationSeconds": 7}}))
        .unwrap()
    };
    let is_free = || matches!(guard.standing(), Standing::Free(_));
    guard.observe(Some(&lease("1")));
    tokio::time::sleep(Duration::from_secs(6)).await;
    guard.observe(Some(&lease("2")));
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(!is_free(), "not strictly after");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(is_free());
}

#[tokio::test(start_paused = true)]
async fn validity_counts_from_when_the_write_was_sent() {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    let guard = self::guard(LONG, paused_clock());
    let guard = Arc::new(guard);
    guard.become_identity("me");
    let params = LeaseLockParams {
        lease_name: "l".into(),
        holder_id: "me".into(),
        lease_ttl: LONG,
    };
    let lock = LeaseLock::new(guard.client(server.client(), "n"), "n", params);
    server.on(|_| Fate::Late(Duration::from_secs(1)));
    assert!(lock.try_acquire_or_renew().await.is_ok());
    // Read at 0 s, written at 1 s, acknowledged at 2 s.
    let sent = Duration::from_secs(1001);
    assert!(guard.sent() >= sent && guard.sent() < sent + Duration::from_millis(5));
    assert_eq!(guard.valid_until(), guard.sent() + Duration::from_secs(4));
}
