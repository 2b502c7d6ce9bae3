//! The metrics of connections.
use std::sync::atomic::AtomicI64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Counts the connections of all ports. It is cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    open: Family<Port, Gauge<i64, AtomicI64>>,
    refused: Family<Refused, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Port {
    port: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    port: &'static str,
    reason: &'static str,
}

/// Why a connection was closed before its first call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The port has its maximum of connections, and no peer has more than this one.
    TableFull,
    /// The TLS handshake failed or took too long.
    Handshake,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ottoscaler_connections",
            "Open connections, by port",
            self.open.clone(),
        );
        registry.register(
            "ottoscaler_connections_refused",
            "Connections that were closed before their first call, by port and reason",
            self.refused.clone(),
        );
    }

    pub(super) fn refused(&self, port: &'static str, refusal: Refusal) {
        let reason = match refusal {
            Refusal::TableFull => "table_full",
            Refusal::Handshake => "tls_handshake",
        };
        self.refused.get_or_create(&Refused { port, reason }).inc();
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn open(&self, port: &'static str) -> OpenConnection {
        let gauge = self.open.get_or_create(&Port { port }).clone();
        gauge.inc();
        OpenConnection(gauge)
    }

    #[cfg(test)]
    pub(super) fn counts(&self, port: &'static str, refusal: &'static str) -> (i64, u64) {
        let refused = Refused {
            port,
            reason: refusal,
        };
        (
            self.open.get_or_create(&Port { port }).get(),
            self.refused.get_or_create(&refused).get(),
        )
    }
}

/// An `OpenConnection` is one connection in the gauge.
#[derive(Debug)]
pub(super) struct OpenConnection(Gauge<i64, AtomicI64>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
