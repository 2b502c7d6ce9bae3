//! What people see: a pause, kubectl's view of a task, how big it may become.
use ottoscaler::domain::{
    request::room_for_maps,
    task::{
        MAX_TASK_BYTES, MAX_TASK_WORKERS, Notified, NotifiedState, TaskSpec, TaskStatus,
        WorkerPhase, WorkerRecord,
    },
};
use serde_json::{Value, json};

use super::{Cell, QUICK, SOON, apply, put, scale_up, wait_for};

fn events(cell: &Cell, task: &str) -> Vec<(String, String)> {
    let all = cell.cluster.json(&["-n", &cell.namespace, "get", "events"]);
    let text = |e: &Value, key: &str| e[key].as_str().unwrap_or_default().to_owned();
    all["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["involvedObject"]["kind"] == "WorkerTask")
        .filter(|e| text(&e["involvedObject"], "name").contains(task))
        .map(|e| (text(e, "reason"), text(e, "message")))
        .collect()
}

#[test]
fn a_pause_outlives_its_leader_and_is_told_until_it_ends() {
    let mut cell = Cell::start("pause", QUICK);
    cell.ask(0, &scale_up("before", "1"));
    let leader = cell.leader().unwrap();
    let follower = (leader + 1) % 3;
    assert_eq!(
        cell.ask(follower, &["pause", "node upgrade"])["paused"],
        "node upgrade"
    );
    wait_for("every replica knows", SOON, || {
        (0..3)
            .all(|n| cell.ask(n, &["status"])["paused"] == "node upgrade")
            .then_some(())
    });
    let answer = cell.ask(follower, &scale_up("waits", "2"));
    assert_eq!(answer["status"], "PARTIAL_SUCCESS", "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("2 of 2") && message.contains("pause (node upgrade)"),
        "{message}"
    );
    // What runs goes on, to its end.
    cell.succeed("otto-agent-before-1");
    wait_for("the other task ends", SOON, || {
        (cell.ask(follower, &["status", "before"])["succeeded"] == 1).then_some(())
    });

    cell.replicas[leader].signal("TERM");
    cell.replicas[leader].wait_exit();
    wait_for("the next leader has taken the task over", SOON, || {
        let next = cell.holder().filter(|h| !h.is_empty())?;
        let tasks = cell.cluster.json(&["-n", "pause", "get", "workertasks"]);
        let tasks = tasks["items"].as_array().unwrap().clone();
        tasks
            .iter()
            .find(|t| t["spec"]["taskId"] == "waits")?
            .pointer("/metadata/annotations/ottoscaler.io~1term")?
            .as_str()?
            .ends_with(&next)
            .then_some(())
    });
    let status = cell.ask(follower, &["status", "waits"]);
    assert_eq!(
        (&status["pending"], &status["paused"]),
        (&json!(2), &json!("node upgrade"))
    );
    assert!(cell.pods("waits").is_empty());
    let told = wait_for("an event tells what is waited for", SOON, || {
        events(&cell, "waits")
            .into_iter()
            .find(|(reason, _)| reason == "WorkersWait")
    });
    assert!(told.1.contains("pause (node upgrade)"), "{told:?}");

    assert_eq!(cell.ask(follower, &["resume"])["paused"], "");
    wait_for("they start", SOON, || {
        (cell.pods("waits").len() == 2).then_some(())
    });
    // kubectl does as well.
    let lease = ["-n", "pause", "annotate", "lease", "ottoscaler-leader"];
    cell.cluster
        .kubectl(&[&lease[..], &["ottoscaler.io/paused="]].concat());
    wait_for("it is told", SOON, || {
        (cell.ask(follower, &["status"])["paused"] == "no reason given").then_some(())
    });
    cell.audit("waits", 2, 1);
}

#[test]
fn a_task_that_nobody_has_told_of_yet_is_pending() {
    // Without a Lease it would let nobody make one.
    let cell = Cell::installed("untold", QUICK, "--set fence.policy.enabled=false");
    let spec = json!({"taskId": "untold", "repository": "org/repo", "commitSha": "abc",
        "workers": 1, "digest": "d"});
    apply(
        &cell,
        &json!({"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask",
            "metadata": {"name": "untold"}, "spec": spec}),
    );
    let get = |flags: &[&str]| {
        let get = ["-n", "untold", "get", "workertask", "untold"];
        cell.cluster.kubectl(&[&get[..], flags].concat())
    };
    assert!(get(&[]).contains("Pending"), "{}", get(&["-o", "yaml"]));
}

#[test]
fn kubectl_tells_a_tasks_story() {
    let cell = Cell::start("story", QUICK);
    cell.ask(0, &scale_up("story", "3"));
    wait_for("they run", SOON, || {
        (cell.ask(1, &["status", "story"])["running"] == 3).then_some(())
    });
    cell.succeed("otto-agent-story-1");
    cell.succeed("otto-agent-story-2");
    let end = json!({"status": {"phase": "Failed", "containerStatuses": [{"name": "worker", "ready": false,
        "restartCount": 0, "image": "i", "imageID": "", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled",
        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z"}}}]}});
    cell.cluster.kubectl(&[
        "-n",
        "story",
        "patch",
        "pod",
        "otto-agent-story-3",
        "--subresource=status",
        "-p",
        &end.to_string(),
    ]);
    let told = "2 succeeded, 1 failed (OOMKilled)";
    wait_for("a line tells it", SOON, || {
        let lines = cell.cluster.kubectl(&["-n", "story", "get", "wt"]);
        lines.contains(told).then_some(())
    });
    let tasks = cell.cluster.json(&["-n", "story", "get", "wt"]);
    let conditions = tasks["items"][0]["status"]["conditions"].clone();
    let said = |n: usize| {
        (
            conditions[n]["type"].clone(),
            conditions[n]["status"].clone(),
            conditions[n]["reason"].clone(),
        )
    };
    assert_eq!(
        said(0),
        (json!("Created"), json!("True"), json!("AllCreated"))
    );
    assert_eq!(said(1), (json!("Finished"), json!("True"), json!("Failed")));
    let all = wait_for("events tell it", SOON, || {
        let all = events(&cell, "story");
        all.iter()
            .any(|(reason, _)| reason == "TaskFailed")
            .then_some(all)
    });
    assert!(all.contains(&("TaskFailed".into(), told.into())), "{all:?}");
    assert!(
        all.contains(&(
            "WorkerFailed".into(),
            "1 worker(s) failed: OOMKilled (index 3)".into()
        )),
        "{all:?}"
    );
    // How a worker came to start stays on its record, here after its pod went.
    wait_for("the pods are gone", SOON, || {
        cell.pods("story").is_empty().then_some(())
    });
    // Nobody served this one's log.
    let tasks = cell.cluster.json(&["-n", "story", "get", "wt"]);
    let cut = &tasks["items"][0]["status"]["conditions"][2];
    assert_eq!(
        (&cut["type"], &cut["status"], &cut["reason"]),
        (
            &json!("LogsDelivered"),
            &json!("False"),
            &json!("LogDrainTimeout")
        )
    );
    let message = cut["message"].as_str().unwrap();
    assert!(message.ends_with("of 1 worker(s) in time: 3"), "{message}");
    let worker = cell.ask(2, &["status", "story"])["workers"][2].clone();
    let times: Vec<&str> = [
        "queuedAt",
        "createdAt",
        "scheduledAt",
        "startedAt",
        "completedAt",
    ]
    .iter()
    .map(|key| worker[key].as_str().unwrap())
    .collect();
    assert!(times.iter().all(|at| at.len() == 20), "{worker}");
    assert!(times[..3].is_sorted(), "{worker}");
    cell.audit("story", 3, 1);
}

#[test]
fn without_an_otto_handler_pods_stay_for_a_while_and_nothing_is_told_to_be_missing() {
    let settings = [("OTTO_HANDLER_HOST", "none"), ("LOG_DRAIN_TIMEOUT", "5s")];
    let cell = Cell::start("alone", &settings);
    cell.ask(0, &scale_up("alone", "1"));
    wait_for("it runs", SOON, || {
        (cell.ask(1, &["status", "alone"])["running"] == 1).then_some(())
    });
    let now = jiff::Timestamp::now();
    let end = json!({"status": {"phase": "Succeeded", "containerStatuses": [{"name": "worker", "ready": false,
        "restartCount": 0, "image": "i", "imageID": "", "state": {"terminated": {"exitCode": 0, "reason": "Completed",
        "startedAt": now.to_string(), "finishedAt": now.to_string()}}}]}});
    let patch = [
        "-n",
        "alone",
        "patch",
        "pod",
        "otto-agent-alone-1",
        "--subresource=status",
        "-p",
    ];
    cell.cluster
        .kubectl(&[&patch[..], &[&end.to_string()]].concat());
    wait_for("its end is known, and its pod is there", SOON, || {
        let ended = cell.ask(2, &["status", "alone"])["succeeded"] == 1;
        (ended && cell.pods("alone").len() == 1).then_some(())
    });
    wait_for("its pod is gone", SOON, || {
        cell.pods("alone").is_empty().then_some(())
    });
    assert!(now.duration_until(jiff::Timestamp::now()).as_secs() >= 4);
    let tasks = cell.cluster.json(&["-n", "alone", "get", "wt"]);
    let conditions = &tasks["items"][0]["status"]["conditions"];
    assert_eq!(conditions.as_array().unwrap().len(), 2, "{conditions}");
    let note = cell.ask(1, &["logs", "alone"]);
    let said = note["message"].as_str().unwrap();
    assert!(said.contains("there is no otto-handler"), "{note}");
}

/// A name of this length that tells a number.
fn long(n: u32, length: usize) -> String {
    format!("{n:0length$}")
}

/// Everything at its longest at once, in an object that a real API server stores
/// (custom resources as the JSON that it serves).
#[test]
fn a_thousand_workers_with_the_longest_names_and_reasons_stay_within_384_kib() {
    let cell = Cell::installed("longest", QUICK, "--set fence.policy.enabled=false");
    // Quotes around key and value, a colon, braces and brackets around the maps.
    let config = "v".repeat(room_for_maps(MAX_TASK_WORKERS) - 24);
    let spec = TaskSpec {
        task_id: long(1, 256),
        repository: long(2, 256),
        commit_sha: long(3, 256),
        workers: MAX_TASK_WORKERS,
        build_config: [("K".to_owned(), config)].into(),
        triggered_by: long(4, 256),
        digest: long(5, 32),
        request_ids: (0..16).map(|n| long(n, 128)).collect(),
        traceparent: Some(long(6, 55)),
        ..TaskSpec::default()
    };
    let workers = (1..=MAX_TASK_WORKERS).map(|index| WorkerRecord {
        index,
        attempt: 11,
        phase: WorkerPhase::Failed,
        uid: Some(long(index, 36)),
        reason: long(index % 64, 26),
        message: long(index % 64, 128),
        exit_code: Some(255),
        node: long(index, 63),
        ip: "fd00:1234:5678:9abc:def0:1234:5678:9abc".into(),
        queued: Some(1_764_032_000),
        created: Some(1_764_032_001),
        scheduled: Some(1_764_032_002),
        prepared: Some(1_764_032_012),
        started: Some(1_764_033_000),
        first_line: Some(1_764_033_000),
        finished: Some(1_764_118_400),
        notified: Some(Notified {
            attempt: 10,
            state: NotifiedState::Running,
        }),
        failures: 10,
        ..WorkerRecord::default()
    });
    let status = TaskStatus {
        term: long(7, 200),
        workers: workers.collect(),
        ..TaskStatus::default()
    };
    let mut object = json!({"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask",
        "metadata": {"name": long(8, 63), "annotations": {"ottoscaler.io/term": long(7, 200)}}, "spec": spec});
    put(&cell, &["create"], &object);
    object["status"] = json!(status);
    put(&cell, &["replace", "--subresource=status"], &object);
    let path = format!(
        "/apis/ottoscaler.io/v1alpha1/namespaces/{}/workertasks/{}",
        cell.namespace,
        long(8, 63)
    );
    let stored = cell.cluster.kubectl(&["get", "--raw", &path]);
    println!("stored: {} bytes of {MAX_TASK_BYTES}", stored.len());
    assert!(stored.contains("managedFields") && stored.contains(&long(MAX_TASK_WORKERS, 63)));
    assert!((MAX_TASK_BYTES / 2..=MAX_TASK_BYTES).contains(&stored.len()));
    // And what is read is what was stored.
    let back: Value = serde_json::from_str(&stored).unwrap();
    let back: TaskStatus = serde_json::from_value(back["status"].clone()).unwrap();
    assert_eq!(back.workers, status.workers);
}
