//! Provides tasks for the tests of this crate and of those that use it (feature `testing`).
use super::{
    Condition, MAX_PAST, MAX_TASK_WORKERS, Notified, NotifiedState, PastAttempt,
    REMEMBERED_REQUESTS, TaskSpec, TaskStatus, WorkerPhase, WorkerRecord, fit,
};
/// Returns a task with each field at its longest, which no task can exceed.
pub fn longest() -> (TaskSpec, TaskStatus) {
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
        index: n,
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
        past: vec![
            PastAttempt {
                attempt: 10,
                created: Some(1_764_032_000),
                started: Some(1_764_032_999),
                finished: Some(1_764_118_400),
                terminated: true,
            };
            MAX_PAST
        ],
        ..WorkerRecord::default()
    });
    let mut workers: Vec<_> = workers.collect();
    fit(&mut workers);
    let mut status = TaskStatus {
        workers,
        ..TaskStatus::default()
    };
    status.term = long('l', 200);
    status.finished_at = Some(1_764_118_400);
    let condition = Condition {
        kind: "Finished".into(),
        status: "True".into(),
        reason: "Cancelled".into(),
        message: long('m', 256),
        last_transition_time: "2026-11-25T01:00:00Z".into(),
        ..Condition::default()
    };
    status.conditions = vec![condition; 3];
    (spec, status)
}
