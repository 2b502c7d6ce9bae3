//! ScaleUp and ScaleDown: check, route, convert.
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};
use tracing::Span;

use super::{
    Service,
    call::{Call, Verb},
    convert,
    deadline::Deadline,
    errors,
    forward::{FORWARDED, POD_VERSION, REQUEST_ID, TASK_VERSION, TERM, put},
    router::Router,
};
use crate::{proto, telemetry};

/// For this replica's own watch to show what was answered.
const CATCH_UP: Duration = Duration::from_millis(500);

impl Service {
    pub(super) async fn scale(
        &self,
        verb: Verb,
        request: Request<proto::ScaleRequest>,
    ) -> Result<Response<proto::ScaleResponse>, Status> {
        let meant_for = request.metadata().get(TERM).cloned();
        let mut result = self.answer(verb, request).await;
        if let Some(term) = meant_for {
            let metadata = match &mut result {
                Ok(response) => response.metadata_mut(),
                Err(status) => status.metadata_mut(),
            };
            metadata.insert(TERM, term);
        }
        result
    }

    async fn answer(
        &self,
        verb: Verb,
        request: Request<proto::ScaleRequest>,
    ) -> Result<Response<proto::ScaleResponse>, Status> {
        let (metadata, extensions, wire) = request.into_parts();
        let checked = convert::request(wire.clone(), String::new(), None);
        match verb {
            Verb::Up => checked.check_scale_up(&self.policy),
            Verb::Down => checked.check_scale_down(),
        }
        .map_err(errors::status)?;
        let text = |key: &str| {
            metadata
                .get(key)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned)
        };
        let call = Call {
            verb,
            request: wire,
            request_id: text(REQUEST_ID)
                .filter(|id| !id.is_empty() && id.len() <= 128)
                .unwrap_or_else(new_request_id),
            traceparent: telemetry::traceparent(&Span::current()).or_else(|| text("traceparent")),
            deadline: Router::deadline(extensions.get::<Deadline>().map(|d| d.left())),
            forwarded: metadata
                .contains_key(FORWARDED)
                .then(|| text(TERM).unwrap_or_default()),
        };
        let deadline = call.deadline;
        let answer = self.router.route(call).await?;
        let reached = self.index.reached(answer.task_version, answer.pod_version);
        // An answer that comes too late is none.
        let until = deadline.min(Instant::now() + CATCH_UP);
        let behind = timeout_at(until, reached).await.is_err();
        let mut response = Response::new(proto::ScaleResponse {
            behind,
            ..answer.response
        });
        put(
            response.metadata_mut(),
            TASK_VERSION,
            &answer.task_version.to_string(),
        );
        put(
            response.metadata_mut(),
            POD_VERSION,
            &answer.pod_version.to_string(),
        );
        Ok(response)
    }
}

fn new_request_id() -> String {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}
