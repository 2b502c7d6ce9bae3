//! How creates follow what the watch has shown of them.
use std::time::Duration;

use jiff::Timestamp;

use super::{QUICK, scale_up};
use crate::{
    processes::{Cell, SOON},
    proxy::{Fault, Rule},
    support::wait_for,
};

const WORKERS: usize = 200;
/// More than are in flight while nothing is known of the server (`workers/limit.rs`).
const AHEAD: usize = 64;
/// Until the watch counts as dead.
const SILENT: Duration = Duration::from_millis(300);

/// When the API server received each create of this task's pods, sorted.
fn creates(cell: &Cell, task: &str) -> Vec<Timestamp> {
    let events = cell.audited(&format!("otto-agent-{task}-"));
    let made = events.iter().filter(|e| {
        e["verb"] == "create"
            && e["objectRef"]["resource"] == "pods"
            && e["objectRef"]["subresource"].is_null()
            && e["responseStatus"]["code"] == 201
    });
    let times = made.map(|e| e["requestReceivedTimestamp"].as_str()?.parse().ok());
    let mut times: Vec<Timestamp> = times.collect::<Option<_>>().unwrap();
    times.sort();
    times
}

#[test]
fn creates_wait_a_moment_each_for_a_watch_that_stands_still() {
    let cell = Cell::proxied("unseen", QUICK);
    let leader = cell.leader().unwrap();
    let watch = Rule::on("GET", "/pods?&watch=true", Fault::RequestLost);
    cell.proxies[leader].set(vec![watch]);
    cell.proxies[leader].cut_streams();
    wait_for("it asks for the watch again", SOON, || {
        (cell.proxies[leader].hits() > 0).then_some(())
    });
    let answer = scale_up(&cell, leader, "unseen", WORKERS);
    assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), WORKERS);
    let times = wait_for("the audit log has all creates", SOON, || {
        let times = creates(&cell, "unseen");
        (times.len() == WORKERS).then_some(times)
    });
    let took = |some: &[Timestamp]| some[some.len() - 1].duration_since(some[0]);
    let fastest = times.windows(AHEAD + 1).map(took).min().unwrap();
    println!(
        "{AHEAD} creates at the fastest in {fastest:?}, {WORKERS} in {:?}",
        took(&times)
    );
    assert!(Duration::try_from(fastest).unwrap() >= SILENT);
    cell.audit("unseen", WORKERS, 1);
}
