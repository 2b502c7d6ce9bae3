//! The handlers of ScaleUp and ScaleDown: check, route, convert.
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};
use tracing::Span;

use super::{
    ReplicaService,
    call::{Checked, ScaleCall, ScaleMethod},
    callers::{Caller, audit},
    convert,
    deadline::CallDeadline,
    errors,
    forward::{FORWARDED, POD_VERSION, REQUEST_ID, TASK_VERSION, TERM, insert_metadata},
    router::Router,
};
use crate::{proto, telemetry};

/// The longest time that a response waits until this replica's own watch shows its effect. A watch
/// that lives lags by milliseconds; one that is dead must not hold up the answer.
const WATCH_CATCH_UP: Duration = Duration::from_millis(500);

impl ReplicaService {
    /// Answers a ScaleUp or ScaleDown. The response to a forwarded call repeats its term.
    pub(super) async fn scale(
        &self,
        method: ScaleMethod,
        request: Request<proto::ScaleRequest>,
    ) -> Result<Response<proto::ScaleResponse>, Status> {
        let target_term = request.metadata().get(TERM).cloned();
        let write = audit::Write::new(
            match method {
                ScaleMethod::Up => "ScaleUp",
                ScaleMethod::Down => "ScaleDown",
            },
            &request.get_ref().task_id,
            request.extensions(),
            request.metadata().contains_key(FORWARDED),
        );
        let mut result = self.answer(method, request).await;
        write.ended(&result);
        if let Some(term) = target_term {
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
        method: ScaleMethod,
        request: Request<proto::ScaleRequest>,
    ) -> Result<Response<proto::ScaleResponse>, Status> {
        let (metadata, extensions, wire) = request.into_parts();
        let metadata_text = |key: &str| {
            metadata
                .get(key)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned)
        };
        let request_id = metadata_text(REQUEST_ID)
            .filter(|id| !id.is_empty() && id.len() <= 128)
            .unwrap_or_else(new_request_id);
        let traceparent =
            telemetry::traceparent(&Span::current()).or_else(|| metadata_text("traceparent"));
        let mut request =
            convert::scale_request(wire.clone(), request_id.clone(), traceparent.clone());
        let caller = extensions.get::<Caller>().cloned();
        request.caller = caller.as_ref().map(|caller| caller.name.to_string());
        let policy = caller.as_ref().and_then(|caller| caller.policy.as_ref());
        let policy = policy.unwrap_or(&self.policy);
        let checked = Checked::parse(method, request, policy).map_err(errors::from_refusal)?;
        let call = ScaleCall {
            checked,
            request: wire,
            request_id,
            traceparent,
            deadline: Router::deadline(extensions.get::<CallDeadline>().map(|d| d.remaining())),
            target_term: metadata
                .contains_key(FORWARDED)
                .then(|| metadata_text(TERM).unwrap_or_default()),
            caller,
        };
        let deadline = call.deadline;
        let answer = self.router.route(call).await?;
        let reached = self.index.reached(answer.task_version, answer.pod_version);
        // The client's deadline bounds the wait: it ignores a response that comes later.
        let until = deadline.min(Instant::now() + WATCH_CATCH_UP);
        let behind = timeout_at(until, reached).await.is_err();
        let mut response = Response::new(proto::ScaleResponse {
            behind,
            ..answer.response
        });
        insert_metadata(
            response.metadata_mut(),
            TASK_VERSION,
            &answer.task_version.to_string(),
        );
        insert_metadata(
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
