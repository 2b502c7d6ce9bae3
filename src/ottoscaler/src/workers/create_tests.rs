use serde_json::{Value, json};

use super::{
    super::test_shared::{client, shared, status, task},
    *,
};
use crate::election::Pause;

/// The end of a create whose name is taken by this pod; null: by none any more.
async fn finds(pod: Value) -> WriteResult {
    let client = client(move |method, path, _| match (method, path) {
        ("POST", _) => status(
            409,
            "AlreadyExists",
            "pods \"otto-agent-t-1\" already exists",
        ),
        ("GET", "/api/v1/namespaces/n/pods/otto-agent-t-1") if !pod.is_null() => (200, pod.clone()),
        _ => status(404, "NotFound", "not found"),
    });
    let (_set, pause) = Pause::channel(false);
    let shared = shared(client, pause, &[]);
    let which = Attempt {
        index: 1,
        attempt: 1,
    };
    create(&shared, &task("t", "r", &[]), which).await
}

fn pod(owner: &str, deleted: Option<&str>) -> Value {
    json!({
        "metadata": {
            "name": "otto-agent-t-1",
            "uid": "p",
            "resourceVersion": "7",
            "deletionTimestamp": deleted,
            "annotations": {"ottoscaler.io/task-id": "t"},
            "labels": {"worker-index": "1", "ottoscaler.io/attempt": "1"},
            "ownerReferences": [{"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask",
                "name": "t", "uid": owner, "controller": true}],
        },
    })
}

fn is_refused(end: &WriteResult, verdict: Verdict, text: &str) {
    let is_told = matches!(end, WriteResult::Refused(refusal)
        if refusal.by == By::OtherPod && refusal.verdict == verdict && refusal.text.contains(text));
    assert!(is_told, "{end:?}");
}

#[tokio::test]
async fn a_pod_that_is_not_ours_is_told_by_name() {
    let exists = "pod otto-agent-t-1 exists and is not ours";
    let mut nobodys = pod("x", None);
    nobodys["metadata"]["ownerReferences"] = Value::Null;
    for foreign in [
        json!({"metadata": {"name": "otto-agent-t-1", "uid": "p"}}),
        nobodys,
        pod("of-another-task-of-this-name", None),
    ] {
        is_refused(&finds(foreign).await, Verdict::Repeats, exists);
    }
}

#[tokio::test]
async fn a_pod_that_is_being_deleted_is_waited_for() {
    let deleted = Some("2026-01-01T00:00:00Z");
    for owner in ["uid-t", "x"] {
        let end = finds(pod(owner, deleted)).await;
        is_refused(&end, Verdict::Waits, "is being deleted");
    }
    is_refused(
        &finds(Value::Null).await,
        Verdict::Waits,
        "is being deleted",
    );
}

#[tokio::test]
async fn a_pod_that_is_ours_already_is_as_good_as_created() {
    let end = finds(pod("uid-t", None)).await;
    assert!(matches!(end, WriteResult::Done), "{end:?}");
}

#[tokio::test]
async fn a_template_that_the_policy_refuses_by_now_fails_the_worker() {
    let (_set, pause) = Pause::channel(false);
    let shared = shared(client(|_, _, _| status(500, "", "")), pause, &[]);
    let root = task("t", "r", &[("OTTO_USER_ID", "0")]);
    let which = Attempt {
        index: 1,
        attempt: 1,
    };
    let end = create(&shared, &root, which).await;
    assert!(
        matches!(&end, WriteResult::Refused(refusal) if refusal.verdict == Verdict::Final),
        "{end:?}"
    );
}
