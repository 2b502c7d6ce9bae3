//! OttoscalerAdminService: any replica writes the pause, every replica sees it.
use tonic::{Request, Response, Status};

use super::errors::answered;
use crate::{
    election::{NO_REASON, Pause, PauseSwitch},
    proto::{
        PauseRequest, PauseState, ResumeRequest,
        ottoscaler_admin_service_server::OttoscalerAdminService,
    },
};

const MAX_REASON: usize = 256;

#[derive(Debug, Clone)]
pub(super) struct Admin {
    pub(super) pause: Pause,
    pub(super) switch: PauseSwitch,
}

impl Admin {
    /// `why`: None ends the pause.
    async fn set(&self, why: Option<&str>) -> Result<Response<PauseState>, Status> {
        let set = self.switch.set(why).await;
        set.map_err(|error| Status::unavailable(error.to_string()))?;
        tracing::info!(why, "pause set");
        let paused = self.pause.configured().or(why).unwrap_or_default();
        Ok(Response::new(PauseState {
            paused: paused.to_owned(),
        }))
    }
}

#[tonic::async_trait]
impl OttoscalerAdminService for Admin {
    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseState>, Status> {
        let reason = request.into_inner().reason;
        answered(
            if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
                Err(Status::invalid_argument(format!(
                    "reason: must have at most {MAX_REASON} bytes and no control characters"
                )))
            } else if reason.is_empty() {
                self.set(Some(NO_REASON)).await
            } else {
                self.set(Some(&reason)).await
            },
        )
    }

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<PauseState>, Status> {
        answered(self.set(None).await)
    }
}
