//! The OttoscalerAdminService. Any replica writes the pause, which every replica sees, and any
//! replica shows logs.
use std::pin::Pin;

use futures::{Stream, TryStreamExt as _};
use tonic::{Request, Response, Status};

use super::{
    callers::audit,
    errors::{self, record_outcome},
    reads::SyncedIndex,
};
use crate::{
    domain::request::Selection,
    election::{NO_REASON, Pause, PauseSwitch},
    listen::ConnectionHandle,
    logs::LogViewer,
    proto::{
        PauseRequest, PauseState, ResumeRequest, ShowLogsRequest, ShownLine,
        ottoscaler_admin_service_server::OttoscalerAdminService,
    },
};

/// The longest reason of a pause. It is a line that people read, stored in an annotation of the
/// Lease, which every renewal sends to every watch.
const MAX_REASON_BYTES: usize = 256;

/// An `Admin` implements the OttoscalerAdminService of this replica.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    pub(super) pause: Pause,
    pub(super) switch: PauseSwitch,
    pub(super) show: LogViewer,
    pub(super) index: SyncedIndex,
}

impl Admin {
    /// Pauses with a reason, or ends the pause without one.
    async fn set_pause(&self, reason: Option<&str>) -> Result<Response<PauseState>, Status> {
        let set = self.switch.set(reason).await;
        set.map_err(|error| errors::unavailable("PAUSE_NOT_STORED", error.to_string()))?;
        tracing::info!(paused = reason.is_some(), "pause set");
        let paused = self.pause.configured().or(reason).unwrap_or_default();
        Ok(Response::new(PauseState {
            paused: paused.to_owned(),
        }))
    }
}

#[tonic::async_trait]
impl OttoscalerAdminService for Admin {
    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseState>, Status> {
        let write = audit::Write::new("Pause", "", request.extensions(), false);
        let reason = request.into_inner().reason;
        let paused = record_outcome(
            if reason.len() > MAX_REASON_BYTES || reason.chars().any(char::is_control) {
                Err(Status::invalid_argument(format!(
                    "reason: must have at most {MAX_REASON_BYTES} bytes and no control characters"
                )))
            } else if reason.is_empty() {
                self.set_pause(Some(NO_REASON)).await
            } else {
                self.set_pause(Some(&reason)).await
            },
        );
        write.ended(&paused);
        paused
    }

    type ShowLogsStream = Pin<Box<dyn Stream<Item = Result<ShownLine, Status>> + Send>>;

    async fn show_logs(
        &self,
        request: Request<ShowLogsRequest>,
    ) -> Result<Response<Self::ShowLogsStream>, Status> {
        let closing = ConnectionHandle::closing_of(request.extensions());
        let ShowLogsRequest {
            task_id,
            worker_pod_name,
            follow,
        } = request.into_inner();
        let lines = if task_id.is_empty() {
            Err(Status::invalid_argument("task_id: must be given"))
        } else {
            Selection::parse(&task_id, &worker_pod_name, "")
                .map_err(errors::from_refusal)
                .and_then(|selection| self.index.synced().map(|_| selection))
                .and_then(|selection| self.show.lines(selection, follow, closing))
        };
        let lines = record_outcome(lines)?.map_err(errors::from_viewer);
        Ok(Response::new(Box::pin(lines)))
    }

    async fn resume(
        &self,
        request: Request<ResumeRequest>,
    ) -> Result<Response<PauseState>, Status> {
        let write = audit::Write::new("Resume", "", request.extensions(), false);
        let resumed = record_outcome(self.set_pause(None).await);
        write.ended(&resumed);
        resumed
    }
}
