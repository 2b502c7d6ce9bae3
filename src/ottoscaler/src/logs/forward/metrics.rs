//! Metrics of log forwarding.
use std::{sync::atomic::AtomicI64, time::SystemTime};

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

use crate::logs::read::gap;

/// The metrics that all sessions share.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    /// Lines read from nodes.
    pub(super) lines: Counter,
    pub(super) bytes: Counter,
    pub(super) acknowledged: Counter,
    pub(super) retried: Counter,
    pub(super) dropped: Counter,
    /// Workers whose pods went before otto-handler had all of their logs.
    pub(super) cut: Counter,
    gaps: Family<Reason, Counter>,
    checkpoint_writes: Family<Outcome, Counter>,
    follows: Gauge<i64, AtomicI64>,
    lag: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// What became of a write of checkpoints.
#[derive(Debug, Clone, Copy)]
pub(super) enum CheckpointWrite {
    Stored,
    /// Somebody else had changed the shard; it was written once more.
    Conflict,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            lines: Counter::default(),
            bytes: Counter::default(),
            acknowledged: Counter::default(),
            retried: Counter::default(),
            dropped: Counter::default(),
            cut: Counter::default(),
            gaps: Family::default(),
            checkpoint_writes: Family::default(),
            follows: Gauge::default(),
            // 4 ms to 1 h.
            lag: Histogram::new(exponential_buckets(0.004, 4.0, 11)),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        for (name, help, counter) in [
            ("lines", "Log lines read from nodes", m.lines),
            (
                "acknowledged",
                "Log entries that otto-handler took",
                m.acknowledged,
            ),
            (
                "retried",
                "Log entries that otto-handler asked for again",
                m.retried,
            ),
            (
                "dropped",
                "Log entries that otto-handler gave up",
                m.dropped,
            ),
            (
                "cut",
                "Workers whose pods went before otto-handler had all of their logs",
                m.cut,
            ),
        ] {
            registry.register(format!("ottoscaler_log_{name}"), help, counter);
        }
        registry.register_with_unit(
            "ottoscaler_log",
            "Text of the log lines read from nodes",
            Unit::Bytes,
            m.bytes,
        );
        registry.register(
            "ottoscaler_log_gaps",
            "Places where log lines may be missing, by reason",
            m.gaps,
        );
        registry.register(
            "ottoscaler_log_checkpoint_writes",
            "Writes of the shards that hold the checkpoints of logs, by outcome",
            m.checkpoint_writes,
        );
        registry.register(
            "ottoscaler_log_follows",
            "Workers whose logs are being forwarded",
            m.follows,
        );
        registry.register_with_unit(
            "ottoscaler_log_lag",
            "From a line's timestamp on the node to its acknowledgement",
            Unit::Seconds,
            m.lag,
        );
    }

    /// Counts a log that is forwarded, until the guard is dropped.
    pub(super) fn follow(&self) -> Follow {
        self.follows.inc();
        Follow(self.follows.clone())
    }

    pub(super) fn gap(&self, reason: gap::Reason) {
        let reason = reason.as_str();
        self.gaps.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn checkpoint_write(&self, outcome: CheckpointWrite) {
        let outcome = match outcome {
            CheckpointWrite::Stored => "stored",
            CheckpointWrite::Conflict => "conflict",
            CheckpointWrite::Failed => "failed",
        };
        let outcome = Outcome { outcome };
        self.checkpoint_writes.get_or_create(&outcome).inc();
    }

    /// Notes that a line of that time is acknowledged. Its age is measured by two clocks, the
    /// node's and ours.
    pub(super) fn took(&self, line: jiff::Timestamp) {
        let age = SystemTime::now().duration_since(line.into());
        self.lag.observe(age.unwrap_or_default().as_secs_f64());
    }
}

#[derive(Debug)]
pub(super) struct Follow(Gauge<i64, AtomicI64>);

impl Drop for Follow {
    fn drop(&mut self) {
        self.0.dec();
    }
}
