//! What otto-handler and the kubelet talk to; every replica serves it.
//!
//! A handler is: check, one call, convert. ScaleUp and ScaleDown go through the
//! [`Router`] to the leader; status is answered from the index.
mod admin;
mod call;
mod convert;
mod deadline;
mod errors;
mod forward;
mod health;
mod limits;
mod listen;
mod reads;
mod router;
mod scale;
mod server;
mod status;
mod untaken;
mod watch;

pub use health::{Health, Probe};
pub use listen::{Guest, Listener, raise_open_files};
pub use router::Router;
pub use server::{Server, Stopped};

use crate::{domain::template::Policy, election::Pause};

/// The OttoscalerService of this replica.
#[derive(Debug, Clone)]
pub struct Service {
    router: std::sync::Arc<Router>,
    index: reads::Reads,
    /// The leader's too: a bad request ends where it came in.
    policy: std::sync::Arc<Policy>,
    pause: Pause,
    drain: tokio_util::sync::CancellationToken,
    /// Status answers, in bytes.
    answers: std::sync::Arc<untaken::Untaken>,
    /// WatchWorkers streams.
    watches: std::sync::Arc<untaken::Untaken>,
}
