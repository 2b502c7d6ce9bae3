//! gRPC health: `liveness` and `readiness` for the kubelet, `""` and the service
//! for clients. All are NOT_SERVING until something is known.
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, HealthService},
};

use crate::{election::Beat, index::Index};

pub(super) const SERVICE: &str = "ottoscaler.v1.OttoscalerService";
/// The election shows life at least once a retry period; so long without is
/// wedged.
const WEDGED: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What health is judged by.
#[derive(Debug, Clone)]
pub struct Probe {
    pub index: Index,
    pub beat: Beat,
    pub drain: CancellationToken,
}

impl Probe {
    fn is_alive(&self) -> bool {
        self.beat.silence() < WEDGED
    }

    /// Synced once is ready until the drain: a fault that all replicas share must not take
    /// all of them out. How old an answer is, it says itself.
    fn is_ready(&self) -> bool {
        self.index.synced() && !self.drain.is_cancelled()
    }
}

/// Publishes the judgement.
#[derive(Debug, Clone)]
pub struct Health(HealthReporter);

impl Default for Health {
    fn default() -> Self {
        Self(HealthReporter::new())
    }
}

impl Health {
    pub(super) fn service(&self) -> HealthService {
        HealthService::from_health_reporter(self.0.clone())
    }

    /// Runs until cancelled.
    pub async fn run(&self, probe: Probe, cancel: CancellationToken) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        let mut told = false;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = every.tick() => {}
                // At once: what a rollout waits for, and what ends new calls.
                () = probe.index.wait_synced(), if !probe.index.synced() => {}
                () = probe.drain.cancelled(), if !told => told = true,
            }
            let word = |good: bool| {
                if good {
                    ServingStatus::Serving
                } else {
                    ServingStatus::NotServing
                }
            };
            self.0
                .set_service_status("liveness", word(probe.is_alive()))
                .await;
            for name in ["", SERVICE, "readiness"] {
                self.0
                    .set_service_status(name, word(probe.is_ready()))
                    .await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;
    use crate::election::{Clock, Time};

    /// Milliseconds since boot, as the test says.
    struct At(AtomicU64);

    impl Time for At {
        fn boot(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn started(&self) -> jiff::Timestamp {
            jiff::Timestamp::UNIX_EPOCH
        }
    }

    #[test]
    fn liveness_fails_only_once_the_election_is_silent_for_20_s() {
        let at = Arc::new(At(AtomicU64::new(5_000)));
        let probe = Probe {
            // As in an outage of the API server: nothing was ever heard.
            index: Index::default(),
            beat: Beat::new(Clock::new(at.clone())),
            drain: CancellationToken::new(),
        };
        for (now, is_alive) in [(5_000, true), (24_999, true), (25_000, false)] {
            at.0.store(now, Ordering::Relaxed);
            assert_eq!(probe.is_alive(), is_alive, "at {now} ms");
            assert!(!probe.is_ready());
        }
        probe.beat.strike();
        assert!(probe.is_alive());
        // A drain is no death.
        probe.drain.cancel();
        assert!(probe.is_alive() && !probe.is_ready());
    }
}
