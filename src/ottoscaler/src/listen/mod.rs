//! The listening side of every port: sockets, TLS, connections and their HTTP.
//!
//! Invariants:
//! - One socket listens at every address of both families, or at every address of IPv4 where the
//!   kernel has no IPv6.
//! - Every accepted socket has Nagle's algorithm off, so that a small response leaves at once.
//! - A peer that has not sent its first bytes within the opening timeout, a TLS handshake
//!   included, is disconnected. After that HTTP/2 keepalive finds dead peers, and
//!   [`ConnectionLimits::idle_timeout`] does where there is no keepalive.
//! - The connections of a port are bounded by a table, which no peer can fill alone.
//! - An error of `accept` neither ends the loop nor makes it spin.
//! - A connection ends in an orderly way: GOAWAY, the calls in flight, and after a grace period
//!   the rest. That happens at its age, at a change of what the replica trusts, and at the stop.
//!   Streams learn of it by [`ConnectionHandle::closing_of`].
//! - Every connection is a task of [`serve()`], which returns when all of them have ended.
mod backoff;
mod connection;
mod limits;
mod metrics;
mod peer;
mod serve;
mod socket;
mod table;
mod transport;

pub use limits::{ConnectionLimits, raise_open_files};
pub use metrics::Metrics;
pub use peer::{ConnectionHandle, PeerNames};
pub use serve::{Lifecycle, serve};
pub use socket::Listener;
