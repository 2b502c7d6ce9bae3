//! The handler of GetWorkerStatus: a snapshot of this replica's index.
use std::time::Duration;

use prost::Message as _;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{ReplicaService, convert, errors, forward::insert_metadata, listen::ConnectionHandle};
use crate::{
    domain::{request::Selection, view::ClientState},
    proto::{self, MAX_RESPONSE_BYTES_KEY},
};

/// The staleness of the index from which on a response is marked stale.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// The largest message in bytes that gRPC clients accept by default. They refuse a larger one only
/// after it was sent.
const DEFAULT_MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
/// The largest limit in bytes that a client can ask for.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;

pub(super) fn parse_selection(request: &proto::WorkerStatusRequest) -> Result<Selection, Status> {
    Selection::parse(
        &request.task_id,
        &request.worker_pod_name,
        &request.status_filter,
    )
    .map_err(errors::from_refusal)
}

impl ReplicaService {
    pub(super) fn status(
        &self,
        request: &Request<proto::WorkerStatusRequest>,
    ) -> Result<Response<proto::WorkerStatusResponse>, Status> {
        let selection = parse_selection(request.get_ref())?;
        let limit = max_response_bytes(request.metadata())?;
        let index = self.index.synced()?;
        let found = index.workers(&selection);
        let count = |state: ClientState| {
            i32::try_from(found.iter().filter(|w| w.view.state() == state).count())
                .unwrap_or(i32::MAX)
        };
        let staleness = index.staleness();
        let answer = proto::WorkerStatusResponse {
            total_count: i32::try_from(found.len()).unwrap_or(i32::MAX),
            running_count: count(ClientState::Running),
            pending_count: count(ClientState::Pending),
            succeeded_count: count(ClientState::Succeeded),
            failed_count: count(ClientState::Failed),
            workers: found.iter().map(convert::worker_status).collect(),
            stale: staleness > STALE_AFTER,
            paused: self.pause.why().as_deref().unwrap_or_default().to_owned(),
        };
        let bytes = answer.encoded_len();
        if bytes > limit {
            return Err(errors::response_too_large(found.len(), bytes, limit));
        }
        let peer = request.extensions().get::<ConnectionHandle>();
        let slot = self.response_bytes.reserve(bytes, peer).ok_or_else(|| {
            errors::resource_exhausted(
                "this replica has reached its maximum of unread responses; try again",
            )
        })?;
        let mut response = Response::new(answer);
        response.extensions_mut().insert(slot);
        insert_metadata(
            response.metadata_mut(),
            "staleness-ms",
            &staleness.as_millis().to_string(),
        );
        Ok(response)
    }
}

/// Reads the size limit that the client asks for, or returns the default.
fn max_response_bytes(metadata: &MetadataMap) -> Result<usize, Status> {
    let Some(value) = metadata.get(MAX_RESPONSE_BYTES_KEY) else {
        return Ok(DEFAULT_MAX_RESPONSE_BYTES);
    };
    let bytes = value.to_str().ok().and_then(|v| v.parse::<usize>().ok());
    let bytes = bytes.ok_or_else(|| {
        Status::invalid_argument(format!("{MAX_RESPONSE_BYTES_KEY}: must be a number"))
    })?;
    Ok(bytes.min(MAX_RESPONSE_BYTES))
}
