//! On the fake cluster: a real control plane, replicas as processes, pods that
//! nobody runs.
mod examples;
mod failures;
mod logs;
mod removal;
mod story;
mod template;

use serde_json::Value;

use super::{
    processes::{Cell, SOON, apply, put},
    support::wait_for,
};

pub const QUICK: &[(&str, &str)] = &[("LOG_DRAIN_TIMEOUT", "1s")];

pub fn scale_up<'a>(task: &'a str, workers: &'a str) -> Vec<&'a str> {
    vec![
        "scale-up",
        task,
        "-n",
        workers,
        "--repository",
        "org/repo",
        "--commit",
        "abc",
    ]
}

#[test]
fn fifty_workers_asked_for_at_every_replica_at_once_are_made_once() {
    let cell = Cell::start("many", QUICK);
    let answers: Vec<Value> = std::thread::scope(|s| {
        let asks: Vec<_> = (0..6)
            .map(|n| {
                s.spawn({
                    let cell = &cell;
                    move || cell.ask(n % 3, &scale_up("many", "50"))
                })
            })
            .collect();
        asks.into_iter().map(|a| a.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!(answer["workerPodNames"], answers[0]["workerPodNames"]);
        assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), 50);
    }
    assert_eq!(
        answers.iter().filter(|a| a["status"] == "SUCCESS").count(),
        1,
        "{answers:?}"
    );
    assert_eq!(cell.pods("many").len(), 50);
    cell.audit("many", 50, 1);
    wait_for("equal answers of all replicas", SOON, || {
        let all: Vec<Value> = (0..3).map(|n| cell.ask(n, &["status", "many"])).collect();
        (all.iter().all(|s| *s == all[0]) && all[0]["running"] == 50).then_some(())
    });
}

#[test]
fn another_request_under_a_task_id_is_refused_and_growth_is_not() {
    let cell = Cell::start("grow", QUICK);
    cell.ask(0, &scale_up("grow", "2"));
    let (code, _, err) = cell.ottoctl(
        1,
        &[
            "scale-up",
            "grow",
            "-n",
            "2",
            "--repository",
            "org/other",
            "--commit",
            "abc",
        ],
    );
    assert_eq!(code, 64 + 6, "{err}");
    assert!(err.contains("repository"), "{err}");
    assert_eq!(
        cell.ask(2, &scale_up("grow", "2"))["status"],
        "ALREADY_PROCESSED"
    );
    let grown = cell.ask(1, &scale_up("grow", "5"));
    assert_eq!(
        (
            grown["status"].as_str(),
            grown["workerPodNames"].as_array().unwrap().len()
        ),
        (Some("SUCCESS"), 5)
    );
    cell.ask(0, &["scale-down", "grow", "-n", "1"]);
    wait_for("one worker stays", SOON, || {
        (cell.pods("grow").len() == 1).then_some(())
    });
    cell.ask(0, &["cancel", "grow"]);
    wait_for("no worker stays", SOON, || {
        cell.pods("grow").is_empty().then_some(())
    });
    wait_for("TERMINATED is told", SOON, || {
        cell.notified("otto-agent-grow-1")
            .contains(&"TERMINATED".to_owned())
            .then_some(())
    });
    // Zero is final.
    assert_eq!(
        cell.ask(1, &scale_up("grow", "5"))["status"],
        "ALREADY_PROCESSED"
    );
    assert!(cell.pods("grow").is_empty());
    cell.audit("grow", 5, 1);
}

#[test]
fn a_handover_is_not_felt_and_workers_go_on() {
    let mut cell = Cell::start("hand", QUICK);
    cell.ask(0, &scale_up("hand", "3"));
    let leader = cell.leader().unwrap();
    cell.replicas[leader].signal("TERM");
    let other = (leader + 1) % 3;
    // Asked while nobody or somebody else leads: held, then answered.
    let answer = cell.ask(other, &scale_up("hand2", "2"));
    assert_eq!(answer["status"], "SUCCESS");
    assert_eq!(cell.replicas[leader].wait_exit(), 0);
    assert_ne!(cell.leader(), Some(leader));
    for n in 1..=3 {
        cell.succeed(&format!("otto-agent-hand-{n}"));
    }
    wait_for("finished pods are deleted", SOON, || {
        cell.pods("hand").is_empty().then_some(())
    });
    assert_eq!(cell.ask(other, &["status", "hand"])["succeeded"], 3);
    for n in 1..=3 {
        let worker = format!("otto-agent-hand-{n}");
        wait_for("COMPLETED is told", SOON, || {
            (cell.notified(&worker).last()? == "COMPLETED").then_some(())
        });
        assert_eq!(cell.notified(&worker), ["CREATED", "RUNNING", "COMPLETED"]);
    }
    cell.audit("hand", 3, 2);
}

#[test]
fn bad_input_names_each_field_and_writes_nothing() {
    let cell = Cell::start("bad", QUICK);
    let long = "x".repeat(300);
    let bad: [(&[&str], &str); 5] = [
        (&["scale-up", "", "-n", "1"], "task_id"),
        (&["scale-up", &long, "-n", "1"], "task_id"),
        (&["scale-up", "bad", "-n", "0"], "worker_count"),
        (&["scale-up", "bad", "-n", "1001"], "worker_count"),
        (
            &["scale-up", "bad", "-n", "1", "-e", "1X=y"],
            "build_config[1X]",
        ),
    ];
    for (args, field) in bad {
        for replica in 0..3 {
            let (code, _, err) = cell.ottoctl(replica, args);
            assert_eq!(code, 64 + 3, "{args:?}: {err}");
            assert!(err.contains(field), "{args:?}: {err}");
        }
    }
    let (code, _, err) = cell.ottoctl(0, &["status", "--state", "done"]);
    assert!(code == 64 + 3 && err.contains("status_filter"), "{err}");
    let tasks = cell
        .cluster
        .json(&["-n", &cell.namespace, "get", "workertasks"]);
    assert_eq!(tasks["items"].as_array().unwrap().len(), 0);
}
