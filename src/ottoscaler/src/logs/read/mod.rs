//! Reads the log of a container, line by line, through the API server.
mod ends;
pub(super) mod follow;
pub(super) mod gap;
mod gate;
pub(super) mod line;
mod machine;
mod missing;
pub(super) mod pods;
pub(super) mod position;
mod reading;
mod reopen;
mod signals;
pub(super) mod tail;
