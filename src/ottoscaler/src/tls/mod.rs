//! The certificates of a replica, what it trusts, and the connections that it opens with them.
//!
//! Invariants:
//! - A [`TlsConfig`] is taken whole or not at all: its certificate, key and CAs belong together.
//! - A handshake uses the [`TlsConfig`] that is current when the handshake begins. A change ends no
//!   connection but those whose peer's certificate is no longer trusted.
//! - A peer is known by a fixed name in its certificate, whatever address is dialled.
mod config;
mod connector;
mod files;
#[cfg(test)]
pub(crate) mod test_certificates;

pub use config::{Tls, TlsConfig};
pub use connector::{Connector, TcpOptions, TlsPeer};
pub use files::{HandlerTls, ServingFiles};
