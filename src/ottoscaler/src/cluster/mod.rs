//! The Kubernetes API as this program uses it: clients, the WorkerTask
//! resource, watches into the index.
pub mod client;
pub mod convert;
pub mod crd;
pub mod error;
pub mod events;
mod loggable;
pub mod object;
pub mod watch;

pub use loggable::Loggable;

/// Which leader wrote an object; the fence policy compares it with the Lease.
pub const TERM: &str = "ottoscaler.io/term";
/// How far otto-handler has the pod's log, as earlier versions stored it.
pub const LOG_CHECKPOINT: &str = "ottoscaler.io/log-checkpoint";
/// The last epoch that a reader of the pod's log has begun, or may have.
pub const LOG_EPOCH: &str = "ottoscaler.io/log-epoch";
pub const TASK_ID: &str = "ottoscaler.io/task-id";
pub const REPOSITORY: &str = "ottoscaler.io/repository";
pub const COMMIT_SHA: &str = "ottoscaler.io/commit-sha";
pub const TRACEPARENT: &str = "ottoscaler.io/traceparent";
/// Label: attempts of a worker, from 1.
pub const ATTEMPT: &str = "ottoscaler.io/attempt";
/// Label: [`crate::domain::names::pod_key`].
pub const POD_KEY: &str = "ottoscaler.io/pod-key";
