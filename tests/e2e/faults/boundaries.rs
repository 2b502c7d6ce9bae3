//! The leader dies at every boundary of its writes.
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use serde_json::Value;

use super::{QUICK, judge, judge_created, new_holder, scale_up};
use crate::{
    processes::{Cell, SOON},
    proxy::{Fault, Rule},
    support::{count_of, wait_for},
};

const WORKERS: usize = 3;

/// The writes of a ScaleUp of three workers, as far as there is always one.
const WRITES: [(&str, &str, &str, usize); 6] = [
    ("task", "POST", "/workertasks", 1),
    ("pod-1", "POST", "/pods", 1),
    ("pod-2", "POST", "/pods", 2),
    ("pod-3", "POST", "/pods", 3),
    ("status-1", "PATCH", "/workertasks/", 1),
    ("status-2", "PATCH", "/workertasks/", 2),
];

/// All in the full run, else four by a seed that is told.
fn boundaries() -> Vec<(String, Rule)> {
    let mut all: Vec<(String, Rule)> = WRITES
        .into_iter()
        .flat_map(|(name, method, path, nth)| {
            [("before", Fault::RequestLost), ("after", Fault::AnswerLost)].map(|(when, fault)| {
                let rule = Rule {
                    method,
                    path,
                    nth,
                    fault,
                };
                (format!("{when}-{name}"), rule)
            })
        })
        .collect();
    if std::env::var("OTTO_TEST_FULL").is_ok() {
        return all;
    }
    let random = RandomState::new().build_hasher().finish() as u32;
    let mut seed = count_of("OTTO_TEST_SEED", random as usize);
    println!("OTTO_TEST_SEED={seed}");
    let mut few = vec![];
    for _ in 0..4 {
        few.push(all.swap_remove(seed % all.len()));
        seed /= 7;
    }
    few
}

#[test]
fn a_leader_killed_at_any_write_of_a_scale_up_leaves_it_made_once() {
    let mut cell = Cell::proxied("edges", QUICK);
    let boundaries = boundaries();
    for (task, rule) in &boundaries {
        let (old, holder) = wait_for("a leader", SOON, || Some((cell.leader()?, cell.holder()?)));
        cell.proxies[old].set(vec![rule.clone()]);
        let answer = std::thread::scope(|s| {
            let ask = s.spawn(|| scale_up(&cell, (old + 1) % 3, task, WORKERS));
            wait_for("the write is on its way", SOON, || {
                (cell.proxies[old].hits() > 0).then_some(())
            });
            cell.replicas[old].signal("KILL");
            ask.join().unwrap()
        });
        cell.replicas[old].wait_exit();
        new_holder(&cell, &holder);
        let names = |answer: &Value| {
            let mut names = answer["workerPodNames"].as_array().unwrap().clone();
            names.sort_by_key(Value::to_string);
            names
        };
        let expected: Vec<String> = (1..=WORKERS)
            .map(|n| format!("otto-agent-{task}-{n}"))
            .collect();
        assert_eq!(names(&answer), expected, "{task}: {answer}");
        // And whoever asks again hears the same.
        let again = scale_up(&cell, (old + 2) % 3, task, WORKERS);
        assert_eq!(names(&again), expected, "{task}: {again}");
        assert_eq!(again["status"], "ALREADY_PROCESSED", "{task}: {again}");
        let audit = judge_created(&cell, task, WORKERS);
        println!("{task}: ok, {} terms so far", audit.terms.len());
        cell.proxies[old].heal();
        cell.replicas[old] = cell.replica(old);
        cell.wait_ready(&cell.replicas[old].address);
    }
    let terms = judge(&cell, None).terms.len();
    println!("{} boundaries, {terms} terms", boundaries.len());
    // Each successor wrote; the first leader may have died before it could.
    assert!(terms >= boundaries.len(), "{terms} terms only");
}
