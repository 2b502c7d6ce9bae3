#![expect(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::domain::task::{
    MAX_TASK_BYTES, MAX_TASK_WORKERS, Notified, NotifiedState, REMEMBERED_REQUESTS, TaskSpec,
    WorkerPhase,
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
        let (told, not_before, failures, stopping, (cut, tries), exit_code) = rest;
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
    assert_eq!(loaded(&newer.to_string()), known);
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

/// Everything at its longest, all at once: what no task can exceed.
fn longest() -> (TaskSpec, TaskStatus) {
    let long = |c: char, n: usize| c.to_string().repeat(n);
    let spec = TaskSpec {
        task_id: long('t', 256),
        repository: long('r', 256),
        commit_sha: long('c', 256),
        workers: MAX_TASK_WORKERS,
        triggered_by: long('b', 256),
        digest: long('d', 32),
        request_ids: vec![long('q', 128); REMEMBERED_REQUESTS],
        traceparent: Some(long('p', 55)),
        ..TaskSpec::default()
    };
    let workers = (1..=MAX_TASK_WORKERS).map(|n| WorkerRecord {
        attempt: 11,
        phase: WorkerPhase::Terminated,
        uid: Some(format!("{n:036}")),
        reason: format!("{n:026}"),
        message: format!("{n:0128}"),
        exit_code: Some(255),
        node: format!("{n:063}"),
        ip: "fd00:1234:5678:9abc:def0:1234:5678:9abc".into(),
        queued: Some(1_764_032_000),
        created: Some(1_764_032_001),
        scheduled: Some(1_764_032_002),
        prepared: Some(1_764_032_012),
        started: Some(1_764_033_000),
        first_line: Some(1_764_033_000),
        finished: Some(1_764_118_400),
        stopping: true,
        notified: Some(Notified {
            attempt: 10,
            state: NotifiedState::Terminated,
        }),
        failures: 10,
        tries: 99,
        cut: (n % 2 == 0).then_some(10),
        ..WorkerRecord::default()
    });
    let mut status = status(workers.collect());
    status.term = long('l', 200);
    status.finished_at = Some(1_764_118_400);
    let condition = Condition {
        kind: "Finished".into(),
        status: "True".into(),
        reason: "Cancelled".into(),
        message: long('m', 256),
        last_transition_time: "2026-11-25T01:00:00Z".into(),
    };
    status.conditions = vec![condition; 3];
    (spec, status)
}

#[test]
fn a_thousand_workers_with_the_longest_names_fit_beside_what_a_request_may_carry() {
    let (spec, status) = longest();
    let status = stored(&status).len();
    let spec_alone = serde_json::to_string(&spec).unwrap().len();
    println!("status {status} bytes, spec without maps {spec_alone}");
    let carried = crate::domain::request::room_for_maps(MAX_TASK_WORKERS);
    // Name, uid, term, managed fields.
    let metadata = 4 * 1024;
    assert!(carried >= 16 * 1024, "{carried}");
    assert!(status + spec_alone + carried + metadata <= MAX_TASK_BYTES);
}
