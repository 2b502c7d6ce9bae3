//! Tasks that shrink and grow again.
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    NAMESPACE, SOON, installed,
    matrix::{WAITS, shell},
    wait_for,
};
use crate::support::pass;

/// An attempt that inherited its predecessor's end would be gone within a second or two.
const LIVES: Duration = Duration::from_secs(5);

#[test]
fn a_task_that_shrank_grows_by_one_new_attempt_that_lives() {
    let i = installed();
    let task = "regrown";
    let names = |answer: &Value| -> BTreeSet<String> {
        let names = answer["workerPodNames"].as_array().unwrap().iter();
        names.map(|n| n.as_str().unwrap().to_owned()).collect()
    };
    // Those that run and that nobody deletes.
    let running = || -> BTreeSet<String> {
        let pods = i.cluster.pods(NAMESPACE, "task-id", task);
        let live = pods.iter().filter(|p| {
            p["status"]["phase"] == "Running" && p["metadata"]["deletionTimestamp"].is_null()
        });
        live.map(|p| p["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = names(&i.scale_up(task, 2, &shell(WAITS)));
    assert_eq!(first.len(), 2);
    wait_for("both run", SOON, || (running() == first).then_some(()));
    i.ottoctl(&i.service, &["scale-down", task, "-n", "1"]);

    let asked = Instant::now();
    let answer = i.scale_up(task, 2, &shell(WAITS));
    println!("{task}: {answer} after {:?}", asked.elapsed());
    assert_eq!(answer["status"], "SUCCESS", "{answer}");
    let second = names(&answer);
    let new: Vec<&String> = second.difference(&first).collect();
    assert_eq!(
        (second.len(), new.len()),
        (2, 1),
        "{second:?} after {first:?}"
    );
    assert!(new[0].ends_with("-r1"), "{new:?}");
    // What it names was made before it was said.
    i.check_audit(task, 3, 1);

    wait_for("the new attempt runs", SOON, || {
        (running() == second).then_some(())
    });
    pass(LIVES);
    assert_eq!(running(), second, "they go on");
    i.check_audit(task, 3, 1);
    i.ottoctl(&i.service, &["cancel", task]);
}
