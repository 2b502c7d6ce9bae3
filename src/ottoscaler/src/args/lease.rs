//! The Lease that the replicas compete for, and which of its timings are safe.
use std::time::Duration;

use super::{Invalid, values};

/// The longest LEASE_DURATION: a crash must not leave the work undone for longer.
const LONGEST_LEASE: Duration = Duration::from_secs(3_600);
/// The shortest LEASE_RETRY_PERIOD: below it a slow answer of the API server costs the term.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Election")]
pub(super) struct LeaseArgs {
    /// Lease that the replicas compete for.
    #[arg(long, env, default_value = "ottoscaler-leader", value_name = "a name")]
    lease_name: String,
    /// Time for which a silent leader keeps the Lease.
    #[arg(
        long,
        env,
        default_value = "6s",
        value_name = "whole seconds, up to 1h",
        value_parser = values::duration
    )]
    lease_duration: Duration,
    /// Time for which a leader acts after its last renewal.
    #[arg(long, env, default_value = "4s", value_name = "a duration", value_parser = values::duration)]
    lease_renew_deadline: Duration,
    /// Time between renewals, and between attempts to take the Lease.
    #[arg(long, env, default_value = "1s", value_name = "a duration", value_parser = values::duration)]
    lease_retry_period: Duration,
    /// Time to drain before the Lease is released.
    #[arg(long, env, default_value = "20s", value_name = "a duration", value_parser = values::duration)]
    handover_timeout: Duration,
}

/// The Lease and its timings.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    pub name: String,
    /// Whole seconds.
    pub duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
    pub handover_timeout: Duration,
}

impl LeaseArgs {
    /// A leader must stop acting before anyone else may start, with room for more than one
    /// renewal.
    pub(super) fn options(self) -> Result<LeaseOptions, Invalid> {
        let Self {
            lease_name,
            lease_duration,
            lease_renew_deadline,
            lease_retry_period,
            handover_timeout,
        } = self;
        let bad = |name: &str, value: Duration, takes: String| {
            Err(Invalid::new(
                name,
                &format!("{}ms", value.as_millis()),
                &takes,
            ))
        };
        if lease_duration.subsec_nanos() != 0
            || lease_duration.is_zero()
            || lease_duration > LONGEST_LEASE
        {
            return bad(
                "LEASE_DURATION",
                lease_duration,
                format!("whole seconds, from 1 to {}", LONGEST_LEASE.as_secs()),
            );
        }
        if lease_renew_deadline >= lease_duration {
            return bad(
                "LEASE_RENEW_DEADLINE",
                lease_renew_deadline,
                format!("less than LEASE_DURATION ({} s)", lease_duration.as_secs()),
            );
        }
        if lease_retry_period < SHORTEST_RETRY || lease_retry_period * 2 > lease_renew_deadline {
            return bad(
                "LEASE_RETRY_PERIOD",
                lease_retry_period,
                format!(
                    "from {} ms to half of LEASE_RENEW_DEADLINE ({} ms)",
                    SHORTEST_RETRY.as_millis(),
                    lease_renew_deadline.as_millis()
                ),
            );
        }
        Ok(LeaseOptions {
            name: lease_name,
            duration: lease_duration,
            renew_deadline: lease_renew_deadline,
            retry_period: lease_retry_period,
            handover_timeout,
        })
    }
}

impl LeaseOptions {
    /// Logs what these timings mean, for whoever set them.
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
