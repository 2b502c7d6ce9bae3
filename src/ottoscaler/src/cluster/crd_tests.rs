//! Tests of the bounds in the chart's definition, which are applied as the API server does it.
//! Whatever this version writes must be within them.
#![expect(clippy::unwrap_used)]
use std::{collections::BTreeMap, sync::Mutex};

use regex::Regex;
use serde_json::{Value, json};

use crate::domain::{
    request::{ScaleRequest, ScaleUp, room_for_maps},
    task::{MAX_TASK_WORKERS, testing::longest},
};

/// Returns the schema of a WorkerTask in the chart.
pub(crate) fn schema() -> Value {
    let chart = include_str!("../../../../charts/ottoscaler/crds/workertasks.yaml");
    let chart: Value = serde_json::from_str(chart).unwrap();
    chart["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Returns what a schema refuses in a value, each with its path.
pub(crate) fn violations(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, value, "", &mut found);
    found
}

fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let is_kind = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        None => true,
        Some(other) => unreachable!("{other} at {path}"),
    };
    let mut wrong = |what: &str| found.push(format!("{path} {what}"));
    if !is_kind {
        return wrong("type");
    }
    let over = |key: &str, size: f64| schema[key].as_f64().is_some_and(|most| size > most);
    let under = |key: &str, size: f64| schema[key].as_f64().is_some_and(|least| size < least);
    #[expect(clippy::cast_precision_loss)]
    let size = |n: usize| n as f64;
    match value {
        Value::Number(n) => {
            let n = n.as_f64().unwrap();
            if over("maximum", n) || under("minimum", n) {
                wrong("range");
            }
        }
        Value::String(text) => {
            let length = size(text.chars().count());
            if over("maxLength", length) || under("minLength", length) {
                wrong("length");
            }
            let pattern = schema["pattern"].as_str();
            if pattern.is_some_and(|pattern| !is_match(pattern, text)) {
                wrong("pattern");
            }
        }
        Value::Array(all) => {
            if over("maxItems", size(all.len())) {
                wrong("items");
            }
            for (n, item) in all.iter().enumerate() {
                check(&schema["items"], item, &format!("{path}/{n}"), found);
            }
        }
        Value::Object(map) => {
            if over("maxProperties", size(map.len())) {
                wrong("properties");
            }
            let required = schema["required"].as_array().into_iter().flatten();
            for key in required.filter_map(Value::as_str) {
                if !map.contains_key(key) {
                    wrong(&format!("misses {key}"));
                }
            }
            for (key, value) in map {
                let of = match &schema["properties"][key] {
                    Value::Null => &schema["additionalProperties"],
                    known => known,
                };
                check(of, value, &format!("{path}/{key}"), found);
            }
        }
        _ => {}
    }
}

fn is_match(pattern: &str, text: &str) -> bool {
    static ALL: Mutex<BTreeMap<String, Regex>> = Mutex::new(BTreeMap::new());
    let mut all = ALL.lock().unwrap();
    let regex = all.entry(pattern.to_owned());
    let regex = regex.or_insert_with(|| Regex::new(pattern).unwrap());
    regex.is_match(text)
}

/// Removes the fields that the schema does not know, as the API server does before it stores an
/// object.
pub(crate) fn prune(schema: &Value, value: &mut Value) {
    match value {
        Value::Array(all) => all
            .iter_mut()
            .for_each(|item| prune(&schema["items"], item)),
        Value::Object(map) => {
            let keeps_all = schema["x-kubernetes-preserve-unknown-fields"] == true;
            let others = &schema["additionalProperties"];
            map.retain(|key, value| match &schema["properties"][key] {
                Value::Null if others.is_null() => keeps_all,
                Value::Null => {
                    prune(others, value);
                    true
                }
                known => {
                    prune(known, value);
                    true
                }
            });
        }
        _ => {}
    }
}

/// Returns a task in which everything has its maximum size.
fn largest() -> Value {
    let (spec, status) = longest();
    let mut spec = serde_json::to_value(spec).unwrap();
    spec["ended"] = json!([MAX_TASK_WORKERS]);
    spec["reason"] = json!("r".repeat(32 * 1024));
    spec["buildConfig"] = (0..128).map(|n| (format!("K{n}"), json!("v"))).collect();
    spec["metadata"] = json!({"k": "v".repeat(32 * 1024)});
    json!({ "spec": spec, "status": status })
}

#[test]
fn the_largest_task_is_taken() {
    assert_eq!(violations(&schema(), &largest()), [""; 0]);
    let mut pruned = largest();
    prune(&schema(), &mut pruned);
    assert_eq!(pruned, largest());
    // A task without a status is valid too.
    let bare = json!({"spec": largest()["spec"]});
    assert_eq!(violations(&schema(), &bare), [""; 0]);
}

/// Whatever a request may carry can be stored.
#[test]
fn the_bounds_are_those_of_a_request() {
    let text = |n| "x".repeat(n);
    let request = ScaleRequest {
        task_id: text(256),
        repository: text(256),
        commit_sha: text(256),
        triggered_by: text(256),
        reason: text(32 * 1024),
        worker_count: 1_000,
        build_config: (0..128).map(|n| (format!("K{n}"), String::new())).collect(),
        ..ScaleRequest::default()
    };
    let policy = crate::args::Options::from_lookup(&|_| None).unwrap().worker;
    let check = |change: &dyn Fn(&mut ScaleRequest)| {
        let mut request = request.clone();
        change(&mut request);
        ScaleUp::parse(request, &policy).is_ok()
    };
    let room = room_for_maps(1_000) - 4 * 1024;
    assert!(check(&|r| r.reason = text(room)));
    assert!(check(&|r| (r.reason, r.worker_count) = (text(32 * 1024), 1)));
    assert!(!check(
        &|r| (r.reason, r.worker_count) = (text(32 * 1024 + 1), 1)
    ));
    assert!(!check(&|r| r.worker_count = 1_001));
    assert!(!check(&|r| r.task_id = text(257)));
    assert!(!check(&|r| r.repository = text(257)));
    assert!(!check(&|r| r.commit_sha = text(257)));
    assert!(!check(&|r| r.triggered_by = text(257)));
    assert!(!check(&|r| drop(
        r.build_config.insert("K".into(), String::new())
    )));
}

#[test]
fn each_bound_is_held() {
    let (schema, text) = (schema(), |n: usize| json!("x".repeat(n)));
    let many = |n: usize, item: Value| json!(vec![item; n]);
    let entries = |n: usize| -> Value { (0..n).map(|n| (format!("K{n}"), json!(""))).collect() };
    for (path, value) in [
        ("/spec", json!(null)),
        ("/spec/workers", json!(1_001)),
        ("/spec/workers", json!(-1)),
        ("/spec/workers", json!(5_000_000_000_u64)),
        ("/spec/workers", json!("3")),
        ("/spec/workers", json!(null)),
        ("/spec/taskId", text(257)),
        ("/spec/taskId", json!("")),
        ("/spec/taskId", json!(7)),
        ("/spec/repository", text(257)),
        ("/spec/commitSha", text(257)),
        ("/spec/triggeredBy", text(257)),
        ("/spec/digest", text(257)),
        ("/spec/reason", text(32 * 1024 + 1)),
        ("/spec/traceparent", text(257)),
        ("/spec/ended", many(1_001, json!(1))),
        ("/spec/ended", json!([0])),
        ("/spec/ended", json!([1_001])),
        ("/spec/ended", json!([-1])),
        ("/spec/ended", json!("1")),
        ("/spec/buildConfig", entries(129)),
        ("/spec/buildConfig", json!({"K": "x".repeat(32 * 1024 + 1)})),
        ("/spec/buildConfig", json!({"K": 1})),
        ("/spec/metadata", entries(129)),
        ("/spec/metadata", json!({"K": "x".repeat(32 * 1024 + 1)})),
        ("/spec/requestIds", many(65, json!("q"))),
        ("/spec/requestIds", json!([1])),
        ("/status/term", text(513)),
        ("/status/phase", json!("x y")),
        ("/status/phase", json!("")),
        ("/status/phase", json!(1)),
        ("/status/phase", json!("P".repeat(33))),
        ("/status/counts/total", json!(-1)),
        ("/status/counts/pending", json!(1_000_001)),
        ("/status/counts/running", json!("1")),
        ("/status/counts/succeeded", json!(-1)),
        ("/status/counts/failed", json!(1_000_001)),
        ("/status/conditions", many(33, json!({"type": "T"}))),
        ("/status/conditions/0/type", text(317)),
        ("/status/conditions/0/status", text(17)),
        ("/status/conditions/0/reason", text(1_025)),
        ("/status/conditions/0/message", text(32 * 1024 + 1)),
        ("/status/conditions/0/lastTransitionTime", text(65)),
        ("/status/workers", many(2_001, json!("1 Queued"))),
        (
            "/status/workers/0",
            json!("1 Queued a=".to_owned() + &"x".repeat(1_024)),
        ),
        ("/status/workers/0", json!("Queued")),
        ("/status/workers/0", json!("-1 Queued")),
        ("/status/workers/0", json!("4000000000 Queued")),
        ("/status/workers/0", json!(1)),
        ("/status/reasons", many(2_001, json!({"reason": "r"}))),
        ("/status/reasons/0/reason", text(1_025)),
        ("/status/reasons/0/message", text(1_025)),
        ("/status/nodes", many(2_001, json!("n"))),
        ("/status/nodes/0", text(254)),
        ("/status/cut", text(16_385)),
        ("/status/finishedAt", json!("now")),
    ] {
        let mut task = largest();
        let (of, key) = path.rsplit_once('/').unwrap();
        let of = task.pointer_mut(of).unwrap();
        match key.parse::<usize>() {
            Ok(place) => of[place] = value,
            Err(_) => of[key] = value,
        }
        let found = violations(&schema, &task);
        assert!(
            found.iter().any(|at| at.starts_with(path)),
            "{path} is not held: {found:?}"
        );
    }
}

/// The definition of this version accepts and keeps the fields that a newer version writes.
#[test]
fn what_a_newer_version_adds_is_taken_and_kept() {
    let mut task = largest();
    task["spec"]["zone"] = json!({"name": "a"});
    let status = &mut task["status"];
    status["phase"] = json!("Draining");
    status["quota"] = json!({"left": [1, 2]});
    status["counts"]["paused"] = json!(1);
    status["conditions"][0]["observedGeneration"] = json!(4);
    status["reasons"][0]["code"] = json!(9);
    let row = status["workers"][0].as_str().unwrap().to_owned();
    status["workers"][0] = json!(row.replace(" Terminated ", " Paused ") + " luck=7 Lucky-2=x");
    assert_eq!(violations(&schema(), &task), [""; 0]);
    let mut pruned = task.clone();
    prune(&schema(), &mut pruned);
    assert_eq!(pruned, task);
}
