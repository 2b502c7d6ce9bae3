#![expect(clippy::unwrap_used)]
use serde_json::{Value, json};

use super::*;
use crate::{
    Clock, Timings,
    lease::{AcquireReason, Standing},
    test_server::{HOLDER_CONTAINER_ID, HOLDER_POD_UID, test_keys},
};

const HOLDER: &str = "otto-0_10.0.0.1:9090_0000abcd";

/// A pod of one container.
fn pod(uid: &str, state: Value, last: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"uid": uid},
        "status": {"phase": "Running", "containerStatuses": [{"name": "c", "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "state": state, "lastState": last}]},
    }))
    .unwrap()
}

fn ended(id: &str, reason: &str) -> Value {
    json!({"terminated": {"exitCode": 137, "containerID": id, "reason": reason}})
}

fn runs() -> Value {
    json!({"running": {"startedAt": "2026-01-01T12:00:00Z"}})
}

fn lease(annotations: Value) -> Lease {
    serde_json::from_value(json!({
        "metadata": {"name": "l", "uid": "lease", "resourceVersion": "1", "annotations": annotations},
        "spec": {"holderIdentity": HOLDER, "leaseDurationSeconds": 6},
    }))
    .unwrap()
}

/// Container `c1` of the pod `u`.
fn published_lease() -> Lease {
    lease(json!({HOLDER_POD_UID: "u", HOLDER_CONTAINER_ID: "c1"}))
}

/// What a follower to whom this was reported holds of the Lease.
fn standing_after(change: Change<Pod>) -> Standing {
    let long = Duration::from_secs(6);
    let guard = Guard::new(&Timings::default(), long, test_keys(), Clock::default());
    guard.become_identity("me");
    let lease = published_lease();
    guard.observe(Some(&lease));
    let (holder, _, proof) = published(&lease, &test_keys()).unwrap();
    let witness = Witness {
        holder,
        proof,
        guard: &guard,
        wake: &watch::channel(()).0,
    };
    witness.look(&change);
    guard.standing()
}

fn is_proof(pod: Pod) -> bool {
    matches!(
        standing_after(Change::Present(pod)),
        Standing::Free(AcquireReason::Dead)
    )
}

#[test]
fn the_published_container_terminated_is_a_proof() {
    assert!(is_proof(pod("u", ended("c1", "Error"), json!({}))));
    // Restarted already.
    assert!(is_proof(pod("u", runs(), ended("c1", "OOMKilled"))));
    // And when the pod goes with it.
    let gone = pod("u", ended("c1", "Completed"), json!({}));
    let standing = standing_after(Change::Deleted(gone));
    assert!(matches!(standing, Standing::Free(AcquireReason::Dead)));
}

#[test]
fn container_status_unknown_is_no_proof() {
    let unknown = || ended("c1", "ContainerStatusUnknown");
    assert!(!is_proof(pod("u", unknown(), json!({}))));
    assert!(!is_proof(pod("u", runs(), unknown())));
}

/// It judges by the node's absence, not by the container.
#[test]
fn a_pod_failed_by_the_pod_garbage_collector_is_no_proof() {
    let mut failed = serde_json::to_value(pod("u", runs(), json!({}))).unwrap();
    failed["status"]["phase"] = json!("Failed");
    failed["status"]["reason"] = json!("NodeLost");
    failed["status"]["conditions"] =
        json!([{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}]);
    assert!(!is_proof(serde_json::from_value(failed.clone()).unwrap()));
    failed["status"]["containerStatuses"] = json!([]);
    assert!(!is_proof(serde_json::from_value(failed).unwrap()));
}

#[test]
fn a_pod_deleted_by_force_while_it_runs_is_no_proof() {
    let running = || pod("u", runs(), json!({}));
    let standing = standing_after(Change::Deleted(running()));
    assert!(matches!(standing, Standing::HeldUntil(_)));
    // Nor that there is none any more.
    let standing = standing_after(Change::Absent);
    assert!(matches!(standing, Standing::HeldUntil(_)));
}

#[test]
fn a_recurring_pod_name_is_no_proof() {
    assert!(!is_proof(pod("another", ended("c1", "Error"), json!({}))));
}

#[test]
fn another_container_of_the_same_pod_is_no_proof() {
    // The restart before the one that leads.
    assert!(!is_proof(pod("u", runs(), ended("c0", "Error"))));
    assert!(!is_proof(pod("u", ended("c2", "Error"), json!({}))));
}

#[test]
fn a_container_that_waits_is_no_proof() {
    let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    assert!(!is_proof(pod("u", waits, json!({}))));
}

#[test]
fn where_no_id_is_published_nothing_is_a_proof() {
    for annotations in [
        json!({}),
        json!({HOLDER_POD_UID: "u"}),
        json!({HOLDER_CONTAINER_ID: "c1"}),
        json!({HOLDER_POD_UID: "u", HOLDER_CONTAINER_ID: ""}),
        json!({HOLDER_POD_UID: "", HOLDER_CONTAINER_ID: "c1"}),
    ] {
        assert_eq!(
            published(&lease(annotations.clone()), &test_keys()),
            None,
            "{annotations}"
        );
    }
    assert!(published(&published_lease(), &test_keys()).is_some());
}

fn started(at: &str) -> Timestamp {
    format!("2026-01-01T{at}Z").parse().unwrap()
}

fn own_id(container: Value) -> Option<String> {
    let mut own = pod("u", runs(), json!({}));
    let status = own
        .status
        .as_mut()
        .unwrap()
        .container_statuses
        .as_mut()
        .unwrap();
    status[0].container_id = serde_json::from_value(container).unwrap();
    own_of(&own, "u", started("12:00:00.7")).map(|p| p.container_id)
}

#[test]
fn a_replica_publishes_its_own_container_once_the_kubelet_tells_of_it() {
    assert_eq!(own_id(json!("c1")).as_deref(), Some("c1"));
    assert_eq!(own_id(json!("")), None);
    assert_eq!(own_id(json!(null)), None);
    let mut own = pod("u", runs(), json!({}));
    let status = own
        .status
        .as_mut()
        .unwrap()
        .container_statuses
        .as_mut()
        .unwrap();
    status[0].container_id = Some("c1".to_owned());
    // Still the container before us; another pod of our name.
    assert_eq!(own_of(&own, "u", started("12:00:01")), None);
    assert_eq!(own_of(&own, "v", started("12:00:00")), None);
    assert!(own_of(&own, "u", started("12:00:00")).is_some());
}

#[test]
fn when_the_wall_clock_was_set_back_an_older_container_is_not_published() {
    let mut own = pod("u", runs(), json!({}));
    let status = own.status.as_mut().unwrap();
    status.container_statuses.as_mut().unwrap()[0].container_id = Some("c0".to_owned());
    assert_eq!(own_of(&own, "u", started("11:00:00")), None);
    assert!(own_of(&own, "u", started("11:59:55")).is_some());
}

/// A sidecar's end would be taken for ours.
#[test]
fn of_a_pod_with_several_containers_none_is_published() {
    let mut two = pod("u", runs(), json!({}));
    let statuses = two
        .status
        .as_mut()
        .unwrap()
        .container_statuses
        .as_mut()
        .unwrap();
    statuses[0].container_id = Some("c1".to_owned());
    statuses.push(statuses[0].clone());
    assert_eq!(own_of(&two, "u", started("12:00:00")), None);
}
