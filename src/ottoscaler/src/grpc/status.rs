//! GetWorkerStatus: a snapshot of this replica's index.
use std::time::Duration;

use prost::Message as _;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{Service, convert, errors, forward::put, listen::Peer};
use crate::{
    domain::{request::Selection, view::State},
    proto::{self, MAX_ANSWER},
};

/// Beyond this an answer is marked stale.
const STALE: Duration = Duration::from_secs(30);

/// What gRPC clients take of a message unless they are told to take more. They
/// refuse a longer one whole, and only when it was sent.
const USUAL_ANSWER: usize = 4 * 1024 * 1024;
/// What a client can ask for.
const LONGEST_ANSWER: usize = 64 * 1024 * 1024;

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
        let longest = longest_answer(request.metadata())?;
        let index = self.index.synced()?;
        let found = index.workers(&selection);
        let count = |state: State| {
            i32::try_from(found.iter().filter(|w| w.view.state() == state).count())
                .unwrap_or(i32::MAX)
        };
        let staleness = index.staleness();
        let answer = proto::WorkerStatusResponse {
            total_count: i32::try_from(found.len()).unwrap_or(i32::MAX),
            running_count: count(State::Running),
            pending_count: count(State::Pending),
            succeeded_count: count(State::Succeeded),
            failed_count: count(State::Failed),
            workers: found.iter().map(convert::worker).collect(),
            stale: staleness > STALE,
            paused: self.pause.why().as_deref().unwrap_or_default().to_owned(),
        };
        let bytes = answer.encoded_len();
        if bytes > longest {
            return Err(errors::too_long(found.len(), bytes, longest));
        }
        let peer = request.extensions().get::<Peer>();
        let place = self.answers.hold(bytes, peer).ok_or_else(|| {
            errors::exhausted("this replica holds as many answers as it takes; try again")
        })?;
        let mut response = Response::new(answer);
        response.extensions_mut().insert(place);
        put(
            response.metadata_mut(),
            "staleness-ms",
            &staleness.as_millis().to_string(),
        );
        Ok(response)
    }
}

fn longest_answer(metadata: &MetadataMap) -> Result<usize, Status> {
    let Some(value) = metadata.get(MAX_ANSWER) else {
        return Ok(USUAL_ANSWER);
    };
    let bytes = value.to_str().ok().and_then(|v| v.parse::<usize>().ok());
    let bytes =
        bytes.ok_or_else(|| Status::invalid_argument(format!("{MAX_ANSWER}: must be a number")))?;
    Ok(bytes.min(LONGEST_ANSWER))
}
