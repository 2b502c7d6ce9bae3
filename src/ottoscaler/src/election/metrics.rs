//! The metrics of leadership.
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use fenced_lease::{AcquireReason, Barrier, Clock, Clocks, Event};
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

/// Cheap to clone. Written by the events of the contender, which the clients of its terms
/// report too.
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
enum Wall {
    /// Not sent: validity was over.
    Clock,
    /// Refused by the fence policy.
    Policy,
    /// Its object had changed.
    Version,
}

impl Wall {
    fn of(barrier: Barrier) -> Option<Self> {
        match barrier {
            Barrier::Clock => Some(Self::Clock),
            Barrier::Policy => Some(Self::Policy),
            Barrier::Version => Some(Self::Version),
            _ => None,
        }
    }
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

    pub(super) fn observe(&self, event: Event<'_>) {
        match event {
            Event::Acquired { term, reason } => {
                self.leader.set(1);
                self.term.set(term.transitions.into());
                let cause = reason.map_or("unknown", AcquireReason::as_str);
                self.count(Turn::Acquired, cause);
            }
            Event::Renewed {
                latency,
                valid_until,
            } => {
                self.renewed.observe(latency.as_secs_f64());
                let until = u64::try_from(valid_until.as_millis()).unwrap_or(0);
                self.deadline.until.store(until, Ordering::Relaxed);
            }
            Event::Ended { reason, .. } => {
                self.leader.set(0);
                self.deadline.until.store(0, Ordering::Relaxed);
                self.count(Turn::Lost, reason.as_str());
            }
            Event::WriteRefused(barrier) => {
                if let Some(wall) = Wall::of(barrier) {
                    self.refused.get_or_create(&Refused { wall }).inc();
                }
            }
            _ => {}
        }
    }

    fn count(&self, change: Turn, cause: &'static str) {
        self.changes.get_or_create(&Change { change, cause }).inc();
    }

    /// Returns how many writes were not sent because validity was over.
    pub fn refused_by_clock(&self) -> u64 {
        let wall = Wall::Clock;
        self.refused.get_or_create(&Refused { wall }).get()
    }
}

/// Registers how far the API server's clock is ahead.
pub fn register_skew(clocks: &Clocks, registry: &mut Registry) {
    registry.register_collector(Box::new(Skew(clocks.clone())));
}

#[derive(Debug)]
struct Skew(Clocks);

impl Collector for Skew {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let skew = ConstGauge::new(self.0.skew().as_secs_f64());
        let encoder = encoder.encode_descriptor(
            "ottoscaler_clock_skew",
            "How far the API server's clock is ahead of this replica's, at least; 0 where they may agree",
            Some(&Unit::Seconds),
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        skew.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use fenced_lease::EndReason;

    use super::*;

    #[test]
    fn an_operator_sees_who_leads_for_how_long_and_what_was_refused() {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        let clocks = Clocks::default();
        register_skew(&clocks, &mut registry);
        let term = &"u/7/h".parse().unwrap();
        let reason = Some(AcquireReason::Released);
        metrics.observe(Event::Acquired { term, reason });
        metrics.observe(Event::Renewed {
            latency: Duration::from_millis(3),
            valid_until: Clock::default().boot() + Duration::from_secs(60),
        });
        metrics.observe(Event::WriteRefused(Barrier::Policy));
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
            "ottoscaler_clock_skew_seconds 0.0",
        ] {
            assert!(now.contains(line), "no {line} in {now}");
        }
        let reason = EndReason::HandedOver;
        metrics.observe(Event::Ended { term, reason });
        let now = text();
        assert!(now.contains("ottoscaler_leader 0"), "{now}");
        let lost = "ottoscaler_leader_changes_total{change=\"Lost\",cause=\"handed over\"} 1";
        assert!(now.contains(lost), "{now}");
        assert!(
            now.contains("ottoscaler_lease_validity_seconds 0.0"),
            "{now}"
        );
    }
}
