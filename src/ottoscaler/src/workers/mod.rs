//! The worker manager; runs on the leader only.
//!
//! One loop plans, effects run beside it. What holds: every decision follows
//! from the index ([`crate::domain::plan`]), nothing is counted from memory save
//! effects under way; of each effect (a create, a delete, a status write of a
//! task) at most one is under way; all writes go through the fenced client, so
//! they end with the term.
mod admission;
mod asked;
mod batch;
#[cfg(test)]
mod clock_tests;
mod create;
mod created;
mod delete;
mod drained;
mod effect;
mod engine;
mod manager;
mod metrics;
mod notify;
mod pace;
mod pod;
mod removals;
mod scale;
mod shared;
mod status;
#[cfg(test)]
mod test_api;
#[cfg(test)]
mod test_shared;
mod timetable;
mod unseen;
#[cfg(test)]
mod version_tests;

pub use drained::Drained;
pub use manager::{Manager, Parts};
pub use metrics::Metrics;
pub use notify::{Tell, Untold};
pub use scale::Scale;
