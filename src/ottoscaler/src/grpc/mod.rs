//! The gRPC servers, which every replica runs. Callers are otto-handler, ottoctl and the kubelet.
//!
//! A handler checks the request, makes one call and converts the result. ScaleUp and ScaleDown go
//! through the [`Router`] to the leader. Status is answered from the index of this replica.
mod admin;
mod call;
mod callers;
mod changed_tasks;
mod convert;
mod deadline;
mod errors;
mod forward;
mod health;
mod limits;
mod page_token;
mod pages;
mod reads;
mod retry;
mod router;
mod scale;
mod server;
#[cfg(test)]
mod service_config_tests;
mod span;
mod status;
mod task_watch;
mod tasks;
#[cfg(test)]
mod test_tasks;
mod undelivered;
mod watch;

pub use callers::Callers;
pub use health::{Health, Probe};
pub use router::Router;
pub use server::{ServeError, Server};

use crate::{domain::template::Policy, election::Pause};

/// A `ReplicaService` implements the OttoscalerService of this replica.
#[derive(Debug, Clone)]
pub struct ReplicaService {
    router: std::sync::Arc<Router>,
    index: reads::SyncedIndex,
    /// The policy of the leader too, so that the replica which gets a bad request refuses it.
    policy: std::sync::Arc<Policy>,
    pause: Pause,
    /// The bytes of status responses that clients have yet to read.
    response_bytes: std::sync::Arc<undelivered::UndeliveredResponses>,
    /// The WatchWorkers streams in flight.
    watch_streams: std::sync::Arc<undelivered::UndeliveredResponses>,
}
