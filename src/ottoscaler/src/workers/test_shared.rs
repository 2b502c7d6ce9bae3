//! What the manager's parts share, on an API server that a test plays.
#![expect(clippy::unwrap_used)]
use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    manager::{Manager, Parts},
    metrics::Metrics,
    shared::Shared,
};
use crate::{
    args::Options,
    domain::task::{Task, TaskSpec},
    election::{Clocks, Pause},
    handler::Drained,
    index::Index,
};

/// A client of an API server that answers a method, a path and a body so.
pub(super) fn client(
    answer: impl Fn(&str, &str, &Value) -> (u16, Value) + Send + Sync + 'static,
) -> kube::Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (code, value) = answer(parts.method.as_str(), parts.uri.path(), &body);
            let response = Response::builder().status(code);
            Ok::<_, tower::BoxError>(response.body(axum::body::Body::from(value.to_string()))?)
        }
    });
    kube::Client::new(service, "n")
}

/// As the API server refuses.
pub(super) fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code,
        "reason": reason, "message": message, "status": "Failure"});
    (code, status)
}

pub(super) fn shared(client: kube::Client, pause: Pause, settings: &[(&str, &str)]) -> Arc<Shared> {
    let lookup = |name: &str| settings.iter().find(|(n, _)| *n == name);
    let lookup = |name: &str| lookup(name).map(|(_, value)| (*value).to_owned());
    let config = Options::from_lookup(&lookup).unwrap();
    let caught_up = CancellationToken::new();
    caught_up.cancel();
    let parts = Parts {
        client: crate::election::test_client(client, "n", "u/1/h".parse().unwrap()),
        index: Index::default(),
        drained: Drained::default(),
        policy: Arc::new(config.worker),
        limits: config.limits,
        metrics: Metrics::default(),
        pause,
        clocks: Clocks::default(),
        caught_up,
        drain: CancellationToken::new(),
        lost: CancellationToken::new(),
    };
    Manager::new(&parts).shared
}

/// A task of some workers.
pub(super) fn task(name: &str, repository: &str, config: &[(&str, &str)]) -> Task {
    let config = config.iter();
    Task {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        spec: TaskSpec {
            task_id: name.to_owned(),
            repository: repository.to_owned(),
            workers: 1,
            build_config: config
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..TaskSpec::default()
        },
        ..Task::default()
    }
}
