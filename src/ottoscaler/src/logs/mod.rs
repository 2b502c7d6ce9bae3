//! Log lines of workers to otto-handler, on the leader only; and to whoever asks for
//! them (`show.rs`), on any replica.
//!
//! One session per worker: follow → window → ForwardWorkerLogs → checkpoint. What
//! holds: entries of a worker go out in file order; a line counts as delivered
//! only when it was acknowledged; a checkpoint covers acknowledged lines only, so
//! whoever resumes from it gives the same line the same sequence; what the node
//! no longer has is told by a gap record. Memory is bounded, per worker and in all: what
//! is ahead of otto-handler waits on disk (`spool.rs`), and where that is full nothing
//! more is read, and the node's file is the buffer.
mod forward;
mod read;
mod view;

pub use forward::{Context, Forwarder};
pub use view::LogViewer;
