//! What an operator sees of the worker manager, in numbers.
use prometheus_client::{metrics::counter::Counter, registry::Registry};

/// Counts over all terms of this replica; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Transitions of which otto-handler was told in vain.
    pub(super) given_up: Counter,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ottoscaler_notifications_given_up",
            "Notifications of workers' states that otto-handler did not take until TASK_TTL",
            self.given_up.clone(),
        );
    }
}
