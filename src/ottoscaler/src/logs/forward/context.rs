//! What all sessions have in common.
use std::time::Duration;

use prometheus_client::registry::Registry;

use super::{budget::Budget, metrics::Metrics, spool::Spool};
use crate::args::{AckMode, HandlerOptions};

/// Settings and shared resources of all sessions.
#[derive(Debug, Clone)]
pub struct Context {
    pub ack: AckMode,
    pub ack_timeout: Duration,
    pub window: usize,
    pub namespace: String,
    /// How long the last lines of a pod that is gone are offered to otto-handler.
    pub drain_timeout: Duration,
    pub(super) spool: Spool,
    pub(super) budget: Budget,
    pub(super) metrics: Metrics,
}

impl Context {
    pub fn new(handler: &HandlerOptions, namespace: &str, drain_timeout: Duration) -> Self {
        Self {
            ack: handler.ack,
            ack_timeout: handler.ack_timeout,
            window: handler.window,
            namespace: namespace.to_owned(),
            drain_timeout,
            spool: Spool::new(handler.spool_dir.clone(), handler.spool_size),
            budget: Budget::default(),
            metrics: Metrics::default(),
        }
    }

    pub fn register(&self, registry: &mut Registry) {
        self.budget.register(registry);
        self.spool.register(registry);
        self.metrics.register(registry);
    }
}
