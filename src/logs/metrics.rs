//! What an operator sees of logs, in numbers.
use std::{
    sync::{Arc, atomic::AtomicI64},
    time::SystemTime,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Shared by all sessions.
#[derive(Debug, Clone)]
pub(super) struct Metrics(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    /// Read from nodes.
    pub(super) lines: Counter,
    pub(super) bytes: Counter,
    pub(super) acknowledged: Counter,
    pub(super) retried: Counter,
    pub(super) dropped: Counter,
    gaps: Family<Reason, Counter>,
    follows: Gauge<i64, AtomicI64>,
    lag: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl std::ops::Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Inner {
            lines: Counter::default(),
            bytes: Counter::default(),
            acknowledged: Counter::default(),
            retried: Counter::default(),
            dropped: Counter::default(),
            gaps: Family::default(),
            follows: Gauge::default(),
            // 4 ms to 1 h.
            lag: Histogram::new(exponential_buckets(0.004, 4.0, 11)),
        }))
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let Inner {
            lines,
            bytes,
            acknowledged,
            retried,
            dropped,
            gaps,
            follows,
            lag,
        } = &**self;
        for (name, help, counter) in [
            ("lines", "Log lines read from nodes", lines),
            (
                "acknowledged",
                "Log entries that otto-handler took",
                acknowledged,
            ),
            (
                "retried",
                "Log entries that otto-handler asked for again",
                retried,
            ),
            ("dropped", "Log entries that otto-handler gave up", dropped),
        ] {
            registry.register(format!("ottoscaler_log_{name}"), help, counter.clone());
        }
        registry.register_with_unit(
            "ottoscaler_log",
            "Text of the log lines read from nodes",
            Unit::Bytes,
            bytes.clone(),
        );
        registry.register(
            "ottoscaler_log_gaps",
            "Places where log lines may be missing, by reason",
            gaps.clone(),
        );
        registry.register(
            "ottoscaler_log_follows",
            "Workers whose logs are being forwarded",
            follows.clone(),
        );
        registry.register_with_unit(
            "ottoscaler_log_lag",
            "From a line's timestamp on the node to its acknowledgement",
            Unit::Seconds,
            lag.clone(),
        );
    }

    /// A log is being forwarded, until that is dropped.
    pub(super) fn follow(&self) -> Follow {
        self.follows.inc();
        Follow(self.clone())
    }

    pub(super) fn gap(&self, reason: &'static str) {
        self.gaps.get_or_create(&Reason { reason }).inc();
    }

    /// A line of that time is acknowledged. By two clocks: a node's and ours.
    pub(super) fn took(&self, line: jiff::Timestamp) {
        let age = SystemTime::now().duration_since(line.into());
        self.lag.observe(age.unwrap_or_default().as_secs_f64());
    }
}

#[derive(Debug)]
pub(super) struct Follow(Metrics);

impl Drop for Follow {
    fn drop(&mut self) {
        self.0.follows.dec();
    }
}
