//! The Kubernetes API as this program uses it: the configuration of clients, the WorkerTask
//! resource, the conversion of objects, Events, and watches.
pub mod client;
pub mod convert;
pub mod crd;
pub mod error;
pub mod events;
mod list;
mod loggable;
pub mod object;
mod pod_view;
pub mod watch;

pub use loggable::Loggable;

/// The annotation with the term of the leader that wrote an object; the fence policy compares
/// it with the Lease.
pub const TERM: &str = "ottoscaler.io/term";
/// The annotation in which earlier versions stored how far otto-handler has the pod's log.
pub const LOG_CHECKPOINT: &str = "ottoscaler.io/log-checkpoint";
/// The annotation with the highest epoch that a reader of the pod's log has begun, or may have
/// begun.
pub const LOG_EPOCH: &str = "ottoscaler.io/log-epoch";
/// The caller whose request last changed what is wanted of a task, where callers are known.
pub const CALLER: &str = "ottoscaler.io/caller";
pub const TASK_ID: &str = "ottoscaler.io/task-id";
pub const REPOSITORY: &str = "ottoscaler.io/repository";
pub const COMMIT_SHA: &str = "ottoscaler.io/commit-sha";
pub const TRACEPARENT: &str = "ottoscaler.io/traceparent";
/// The label with the attempt of a worker, counted from 1.
pub const ATTEMPT: &str = "ottoscaler.io/attempt";
/// The label with the [`crate::domain::names::pod_key`] of a pod.
pub const POD_KEY: &str = "ottoscaler.io/pod-key";
