//! Forwards the logs of workers to otto-handler, on the leader only.
mod backlog;
mod budget;
mod checkpoint;
mod context;
mod entry;
mod epochs;
mod forwarder;
mod metrics;
#[cfg(test)]
mod resume_model;
mod session;
mod shards;
mod spool;
mod window;

pub use context::Context;
pub use forwarder::Forwarder;
