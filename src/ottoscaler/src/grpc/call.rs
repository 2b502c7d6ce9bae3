//! A ScaleUp or ScaleDown on its way to the leader and back.
use tokio::time::Instant;

use super::callers::Caller;
use crate::{
    domain::{
        request::{Refusal, ScaleDown, ScaleRequest, ScaleUp},
        template::Policy,
    },
    proto,
};

/// A method that only the leader can execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScaleMethod {
    Up,
    Down,
}

/// A request of such a method that has passed every check.
#[derive(Debug, Clone)]
pub(super) enum Checked {
    Up(Box<ScaleUp>),
    Down(ScaleDown),
}

impl Checked {
    /// # Errors
    /// [`Refusal::Invalid`] with every wrong field.
    pub(super) fn parse(
        method: ScaleMethod,
        request: ScaleRequest,
        policy: &Policy,
    ) -> Result<Self, Refusal> {
        match method {
            ScaleMethod::Up => ScaleUp::parse(request, policy).map(|up| Self::Up(Box::new(up))),
            ScaleMethod::Down => ScaleDown::parse(request).map(Self::Down),
        }
    }
}

/// A `ScaleCall` is a checked request together with everything that travels to the leader with it.
#[derive(Debug, Clone)]
pub(super) struct ScaleCall {
    pub(super) checked: Checked,
    /// The request as it came, for the hop to the leader.
    pub(super) request: proto::ScaleRequest,
    pub(super) request_id: String,
    pub(super) traceparent: Option<String>,
    pub(super) deadline: Instant,
    /// The term whose leader must answer. It is set exactly when another replica forwarded the
    /// call, so such a call has already crossed its one hop.
    pub(super) target_term: Option<String>,
    /// None with CALLERS=none.
    pub(super) caller: Option<Caller>,
}

/// A `RoutedResponse` is the leader's response together with the resource versions that a watch
/// must reach to show it.
#[derive(Debug, Clone)]
pub(super) struct RoutedResponse {
    pub(super) response: proto::ScaleResponse,
    pub(super) task_version: u64,
    pub(super) pod_version: u64,
}
