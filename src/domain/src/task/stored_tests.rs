#![expect(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::task::testing::longest;
use crate::task::{
    MAX_TASK_BYTES, MAX_TASK_WORKERS, Notified, NotifiedState, PastAttempt, TaskSpec, WorkerPhase,
};

fn stored(status: &TaskStatus) -> String {
    serde_json::to_string(status).unwrap()
}

fn loaded(text: &str) -> TaskStatus {
    serde_json::from_str(text).unwrap()
}

fn time() -> impl Strategy<Value = Option<i64>> {
    prop::option::of(1_700_000_000_i64..1_800_000_000)
}

fn phase() -> impl Strategy<Value = WorkerPhase> {
    prop::sample::select(WorkerPhase::ALL.to_vec())
}

fn past() -> impl Strategy<Value = PastAttempt> {
    let times = prop::array::uniform3(time());
    (1_u32..4, times, any::<bool>()).prop_map(|(attempt, times, terminated)| {
        let [created, started, finished] = times;
        PastAttempt {
            attempt,
            created,
            started,
            finished,
            terminated,
        }
    })
}

fn record() -> impl Strategy<Value = WorkerRecord> {
    let times = prop::array::uniform7(time());
    let texts = ("[a-c]?", "[a-z]{0,2}", "[n-p]?", "[0-9]?");
    let told = prop::option::of((1_u32..4, prop::sample::select(NotifiedState::ALL.to_vec())));
    let rest = (
        told,
        time(),
        0_u32..4,
        any::<bool>(),
        (prop::option::of(0_u32..4), 0_u32..3),
        prop::option::of(any::<i32>()),
        prop::collection::vec(past(), 0..6),
    );
    (phase(), 1_u32..4, times, texts, rest).prop_map(|(phase, attempt, times, texts, rest)| {
        let [
            queued,
            created,
            scheduled,
            prepared,
            started,
            first_line,
            finished,
        ] = times;
        let (reason, message, node, ip) = texts;
        let (told, not_before, failures, stopping, (cut, tries), exit_code, past) = rest;
        WorkerRecord {
            attempt,
            phase,
            uid: created.map(|at| at.to_string()),
            reason,
            message,
            exit_code,
            node,
            ip,
            queued,
            created,
            scheduled,
            prepared,
            started,
            first_line,
            finished,
            stopping,
            notified: told.map(|(attempt, state)| Notified { attempt, state }),
            not_before,
            failures,
            tries,
            cut,
            past,
            ..WorkerRecord::default()
        }
    })
}

fn status(mut workers: Vec<WorkerRecord>) -> TaskStatus {
    for (n, worker) in (1..).zip(&mut workers) {
        worker.index = n;
    }
    fit(&mut workers);
    TaskStatus {
        workers,
        ..TaskStatus::default()
    }
}

proptest! {
    #[test]
    fn what_is_stored_comes_back(workers in prop::collection::vec(record(), 0..150)) {
        let status = status(workers);
        prop_assert_eq!(loaded(&stored(&status)), status);
    }
}

fn worker(reason: &str, message: &str) -> WorkerRecord {
    WorkerRecord {
        reason: reason.into(),
        message: message.into(),
        ..WorkerRecord::default()
    }
}

/// What `kubectl get workertasks -o yaml` shows of it.
#[test]
fn a_worker_is_one_row_of_text() {
    let worker = WorkerRecord {
        attempt: 2,
        phase: WorkerPhase::Failed,
        uid: Some("9ade-46f9".into()),
        exit_code: Some(-1),
        node: "node-1".into(),
        ip: "10.0.0.1".into(),
        queued: Some(1_000),
        created: Some(1_001),
        started: Some(1_005),
        notified: Some(Notified {
            attempt: 1,
            state: NotifiedState::Failed,
        }),
        ..worker("OOMKilled", "")
    };
    let status = status(vec![worker]);
    let text = serde_json::to_value(&status).unwrap();
    let row = "1 Failed attempt=2 uid=9ade-46f9 why=0 exit=-1 node=0 ip=10.0.0.1 since=1000 \
               times=0,1,,,5 told=1/Failed";
    assert_eq!(text["workers"][0], row);
    // A newer version may say more, and a person anything.
    let mut newer = text;
    newer["workers"][0] = format!("{row} luck=7 lucky why=x").into();
    let mut known = status;
    known.workers[0].reason.clear();
    let mut newer = loaded(&newer.to_string());
    assert_eq!(newer.workers, known.workers);
    // It goes back as it came, but for what is said anew.
    let mut back = |why: &str| {
        newer.workers[0].reason = why.into();
        let text = serde_json::to_value(&newer).unwrap();
        text["workers"][0].as_str().unwrap().to_owned()
    };
    let row = row.replace(" why=0", "");
    assert_eq!(back(""), format!("{row} luck=7 lucky why=x"));
    let row = row.replace(" exit", " why=0 exit");
    assert_eq!(back("Error"), format!("{row} luck=7 lucky"));
}

/// A phase, a time, a state that was told, a number out of every range: of none of them is
/// known what it means.
#[test]
fn a_row_that_is_not_understood_is_unknown_and_goes_back_as_it_came() {
    let row = "2 Running attempt=1 uid=u why=1 node=0 since=10 times=0,1 told=1/Created";
    for (what, by) in [
        ("Running", "Paused"),
        ("attempt=1", "attempt=4000000000"),
        ("attempt=1", "attempt=0"),
        ("since=10", "since=99999999999999999999"),
        ("times=0,1", "times=0,1,2,3,4,5,6,7"),
        ("times=0,1", "times=0,x"),
        ("told=1/Created", "told=1/Paused"),
        ("uid=u", "uid=u failures=-1"),
        ("uid=u", "uid=u exit=none"),
        ("uid=u", "uid=u stopping=maybe"),
        ("uid=u", "uid=u after=soon"),
    ] {
        let row = row.replace(what, by);
        let reasons = json!([{"reason": "A"}, {"reason": "B", "code": 9}, {"reason": "C"}]);
        let text = json!({
            "workers": ["1 Running attempt=1 uid=v", row],
            "reasons": reasons, "nodes": ["m", "n"],
        });
        let mut status = loaded(&text.to_string());
        let unknown = &status.workers[1];
        assert_eq!(
            (unknown.index, unknown.phase),
            (2, WorkerPhase::Unknown),
            "{row}"
        );
        assert_eq!(unknown.uid.as_deref(), Some("u"));
        // What it refers to stays where it is, whatever others say.
        status.workers[0].reason = "D".into();
        status.workers[0].node = "o".into();
        let back = serde_json::to_value(&status).unwrap();
        assert_eq!(back["workers"][1], row);
        assert_eq!(back["reasons"][1], reasons[1], "{back}");
        assert_eq!(back["nodes"][0], "m", "{back}");
        let again = loaded(&back.to_string());
        assert_eq!(again.workers, status.workers);
    }
}

#[test]
fn a_row_of_no_worker_costs_nothing_and_stays() {
    let strays = [
        "4000000000 Running attempt=1",
        "0 Queued",
        "-1 Queued",
        "",
        "x y z",
    ];
    let text = json!({"workers": [strays[0], "1 Running attempt=2", strays[1],
        "1 Failed attempt=1", strays[2], strays[3], strays[4]]});
    let status = loaded(&text.to_string());
    let known: Vec<_> = status
        .workers
        .iter()
        .map(|w| (w.index, w.attempt))
        .collect();
    assert_eq!(known, [(1, 2)]);
    let back = serde_json::to_value(&status).unwrap();
    let rows: Vec<_> = back["workers"].as_array().unwrap()[1..].iter().collect();
    assert_eq!(rows, strays);
}

/// Tables do not grow with each write while something is kept that may refer to them.
#[test]
fn what_nothing_refers_to_goes_from_the_tables() {
    let text = json!({"workers": ["1 Running attempt=1", "2 Paused attempt=1 why=2"],
        "reasons": [{"reason": "A"}, {"reason": "B"}, {"reason": "C"}]});
    let mut status = loaded(&text.to_string());
    for n in 0..100 {
        status.workers[0].reason = format!("R{n}");
        status = loaded(&stored(&status));
        assert_eq!(status.workers[1].reason, "C");
    }
    let back = serde_json::to_value(&status).unwrap();
    assert_eq!(back["reasons"].as_array().unwrap().len(), 3, "{back}");
}

#[test]
fn a_phase_and_fields_of_a_newer_version_are_read() {
    let text = json!({"phase": "Draining", "counts": {"total": 1, "paused": 1}, "quota": {"left": 3},
        "conditions": [{"type": "Throttled", "observedGeneration": 4}]});
    let status = loaded(&text.to_string());
    assert_eq!(status.phase, TaskPhase::Unknown);
    let back = serde_json::to_value(&status.conditions[0]).unwrap();
    assert_eq!(back["observedGeneration"], 4);
}

#[test]
fn numbers_out_of_bounds_are_read_within_them() {
    let text = json!({"taskId": "t", "repository": "r", "commitSha": "c", "digest": "d",
        "workers": 2_000_000_000, "ended": [0, 7, 1_001, 4_000_000_000_u32]});
    let spec: TaskSpec = serde_json::from_value(text).unwrap();
    assert_eq!(
        (spec.workers, spec.top()),
        (MAX_TASK_WORKERS, MAX_TASK_WORKERS)
    );
    assert_eq!(spec.ended, [7].into());
    let far = loaded(&json!({"finishedAt": i64::MAX,
        "workers": ["1 Running attempt=1000000 since=9223372036854775807 times=5,-5 after=9223372036854775807"]}).to_string());
    assert_eq!(far.workers[0].queued, Some(i64::MAX));
    assert_eq!(loaded(&stored(&far)).workers, far.workers);
}

#[test]
fn beyond_64_messages_a_worker_keeps_its_reason() {
    let many = (0..100).map(|n| worker("Error", &format!("message {n}")));
    let kept = status(many.collect()).workers;
    assert_eq!(kept.iter().filter(|w| !w.message.is_empty()).count(), 64);
    assert!(kept.iter().all(|w| w.reason == "Error"));
    let many = (0..100).map(|n| worker(&format!("Reason{n}"), ""));
    let kept = status(many.collect()).workers;
    assert_eq!(kept.iter().filter(|w| w.reason == OTHER).count(), 36);
}

#[test]
fn fitting_twice_changes_nothing() {
    let many = (0..200).map(|n| worker(&format!("Reason{}", n % 99), &format!("m{}", n % 77)));
    let once = status(many.collect());
    assert_eq!(status(once.workers.clone()), once);
}

#[test]
fn a_thousand_workers_with_the_longest_names_fit_beside_what_a_request_may_carry() {
    let (spec, status) = longest();
    let status = stored(&status).len();
    let spec_alone = serde_json::to_string(&spec).unwrap().len();
    println!("status {status} bytes, spec without maps {spec_alone}");
    let carried = crate::request::room_for_maps(MAX_TASK_WORKERS);
    // Name, uid, term, managed fields.
    let metadata = 4 * 1024;
    assert!(carried >= 16 * 1024, "{carried}");
    assert!(status + spec_alone + carried + metadata <= MAX_TASK_BYTES);
}
