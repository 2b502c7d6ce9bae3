//! Proofs of death: how they are published, and what follows from one.
use super::*;

fn running_pod(id: &str, started: &str) -> Value {
    json!({"metadata": {"uid": "u"}, "status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "",
        "ready": true, "restartCount": 0, "containerID": id, "state": {"running": {"startedAt": started}}}]}})
}

#[tokio::test(start_paused = true)]
async fn the_proof_of_our_death_is_published_with_the_first_write() {
    let server = released();
    server.put_pod("me", running_pod("c1", STARTED));
    let one = start_as(&server, OBEDIENT, Some("u"));
    let (began, _) = one.term_after(0).await;
    assert!(began < AT_ONCE, "{began:?}");
    assert_eq!(
        server.lease()["metadata"]["annotations"][HOLDER_CONTAINER_ID],
        "c1"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_proof_is_waited_for_but_not_for_long_and_published_late() {
    let server = released();
    let one = start_as(&server, OBEDIENT, Some("u"));
    let (began, _) = one.term_after(0).await;
    assert!(began >= S(2) && began < S(2) + AT_ONCE, "{began:?}");
    let published = || server.lease()["metadata"]["annotations"][HOLDER_CONTAINER_ID] == "c1";
    // The kubelet tells of the container before this one first.
    server.put_pod("me", running_pod("c0", "2025-12-31T23:59:59Z"));
    sleep(S(5)).await;
    assert!(server.lease()["metadata"]["annotations"][HOLDER_CONTAINER_ID].is_null());
    server.put_pod("me", running_pod("c1", STARTED));
    let told = server.now();
    let at = one.until(|_| published()).await;
    assert!(at < told + S(1) + MS(250) + AT_ONCE, "{at:?}");
    let asked = server.seen_where(|a| a.path.ends_with("/pods/me"));
    let gaps = asked.windows(2).map(|a| a[1].at - a[0].at);
    assert!(gaps.min() >= Some(MS(250)), "asked too often");
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_container_ended_is_succeeded_at_once() {
    let server = Arc::new(Server::default());
    server.put(held_by(OTHER), publishing("u", "c1"));
    server.put_pod("other", running_pod("c1", STARTED));
    let one = start(&server, OBEDIENT);
    sleep(S(3)).await;
    assert_eq!(one.writes().len(), 0);
    server.put_pod("other", ended_pod("c0"));
    sleep(S(1)).await;
    assert_eq!(one.writes().len(), 0);
    server.put_pod("other", ended_pod("c1"));
    let (began, leader) = one.term_after(0).await;
    assert!(began < S(4) + AT_ONCE, "{began:?}");
    assert_eq!(leader.term.transitions, 4);
    assert_eq!(one.acquired(), [(4, Some(AcquireReason::Dead))]);
}

fn ended_pod(id: &str) -> Value {
    let mut pod = running_pod(id, STARTED);
    pod["status"]["containerStatuses"][0]["state"] =
        json!({"terminated": {"exitCode": 137, "containerID": id, "reason": "Error"}});
    pod
}

fn publishing(uid: &str, id: &str) -> Value {
    json!({HOLDER_POD_UID: uid, HOLDER_CONTAINER_ID: id})
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_container_had_ended_before_we_came_is_succeeded_at_once() {
    let server = Arc::new(Server::default());
    server.put(held_by(OTHER), publishing("u", "c1"));
    server.put_pod("other", ended_pod("c1"));
    let one = start(&server, OBEDIENT);
    let (began, _) = one.term_after(0).await;
    assert!(began < AT_ONCE, "{began:?}");
}

#[tokio::test(start_paused = true)]
async fn the_holder_of_the_day_is_the_one_watched() {
    let server = Arc::new(Server::default());
    server.put(held_by(OTHER), publishing("u", "c1"));
    server.put_pod("other", running_pod("c1", STARTED));
    server.put_pod("third", running_pod("c3", STARTED));
    let one = start(&server, OBEDIENT);
    sleep(S(2)).await;
    server.put(
        held_by("third_10.0.0.3:9090_00000003"),
        publishing("u", "c3"),
    );
    sleep(S(2)).await;
    server.put_pod("other", ended_pod("c1"));
    sleep(S(1)).await;
    assert_eq!(one.writes().len(), 0);
    server.put_pod("third", ended_pod("c3"));
    let (began, _) = one.term_after(0).await;
    assert!(began < S(5) + AT_ONCE, "{began:?}");
}
