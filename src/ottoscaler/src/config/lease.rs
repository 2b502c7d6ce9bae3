//! Which timings of the Lease are safe and of use.
use std::time::Duration;

use super::{Invalid, Lease};

/// Of LEASE_DURATION.
const LONGEST_LEASE: Duration = Duration::from_secs(3_600);
/// Of LEASE_RETRY_PERIOD: below it a slow answer of the API server costs the term.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);

impl Lease {
    /// A leader must stop acting before anyone else may start, with room for
    /// more than one renewal.
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let bad = |name: &str, value: Duration, takes: String| {
            Err(Invalid {
                name: name.to_owned(),
                value: format!("{}ms", value.as_millis()),
                takes,
            })
        };
        // A crash must not leave the work undone for longer than anybody wants.
        if self.duration.subsec_nanos() != 0
            || self.duration.is_zero()
            || self.duration > LONGEST_LEASE
        {
            return bad(
                "LEASE_DURATION",
                self.duration,
                format!("whole seconds, from 1 to {}", LONGEST_LEASE.as_secs()),
            );
        }
        if self.renew_deadline >= self.duration {
            let takes = format!("less than LEASE_DURATION ({} s)", self.duration.as_secs());
            return bad("LEASE_RENEW_DEADLINE", self.renew_deadline, takes);
        }
        if self.retry_period < SHORTEST_RETRY || self.retry_period * 2 > self.renew_deadline {
            let takes = format!(
                "from {} ms to half of LEASE_RENEW_DEADLINE ({} ms)",
                SHORTEST_RETRY.as_millis(),
                self.renew_deadline.as_millis()
            );
            return bad("LEASE_RETRY_PERIOD", self.retry_period, takes);
        }
        Ok(())
    }

    /// What these timings mean, for whoever set them.
    pub fn log_timings(&self) {
        tracing::info!(
            lease_s = self.duration.as_secs(),
            // Of the API server, with the leader staying leader.
            outage_tolerated_ms = (self.renew_deadline - self.retry_period).as_millis(),
            // After a leader that neither released nor was proved dead.
            worst_takeover_ms = (self.duration + self.retry_period / 2).as_millis(),
            "lease timings"
        );
    }
}
