//! A rollout while work comes in.
use std::{
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use serde_json::{Value, json};

use super::{DONE, NAMESPACE, installed, wait_for};
use crate::support::program;

#[test]
fn a_rolling_update_under_continuous_scale_ups_is_not_felt() {
    let i = installed();
    let before = i.leader().unwrap();
    // A client that asks once, over a connection of its own: any refusal ends the
    // test here.
    let call = |n: usize| {
        let task = format!("roll-{n}");
        i.begins(&task);
        let asked = Instant::now();
        let request = json!({"task_id": task, "repository": "org/repo", "commit_sha": "abc",
            "worker_count": 1, "build_config": {"LINES": "3"}});
        let answer = i.cluster.run(&[
            "grpcurl",
            "-plaintext",
            "-emit-defaults",
            "-d",
            &request.to_string(),
            &i.service,
            "ottoscaler.v1.OttoscalerService/ScaleUp",
        ]);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], "SUCCESS", "{task}: {answer}");
        (task, asked.elapsed())
    };
    // One call at any time; the first is answered before, the last asked after.
    let mut answers = vec![call(0)];
    let is_over = AtomicBool::new(false);
    // Beside it calls of no weight, many enough to meet each moment. They end with
    // their input, also when this panics.
    let dial = program("dial");
    let mut dialler = i.cluster.command(&[&dial, "--server", &i.service]);
    let (input, output) = (Stdio::piped(), Stdio::piped());
    let dialler = dialler.stdin(input).stdout(output).spawn().unwrap();
    std::thread::scope(|s| {
        let client = s.spawn(|| {
            let mut last = false;
            while !last {
                last = is_over.load(Ordering::Relaxed);
                answers.push(call(answers.len()));
            }
        });
        let rollout = |args: &[&str]| {
            i.cluster
                .kubectl(&[&["-n", NAMESPACE, "rollout"], args].concat())
        };
        rollout(&["restart", "deployment/ottoscaler"]);
        let watch = ["status", "deployment/ottoscaler", "--timeout=150s"];
        rollout(&watch);
        wait_for("the last replica of before is gone", DONE, || {
            i.cluster
                .try_run(&["kubectl", "-n", NAMESPACE, "get", "pod", &before])
                .status
                .code()
                .filter(|code| *code != 0)
        });
        is_over.store(true, Ordering::Relaxed);
        client.join().unwrap();
    });
    let dialled = dialler.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&dialled.stdout);
    println!("{said}");
    assert!(dialled.status.success(), "{said}");
    let slowest = answers.iter().map(|(_, took)| took).max().unwrap();
    println!(
        "{} calls during the rollout, the slowest took {slowest:?}",
        answers.len()
    );
    assert!(answers.len() >= 3, "none during the rollout");
    assert_ne!(i.leader(), Some(before));
    let (last, _) = answers.last().unwrap();
    for task in ["roll-0", last] {
        i.wait_done(task, 1);
        i.check_logs(task, 1, 3);
    }
    for (task, _) in &answers {
        i.check_audit(task, 1, 1);
    }
}
