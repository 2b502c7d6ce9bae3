//! The handler of GetWorkerStatus: a page of what this replica's index has.
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    ReplicaService, convert, errors, page_token,
    pages::{Page, PageLimits, Position},
    reads::Staleness,
};
use crate::{
    domain::{request::Selection, task::Counts},
    listen::ConnectionHandle,
    proto::{self, MAX_RESPONSE_BYTES_KEY, encoded},
};

/// The workers of a page whose client says nothing: the largest tasks fit into it.
const DEFAULT_PAGE_SIZE: usize = 2_000;
/// The bytes of a page whose client says nothing. gRPC clients accept 4 MiB by default and refuse
/// a larger message only after it was sent.
const DEFAULT_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// The largest limit in bytes that a client can ask for. One such response at a time may wait for
/// its client to read it.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;
/// What a response takes besides its workers: numbers, the token, and the reason of a pause.
const RESPONSE_HEAD_BYTES: usize = 1024;

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
    ) -> Result<Response<encoded::WorkerStatusResponse>, Status> {
        let selection = parse_selection(request.get_ref())?;
        let limits = page_limits(request.get_ref(), request.metadata())?;
        let after = page_token::position(&request.get_ref().page_token, |token| {
            Position::parse(token, &selection)
        })?;
        let index = self.index.synced()?;
        let page = Page::read(index, &selection, after.as_ref(), limits);
        if let Some(bytes) = page.oversized {
            return Err(errors::worker_too_large(bytes, limits.bytes));
        }
        let staleness = Staleness::of(index);
        let next = page.next.as_ref();
        let head = proto::WorkerStatusResponse {
            stale: staleness.is_stale(),
            paused: self.pause.why().as_deref().unwrap_or_default().to_owned(),
            next_page_token: next.map(|n| n.token(&selection)).unwrap_or_default(),
            ..counts_response(page.counts)
        };
        let peer = request.extensions().get::<ConnectionHandle>();
        let bytes = page.bytes + RESPONSE_HEAD_BYTES;
        let slot = self.response_bytes.reserve(bytes, peer).ok_or_else(|| {
            errors::resource_exhausted(
                "this replica has reached its maximum of unread responses; try again",
            )
        })?;
        let mut response = Response::new(encoded::WorkerStatusResponse {
            head,
            workers: page.workers,
        });
        response.extensions_mut().insert(slot);
        staleness.insert_into(response.metadata_mut());
        Ok(response)
    }
}

/// Returns a response with these counts and nothing else.
fn counts_response(counts: Counts) -> proto::WorkerStatusResponse {
    proto::WorkerStatusResponse {
        total_count: convert::count(counts.total),
        pending_count: convert::count(counts.pending),
        running_count: convert::count(counts.running),
        succeeded_count: convert::count(counts.succeeded),
        failed_count: convert::count(counts.failed),
        ..proto::WorkerStatusResponse::default()
    }
}

/// Reads what the client accepts in one response, or returns the defaults. A client that says how
/// many bytes it accepts gets as many workers as fit.
fn page_limits(
    request: &proto::WorkerStatusRequest,
    metadata: &MetadataMap,
) -> Result<PageLimits, Status> {
    let bytes = max_response_bytes(metadata)?;
    let workers = match page_token::size(request.page_size)? {
        Some(size) => size,
        None if bytes.is_some() => usize::MAX,
        None => DEFAULT_PAGE_SIZE,
    };
    let bytes = bytes.map_or(DEFAULT_PAGE_BYTES, |most| {
        most.saturating_sub(RESPONSE_HEAD_BYTES)
    });
    Ok(PageLimits { workers, bytes })
}

/// Reads the size limit that the client asks for.
fn max_response_bytes(metadata: &MetadataMap) -> Result<Option<usize>, Status> {
    let Some(value) = metadata.get(MAX_RESPONSE_BYTES_KEY) else {
        return Ok(None);
    };
    let bytes = value.to_str().ok().and_then(|v| v.parse::<usize>().ok());
    let bytes = bytes.ok_or_else(|| {
        Status::invalid_argument(format!("{MAX_RESPONSE_BYTES_KEY}: must be a number"))
    })?;
    Ok(Some(bytes.min(MAX_RESPONSE_BYTES)))
}
