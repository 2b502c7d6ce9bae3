//! What a session is told, and what it asks the index.
use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;

use super::{budget::Budget, metrics::Metrics, spool::Spool};
use crate::{
    config::{self, AckMode},
    domain::pod::Pod,
    index::Index,
};

#[derive(Debug, Clone)]
pub struct Settings {
    pub ack: AckMode,
    pub ack_timeout: Duration,
    pub window: usize,
    pub namespace: String,
    /// How long the last lines of a pod that is gone are offered.
    pub drain_timeout: Duration,
    pub(super) spool: Spool,
    pub(super) budget: Budget,
    pub(super) metrics: Metrics,
}

impl Settings {
    pub fn new(handler: &config::Handler, namespace: &str, drain_timeout: Duration) -> Self {
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

/// What sessions ask the index.
pub(super) trait Pods: Clone + Send + Sync + 'static {
    /// The newest picture of this very pod; None once it is gone.
    fn latest(&self, pod: &Pod) -> Option<Arc<Pod>>;
}

impl Pods for Index {
    fn latest(&self, pod: &Pod) -> Option<Arc<Pod>> {
        self.pod(&pod.name).filter(|p| p.uid == pod.uid)
    }
}
