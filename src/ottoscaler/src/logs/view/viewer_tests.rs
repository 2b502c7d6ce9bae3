//! A task's lines for people, from nodes in memory.
#![expect(clippy::unwrap_used)]
use std::{convert::Infallible, time::Duration};

use http::{Request, Response};
use kube::client::Body;
use tokio::time::timeout;

use super::*;
use crate::{
    cluster::watch::WatchHandler as _,
    domain::{
        pod::PodPhase,
        task::{Task, TaskSpec},
    },
    index::{PodFeed, TaskFeed},
};

const SOON: Duration = Duration::from_secs(60);

/// Every container has printed so many lines.
fn node(lines: usize) -> kube::Client {
    let service = tower::service_fn(move |request: Request<Body>| async move {
        assert!(request.uri().path().ends_with("/log"), "{request:?}");
        let log: String = (0..lines)
            .map(|n| format!("2026-01-01T00:00:{n:02}.000000001Z line {n}\n"))
            .collect();
        Ok::<_, Infallible>(Response::new(Body::from(log.into_bytes())))
    });
    kube::Client::new(service, "n")
}

fn pod(index: u32, phase: PodPhase) -> Pod {
    Pod {
        name: format!("otto-agent-t-{index}").into(),
        uid: format!("u{index}"),
        task: "t".into(),
        task_uid: "tu".into(),
        task_id: "t".into(),
        index,
        attempt: 1,
        resource_version: 1,
        phase,
        created: Some(0),
        started: (phase != PodPhase::Pending).then_some(1),
        finished: matches!(phase, PodPhase::Succeeded | PodPhase::Failed).then_some(2),
        ..Pod::default()
    }
}

fn index(pods: Vec<Pod>) -> Index {
    let task = Task {
        name: "t".into(),
        uid: "tu".into(),
        resource_version: 1,
        spec: TaskSpec {
            task_id: "t".to_owned(),
            workers: u32::try_from(pods.len()).unwrap(),
            ..TaskSpec::default()
        },
        ..Task::default()
    };
    let index = Index::default();
    TaskFeed(index.clone()).reset(vec![task], 1);
    PodFeed(index.clone()).reset(pods, 1);
    index
}

async fn shown(index: &Index, follow: bool) -> Option<Vec<ShownLine>> {
    let viewer = LogViewer::new(node(3), "n", index.clone(), true);
    let selection = Selection {
        task_id: Some("t".to_owned()),
        ..Selection::default()
    };
    let lines = viewer.lines(selection, follow, CancellationToken::new());
    let lines = lines.unwrap().map(Result::unwrap).collect();
    timeout(SOON, lines).await.ok()
}

#[tokio::test(start_paused = true)]
async fn without_following_the_last_line_there_is_now_is_the_end() {
    for pods in [
        vec![pod(1, PodPhase::Running)],
        vec![pod(1, PodPhase::Succeeded), pod(2, PodPhase::Running)],
        vec![pod(1, PodPhase::Failed), pod(2, PodPhase::Pending)],
        vec![pod(1, PodPhase::Pending)],
    ] {
        let has_logs = pods.iter().filter(|p| p.has_logs()).count();
        let lines = shown(&index(pods), false).await.expect("it never returned");
        let lines: Vec<_> = lines.iter().filter(|l| l.kind() != Kind::Note).collect();
        assert_eq!(lines.len(), 3 * has_logs);
        let last = lines.last().map_or("line 2", |line| &line.message);
        assert_eq!(last, "line 2");
    }
}

#[tokio::test(start_paused = true)]
async fn following_goes_on_for_as_long_as_the_task_does() {
    assert!(
        shown(&index(vec![pod(1, PodPhase::Running)]), true)
            .await
            .is_none()
    );
}
