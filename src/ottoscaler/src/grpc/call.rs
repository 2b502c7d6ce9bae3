//! A ScaleUp or ScaleDown on its way to the leader and back.
use tokio::time::Instant;

use crate::proto;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Up,
    Down,
}

/// A call with what must travel along.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) verb: Verb,
    pub(super) request: proto::ScaleRequest,
    pub(super) request_id: String,
    pub(super) traceparent: Option<String>,
    pub(super) deadline: Instant,
    /// It came over the one hop already, meant for the leader of this term.
    pub(super) forwarded: Option<String>,
}

/// An answer, and how far a watch must come to show it.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) response: proto::ScaleResponse,
    pub(super) task_version: u64,
    pub(super) pod_version: u64,
}
