//! Leader election on a Kubernetes Lease: the protocol.
//!
//! - A [`Candidate`](candidate::Candidate) is one participant of the contest for a Lease.
//! - [`lease`] decides when a Lease may be acquired.
//! - A [`Term`](term::Term) is one period of leadership, and the fencing token of its writes.
//! - [`Timings`] say how long a Lease lasts and how often it is renewed.
#![deny(missing_docs)]
pub mod candidate;
pub mod lease;
pub mod term;
mod timings;

pub use timings::{InvalidTimings, Timings};
