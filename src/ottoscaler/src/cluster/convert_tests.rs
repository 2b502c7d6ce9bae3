#![expect(clippy::unwrap_used)]
use super::*;
use serde_json::json;

fn decode(status: serde_json::Value) -> Pod {
    decode_with(json!({}), status)
}

fn decode_with(spec: serde_json::Value, status: serde_json::Value) -> Pod {
    let view = json!({
        "metadata": {
            "name": "otto-agent-t-2", "uid": "u", "resourceVersion": "7",
            "ownerReferences": [{"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask", "name": "t", "uid": "tu"}],
            "labels": {"worker-index": "2", "ottoscaler.io/attempt": "1"},
            "annotations": {"ottoscaler.io/task-id": "T"},
        },
        "spec": spec,
        "status": status,
    });
    pod(serde_json::from_value(view).unwrap()).unwrap()
}

#[test]
fn an_exit_code_is_kept() {
    let p = decode(
        json!({"phase": "Failed", "containerStatuses": [{"name": "worker", "state": {
        "terminated": {"exitCode": 7, "reason": "Error", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:09Z"}}}]}),
    );
    assert_eq!(
        (p.phase, p.exit_code, p.reason.as_str()),
        (PodPhase::Failed, Some(7), "Error")
    );
    assert_eq!(p.finished.unwrap() - p.started.unwrap(), 9);
}

#[test]
fn a_waiting_container_says_why() {
    let p = decode(
        json!({"phase": "Pending", "containerStatuses": [{"name": "worker", "state": {
        "waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}),
    );
    assert_eq!((p.reason.as_str(), p.started), ("ImagePullBackOff", None));
}

#[test]
fn an_init_container_that_failed_tells_why() {
    let p = decode(json!({"phase": "Failed",
        "initContainerStatuses": [{"name": "mesh", "state": {"terminated": {"exitCode": 3, "reason": "Error", "startedAt": "2026-01-01T00:00:00Z"}}}],
        "containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "PodInitializing"}}}]}));
    assert_eq!((p.exit_code, p.reason.as_str()), (Some(3), "Init:Error"));
    assert!(p.message.contains("mesh") && p.started.is_none());
    assert!(p.has_logs() && p.container() == "mesh");
}

fn ended(name: &str, exit_code: i32, second: u32) -> serde_json::Value {
    let reason = if exit_code == 0 { "Completed" } else { "Error" };
    json!({"name": name, "state": {"terminated": {"exitCode": exit_code, "reason": reason,
        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": format!("2026-01-01T00:00:{second:02}Z")}}})
}

fn runs(name: &str) -> serde_json::Value {
    json!({"name": name, "state": {"running": {"startedAt": "2026-01-01T00:00:03Z"}}})
}

fn waits(name: &str, reason: &str) -> serde_json::Value {
    json!({"name": name, "state": {"waiting": {"reason": reason, "message": "why"}}})
}

fn outcome(p: &Pod) -> (PodPhase, Option<i32>, &str) {
    (p.phase, p.exit_code, p.reason.as_str())
}

#[test]
fn a_worker_ends_with_its_own_container_not_with_an_injected_one() {
    for order in [["worker", "mesh"], ["mesh", "worker"]] {
        for (exit, phase, reason) in [(0, PodPhase::Succeeded, ""), (7, PodPhase::Failed, "Error")]
        {
            let of = |name| {
                if name == "worker" {
                    ended(name, exit, 5)
                } else {
                    runs(name)
                }
            };
            let p = decode(json!({"phase": "Running", "containerStatuses": order.map(of)}));
            assert_eq!(outcome(&p), (phase, Some(exit), reason));
            assert!(p.finished.is_some() && p.worker_has_ended());
            assert!(p.others_run && !p.all_have_ended());
        }
    }
    // The kubelet calls a pod Pending while one of its containers cannot start.
    let p = decode(json!({"phase": "Pending",
        "containerStatuses": [waits("mesh", "ImagePullBackOff"), ended("worker", 0, 5)]}));
    assert_eq!(outcome(&p), (PodPhase::Succeeded, Some(0), ""));
}

#[test]
fn a_worker_runs_while_injected_containers_cannot_start() {
    let p = decode(json!({"phase": "Pending",
        "containerStatuses": [waits("mesh", "ImagePullBackOff"), runs("worker")]}));
    assert_eq!(outcome(&p), (PodPhase::Running, None, ""));
    let p = decode(json!({"phase": "Pending",
        "containerStatuses": [waits("mesh", "ErrImagePull"), waits("worker", "ContainerCreating")]}));
    assert_eq!(
        (outcome(&p), p.waits()),
        ((PodPhase::Pending, None, ""), true)
    );
    // Running containers of others do not mean that the worker has begun.
    let p = decode(json!({"phase": "Running",
        "containerStatuses": [runs("mesh"), waits("worker", "ContainerCreating")]}));
    assert_eq!(outcome(&p), (PodPhase::Pending, None, ""));
    let p = decode(json!({"phase": "Running", "containerStatuses": [runs("mesh")]}));
    assert_eq!((p.phase, p.has_logs()), (PodPhase::Pending, false));
}

#[test]
fn a_worker_that_succeeded_stays_so_whatever_its_pod_comes_to() {
    let evicted = json!([{"type": "DisruptionTarget", "status": "True",
        "reason": "TerminationByKubelet", "lastTransitionTime": "2026-01-01T00:00:20Z"}]);
    for (reason, conditions) in [
        ("", json!([])),
        ("Evicted", evicted.clone()),
        ("Evicted", json!([])),
        ("DeadlineExceeded", json!([])),
    ] {
        let p = decode_with(
            json!({"activeDeadlineSeconds": 30}),
            json!({"phase": "Failed", "reason": reason, "message": "of the pod",
                "startTime": "2026-01-01T00:00:00Z", "conditions": conditions,
                "containerStatuses": [ended("mesh", 1, 40), ended("worker", 0, 5)]}),
        );
        assert_eq!(outcome(&p), (PodPhase::Succeeded, Some(0), ""), "{reason}");
        assert_eq!((p.message.as_str(), p.disruption.as_deref()), ("", None));
    }
    // A worker that failed before keeps its own reason too.
    let p = decode(
        json!({"phase": "Failed", "reason": "Evicted", "conditions": evicted,
        "containerStatuses": [ended("mesh", 137, 21), ended("worker", 7, 5)]}),
    );
    assert_eq!(outcome(&p), (PodPhase::Failed, Some(7), "Error"));
    // A worker that the eviction itself ended did not succeed.
    for exit in [0, 143] {
        let p = decode(
            json!({"phase": "Failed", "reason": "Evicted", "conditions": evicted,
            "containerStatuses": [ended("worker", exit, 20)]}),
        );
        assert_eq!(outcome(&p), (PodPhase::Failed, Some(exit), "Evicted"));
    }
}

#[test]
fn a_native_sidecar_is_never_the_init_container_that_failed() {
    let spec = json!({"initContainers": [
        {"name": "mesh", "restartPolicy": "Always"}, {"name": "setup"}]});
    let decode = |phase: &str, mesh: serde_json::Value, worker: serde_json::Value| {
        decode_with(
            spec.clone(),
            json!({"phase": phase, "initContainerStatuses": [mesh, ended("setup", 0, 2)],
                "containerStatuses": [worker]}),
        )
    };
    let before = decode(
        "Pending",
        ended("mesh", 1, 1),
        waits("worker", "PodInitializing"),
    );
    assert_eq!(outcome(&before), (PodPhase::Pending, None, ""));
    assert!(!before.has_logs());
    let beside = decode("Running", ended("mesh", 1, 4), runs("worker"));
    assert_eq!(outcome(&beside), (PodPhase::Running, None, ""));
    assert_eq!(beside.container(), "worker");
    let after = decode("Succeeded", ended("mesh", 137, 9), ended("worker", 0, 5));
    assert_eq!(outcome(&after), (PodPhase::Succeeded, Some(0), ""));
    assert_eq!(after.container(), "worker");
    // The sidecar's restarts are not the worker's.
    let mut mesh = runs("mesh");
    mesh["restartCount"] = json!(3);
    assert_eq!(decode("Running", mesh, runs("worker")).restart_count, 0);
    // An image of a sidecar that cannot be pulled holds up the start, and is reported.
    let held = decode(
        "Pending",
        waits("mesh", "ImagePullBackOff"),
        waits("worker", "PodInitializing"),
    );
    assert_eq!(
        outcome(&held),
        (PodPhase::Pending, None, "Init:ImagePullBackOff")
    );
    assert_eq!(held.message, "init container mesh: why");
}

#[test]
fn an_ordinary_init_container_counts_only_when_it_ends_the_pods_start() {
    let status = |phase: &str| {
        json!({"phase": phase, "initContainerStatuses": [ended("setup", 3, 2)],
            "containerStatuses": [waits("worker", "PodInitializing")]})
    };
    // Sidecars that were started before it still run.
    let p = decode(status("Pending"));
    assert_eq!(outcome(&p), (PodPhase::Failed, Some(3), "Init:Error"));
    assert!(p.others_run && p.container() == "setup");
    // The kubelet tries the init container again.
    for spec in [
        json!({"restartPolicy": "OnFailure"}),
        json!({"initContainers": [{"name": "setup", "restartPolicy": "OnFailure"}]}),
        json!({"initContainers": [{"name": "setup", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [3]}}]}]}),
    ] {
        let p = decode_with(spec, status("Pending"));
        assert_eq!(outcome(&p), (PodPhase::Pending, None, ""));
        assert!(!p.has_logs());
    }
    // The kubelet evicted the pod meanwhile, which is the reason of its end.
    let mut evicted = status("Failed");
    evicted["reason"] = json!("Evicted");
    let p = decode(evicted);
    assert_eq!(
        (outcome(&p), p.has_logs()),
        ((PodPhase::Failed, None, "Evicted"), false)
    );
}

#[test]
fn a_worker_that_its_kubelet_lost_sight_of_may_have_had_logs() {
    let p = decode(json!({"phase": "Failed", "reason": "Evicted",
        "containerStatuses": [{"name": "worker", "state": {"terminated": {"exitCode": 137,
            "reason": "ContainerStatusUnknown", "startedAt": null, "finishedAt": null}}}]}));
    assert_eq!(outcome(&p), (PodPhase::Failed, Some(137), "Evicted"));
    assert!(p.started.is_none() && p.has_logs() && p.container() == "worker");
    // A pod that its node refused has no logs.
    let p = decode(json!({"phase": "Failed", "reason": "OutOfcpu"}));
    assert!(!p.has_logs());
    // A pod that was deleted before its image was pulled has none either. With an image, the
    // container may have run.
    for (image, may_have_run) in [("", false), ("sha256:1", true)] {
        let p = decode(
            json!({"phase": "Failed", "containerStatuses": [{"name": "worker",
            "imageID": image, "state": {"terminated": {"exitCode": 137,
            "reason": "ContainerStatusUnknown", "startedAt": null, "finishedAt": null,
            "message": "The container could not be located when the pod was terminated"}}}]}),
        );
        assert_eq!(p.has_logs(), may_have_run, "{image}");
    }
    // Of a container that ran, the kubelet keeps the state before, whatever else it forgot.
    let gone = |when: &str| {
        json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": null,
            "message": format!("The container could not be located when the pod was {when}")}})
    };
    let p = decode(json!({"phase": "Failed", "reason": "Evicted",
        "containerStatuses": [{"name": "worker", "imageID": "", "restartCount": 1,
            "state": gone("terminated"),
            "lastState": gone("deleted.  The container used to be Running")}]}));
    assert!(p.started.is_none() && p.has_logs());
}

#[test]
fn containers_that_somebody_attached_to_a_pod_say_nothing_of_its_worker() {
    let p = decode(
        json!({"phase": "Running", "containerStatuses": [runs("worker")],
        "ephemeralContainerStatuses": [ended("debugger", 1, 4), waits("other", "ErrImagePull")]}),
    );
    assert_eq!(outcome(&p), (PodPhase::Running, None, ""));
}

#[test]
fn a_worker_that_the_kubelet_starts_again_has_ended_once_it_succeeded() {
    let always = json!({"containers": [{"name": "worker", "restartPolicy": "Always"}]});
    let of = |worker: serde_json::Value| {
        decode_with(
            always.clone(),
            json!({"phase": "Running", "containerStatuses": [worker]}),
        )
    };
    let failed = of(ended("worker", 7, 5));
    assert_eq!((failed.phase, failed.restarts), (PodPhase::Running, true));
    let done = of(ended("worker", 0, 5));
    assert_eq!(
        (outcome(&done), done.reran),
        ((PodPhase::Succeeded, Some(0), ""), false)
    );
    let mut again = runs("worker");
    again["restartCount"] = json!(1);
    again["lastState"] = ended("worker", 0, 5)["state"].clone();
    let again = of(again);
    assert_eq!(outcome(&again), (PodPhase::Succeeded, Some(0), ""));
    assert_eq!((again.restart_count, again.reran), (0, true));
    // A restart of all containers is no end.
    let mut all = ended("worker", 0, 5);
    all["state"]["terminated"]["reason"] = json!("RestartingAllContainers");
    let p = decode(json!({"phase": "Running", "containerStatuses": [all]}));
    assert_eq!(p.phase, PodPhase::Running);
}

#[test]
fn a_running_container_that_is_not_ready_is_on_a_lost_node() {
    let status = |ready: &str, reason: &str| {
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready, "reason": reason, "lastTransitionTime": "2026-01-01T00:00:07Z"}],
            "containerStatuses": [{"name": "worker", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]})
    };
    let lost = decode(status("False", ""));
    assert_eq!(lost.node_lost.unwrap() - lost.started.unwrap(), 7);
    assert_eq!(decode(status("True", "")).node_lost, None);
    assert_eq!(
        decode(status("False", "ContainersNotReady")).node_lost,
        None
    );
}

#[test]
fn a_disruption_is_told_by_its_condition() {
    let p = decode(
        json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
        "containerStatuses": [{"name": "worker", "state": {"terminated": {"exitCode": 143, "reason": "Error"}}}]}),
    );
    assert_eq!(p.disruption.as_deref(), Some("PreemptionByScheduler"));
}

#[test]
fn a_pod_without_our_owner_or_term_is_not_ours() {
    let decode = |annotations: &serde_json::Value, owner: &str| {
        let mut view = json!({"metadata": {"name": "otto-agent-t-1", "uid": "u",
            "labels": {"worker-index": "1"}, "annotations": annotations}});
        if let Some((version, kind)) = owner.split_once(' ') {
            view["metadata"]["ownerReferences"] =
                json!([{"apiVersion": version, "kind": kind, "name": "t", "uid": "tu"}]);
        }
        pod(serde_json::from_value(view).unwrap())
    };
    assert_eq!(decode(&json!({}), ""), None);
    let named = json!({"ottoscaler.io/task-id": "t"});
    assert_eq!(decode(&named, ""), None);
    assert_eq!(decode(&named, "example.com/v1 WorkerTask"), None);
    assert!(decode(&named, "ottoscaler.io/v1alpha1 WorkerTask").is_some());
    // A Job may copy the metadata of a worker.
    let left = json!({"ottoscaler.io/task-id": "t", "ottoscaler.io/term": "u/1/h"});
    assert_eq!(decode(&left, "batch/v1 Job"), None);
    let left = decode(&left, "").unwrap();
    assert_eq!((&*left.task, &*left.task_uid), ("t", ""));
}

#[test]
fn whose_pod_it_is_no_label_and_no_annotation_can_change() {
    let decode = |labels: serde_json::Value, annotations: serde_json::Value| {
        let view = json!({
            "metadata": {
                "name": "otto-agent-t-2-r1", "uid": "u", "resourceVersion": "7",
                "ownerReferences": [{"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask", "name": "t", "uid": "tu"}],
                "labels": labels, "annotations": annotations,
            },
        });
        pod(serde_json::from_value(view).unwrap()).unwrap()
    };
    let long = "x".repeat(100_000);
    let wrong = [
        json!(""),
        json!("9"),
        json!("-1"),
        json!("4000000000"),
        json!("x y"),
        json!(long),
    ];
    for value in &wrong {
        for label in [
            "app",
            "managed-by",
            "task-id",
            "worker-index",
            "ottoscaler.io/attempt",
            "ottoscaler.io/pod-key",
        ] {
            let p = decode(json!({label: value}), json!(null));
            assert_eq!(
                (p.index, p.attempt, &*p.task, &*p.task_uid),
                (2, 2, "t", "tu")
            );
        }
        for key in [
            "task-id",
            "repository",
            "commit-sha",
            "traceparent",
            "log-checkpoint",
            "term",
        ] {
            let key = format!("ottoscaler.io/{key}");
            let p = decode(json!(null), json!({key: value}));
            assert_eq!(
                (p.index, p.attempt, &*p.task, &*p.task_uid),
                (2, 2, "t", "tu")
            );
            assert_eq!(&*p.task_id, "t");
            let held =
                p.repository.len() + p.commit_sha.len() + p.checkpoint.map_or(0, |c| c.len());
            assert!(held <= 1_024 && p.traceparent.is_none_or(|t| t.len() <= 256));
        }
    }
    // A key that belongs to another pod is recognized.
    let keyed = |key: &str| decode(json!({"ottoscaler.io/pod-key": key}), json!(null)).foreign_key;
    assert_eq!(keyed("tu-2-2"), None);
    assert_eq!(keyed("tu-1-1").as_deref(), Some("tu-1-1"));
}

#[test]
fn a_pod_of_another_name_is_not_ours_whoever_owns_it() {
    let view = json!({"metadata": {
        "name": "otto-agent-t-4000000000", "uid": "u",
        "ownerReferences": [{"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask", "name": "t", "uid": "tu"}],
        "labels": {"worker-index": "1"}, "annotations": {"ottoscaler.io/task-id": "t"},
    }});
    assert_eq!(pod(serde_json::from_value(view).unwrap()), None);
}
