//! The Kubernetes API as this program uses it: clients, the WorkerTask
//! resource, watches into the index.
pub mod client;
pub mod convert;
pub mod crd;
pub mod events;
mod loggable;
pub mod watch;

pub use loggable::Loggable;

/// Which leader wrote an object; the fence policy compares it with the Lease.
pub const TERM: &str = "ottoscaler.io/term";
pub const LOG_CHECKPOINT: &str = "ottoscaler.io/log-checkpoint";
pub const TASK_ID: &str = "ottoscaler.io/task-id";
pub const REPOSITORY: &str = "ottoscaler.io/repository";
pub const COMMIT_SHA: &str = "ottoscaler.io/commit-sha";
pub const TRACEPARENT: &str = "ottoscaler.io/traceparent";
/// Label: attempts of a worker, from 1.
pub const ATTEMPT: &str = "ottoscaler.io/attempt";
/// Label: [`crate::domain::names::pod_key`].
pub const POD_KEY: &str = "ottoscaler.io/pod-key";
/// Label: the worker's index, from 1.
pub const WORKER_INDEX: &str = "worker-index";
/// Selects worker pods (those of the Go original too; owners tell them apart).
pub const WORKER_PODS: &str = "managed-by=ottoscaler,app=otto-agent";
