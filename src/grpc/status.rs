//! GetWorkerStatus: a snapshot of this replica's index.
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::{Service, convert, errors, forward::put};
use crate::{
    domain::{request::Selection, view::State},
    proto,
};

/// Beyond this an answer is marked stale.
const STALE: Duration = Duration::from_secs(30);

pub(super) fn selection(request: &proto::WorkerStatusRequest) -> Result<Selection, Status> {
    Selection::parse(
        &request.task_id,
        &request.worker_pod_name,
        &request.status_filter,
    )
    .map_err(errors::status)
}

impl Service {
    pub(super) fn status(
        &self,
        request: &Request<proto::WorkerStatusRequest>,
    ) -> Result<Response<proto::WorkerStatusResponse>, Status> {
        let selection = selection(request.get_ref())?;
        if !self.index.synced() {
            return Err(Status::unavailable(
                "this replica has not seen the cluster yet; try again",
            ));
        }
        let found = self.index.workers(&selection);
        let count = |state: State| {
            i32::try_from(found.iter().filter(|w| w.view.state() == state).count())
                .unwrap_or(i32::MAX)
        };
        let staleness = self.index.staleness();
        let mut response = Response::new(proto::WorkerStatusResponse {
            total_count: i32::try_from(found.len()).unwrap_or(i32::MAX),
            running_count: count(State::Running),
            pending_count: count(State::Pending),
            succeeded_count: count(State::Succeeded),
            failed_count: count(State::Failed),
            workers: found.iter().map(convert::worker).collect(),
            stale: staleness > STALE,
            paused: self.pause.why().as_deref().unwrap_or_default().to_owned(),
        });
        put(
            response.metadata_mut(),
            "staleness-ms",
            &staleness.as_millis().to_string(),
        );
        Ok(response)
    }
}
