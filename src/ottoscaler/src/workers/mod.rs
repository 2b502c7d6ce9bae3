//! The worker manager; runs on the leader only.
//!
//! One loop plans and starts writes ([`engine`]); two mechanisms decide when a write goes.
//! The [`scheduler`] bounds what is in flight, by classes that share one adaptive limit. The
//! [`status_writer`] coalesces the changes of a task's status. Their constants are in
//! [`tuning`].
//!
//! Invariants: every decision follows from the index ([`crate::domain::plan`]), nothing is
//! counted from memory save writes in flight; of each object at most one write is in flight
//! ([`recent_keys`]); all writes go through the fenced client, so they end with the term.
mod admission;
mod caller;
#[cfg(test)]
mod clock_tests;
mod create;
mod created;
mod delete;
mod deletes;
mod engine;
mod limit;
mod manager;
mod metrics;
mod notify;
mod outcome;
mod pod;
mod recent_keys;
mod scale;
mod scheduler;
mod shared;
mod status_writer;
mod tasks;
#[cfg(test)]
mod test_api;
#[cfg(test)]
mod test_shared;
mod timetable;
mod tuning;
#[cfg(test)]
mod version_tests;
mod watch_lag;

pub use manager::{Manager, Parts};
pub use metrics::Metrics;
pub use scale::Scale;
