//! The logs of workers: reading them from the nodes (`read`), forwarding them to otto-handler on
//! the leader (`forward`), and showing them to people on any replica (`view`). `forward` and
//! `view` import `read`, and nothing of each other.
//!
//! Invariants:
//! - The entries of a worker are sent in file order.
//! - A line counts as delivered only when it was acknowledged. A checkpoint covers acknowledged
//!   lines only, so whoever resumes from it gives the same line the same sequence number.
//! - A gap record tells of lines that the node no longer has.
//! - Memory is bounded, for each worker and in all. Lines that otto-handler has yet to take wait
//!   on disk (`forward/spool.rs`). Where that is full, nothing more is read, and the node's file
//!   is the buffer.
mod forward;
mod read;
mod view;

pub use forward::{Context, Forwarder};
pub use view::LogViewer;
