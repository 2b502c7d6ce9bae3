//! What an operator sees of leadership, in numbers.
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric as _},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::Clock;
use fenced_lease::lease::AcquireReason;

use super::Term;

/// Shared by the contender and the clients of its terms.
#[derive(Debug, Clone)]
pub struct Metrics {
    leader: Gauge<i64, AtomicI64>,
    term: Gauge<i64, AtomicI64>,
    renewed: Histogram,
    changes: Family<Change, Counter>,
    refused: Family<Refused, Counter>,
    deadline: Arc<Deadline>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Change {
    change: Turn,
    cause: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Turn {
    Acquired,
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    wall: Wall,
}

/// What stopped a write that came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Wall {
    /// Not sent: validity was over.
    Clock,
    /// Refused by the fence policy.
    Policy,
    /// Its object had changed.
    Version,
}

/// When validity ends.
#[derive(Debug)]
struct Deadline {
    /// Milliseconds since boot; 0: not leading.
    until: AtomicU64,
    clock: Clock,
}

impl Collector for Deadline {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let until = Duration::from_millis(self.until.load(Ordering::Relaxed));
        let left = ConstGauge::new(until.saturating_sub(self.clock.boot()).as_secs_f64());
        let encoder = encoder.encode_descriptor(
            "ottoscaler_lease_validity",
            "How long this replica may lead without another renewal",
            Some(&Unit::Seconds),
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        left.encode(encoder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Clock::default())
    }
}

impl Metrics {
    /// `clock` is the contender's.
    pub fn new(clock: Clock) -> Self {
        Self {
            leader: Gauge::default(),
            term: Gauge::default(),
            // 1 ms to 4 s.
            renewed: Histogram::new(exponential_buckets(0.001, 2.0, 13)),
            changes: Family::default(),
            refused: Family::default(),
            deadline: Arc::new(Deadline {
                until: AtomicU64::new(0),
                clock,
            }),
        }
    }

    pub fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register("ottoscaler_leader", "1 while this replica leads", m.leader);
        registry.register(
            "ottoscaler_term",
            "leaseTransitions of the last term of this replica",
            m.term,
        );
        registry.register_with_unit(
            "ottoscaler_lease_renew",
            "From sending a renewal to its answer",
            Unit::Seconds,
            m.renewed,
        );
        registry.register(
            "ottoscaler_leader_changes",
            "Terms of this replica that began and ended, by cause",
            m.changes,
        );
        registry.register(
            "ottoscaler_refused_writes",
            "Writes that came too late, by what stopped them",
            m.refused,
        );
        registry.register_collector(Box::new(m.deadline));
    }

    pub(super) fn acquired(&self, term: &Term, why: Option<AcquireReason>) {
        self.leader.set(1);
        self.term.set(term.transitions.into());
        self.count(Turn::Acquired, why.map_or("unknown", AcquireReason::as_str));
    }

    pub(super) fn lost(&self, cause: &'static str) {
        self.leader.set(0);
        self.deadline.until.store(0, Ordering::Relaxed);
        self.count(Turn::Lost, cause);
    }

    fn count(&self, change: Turn, cause: &'static str) {
        self.changes.get_or_create(&Change { change, cause }).inc();
    }

    /// Acknowledged after `took`; we may act until then.
    pub(super) fn renewed(&self, took: Duration, valid_until: Duration) {
        self.renewed.observe(took.as_secs_f64());
        self.deadline.until.store(
            u64::try_from(valid_until.as_millis()).unwrap_or(0),
            Ordering::Relaxed,
        );
    }

    /// Writes that were not sent, for validity was over.
    pub fn refused_by_clock(&self) -> u64 {
        self.refused_by(Wall::Clock)
    }

    pub(super) fn refused_by(&self, wall: Wall) -> u64 {
        self.refused.get_or_create(&Refused { wall }).get()
    }

    pub(super) fn refused(&self, wall: Wall) {
        self.refused.get_or_create(&Refused { wall }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_sees_who_leads_for_how_long_and_what_was_refused() {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        let term = Term {
            lease_uid: "u".into(),
            transitions: 7,
            holder: "h".into(),
        };
        metrics.acquired(&term, Some(AcquireReason::Released));
        metrics.renewed(
            Duration::from_millis(3),
            Clock::default().boot() + Duration::from_secs(60),
        );
        metrics.refused(Wall::Policy);
        let text = || {
            let mut text = String::new();
            assert!(prometheus_client::encoding::text::encode(&mut text, &registry).is_ok());
            text
        };
        let now = text();
        for line in [
            "ottoscaler_leader 1",
            "ottoscaler_term 7",
            "ottoscaler_leader_changes_total{change=\"Acquired\",cause=\"released\"} 1",
            "ottoscaler_refused_writes_total{wall=\"Policy\"} 1",
            "ottoscaler_lease_renew_seconds_count 1",
            "ottoscaler_lease_validity_seconds 59.",
        ] {
            assert!(now.contains(line), "no {line} in {now}");
        }
        metrics.lost("handed over");
        let now = text();
        assert!(now.contains("ottoscaler_leader 0"), "{now}");
        assert!(
            now.contains("ottoscaler_lease_validity_seconds 0.0"),
            "{now}"
        );
    }
}
