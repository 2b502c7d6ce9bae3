//! The Lease that the replicas compete for, and which of its timings are safe.
use std::time::Duration;

use fenced_lease::{InvalidTimings, Timings};

use super::{Invalid, values};

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
    /// ValidatingAdmissionPolicy that refuses what a former leader writes;
    /// NAMESPACE.ottoscaler-fence if not given.
    #[arg(long, env, value_name = "a name")]
    fence_policy: Option<String>,
}

/// The Lease, its timings and its fence.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    pub name: String,
    pub timings: Timings,
    pub fence_policy: Option<String>,
}

impl LeaseArgs {
    /// A leader must stop acting before anyone else may start, with room for more than one
    /// renewal.
    pub(super) fn options(self) -> Result<LeaseOptions, Invalid> {
        let timings = Timings {
            lease_duration: self.lease_duration,
            renew_deadline: self.lease_renew_deadline,
            retry_period: self.lease_retry_period,
            handover_timeout: self.handover_timeout,
        };
        timings.validate().map_err(|invalid| named(&invalid))?;
        Ok(LeaseOptions {
            name: self.lease_name,
            timings,
            fence_policy: self.fence_policy,
        })
    }
}

/// Names the setting that is not taken.
fn named(invalid: &InvalidTimings) -> Invalid {
    let (name, value, takes) = match invalid {
        InvalidTimings::LeaseDuration(value) => (
            "LEASE_DURATION",
            value,
            "whole seconds, from 1 to 3600".to_owned(),
        ),
        InvalidTimings::RenewDeadline(value, lease) => (
            "LEASE_RENEW_DEADLINE",
            value,
            format!("less than LEASE_DURATION ({} s)", lease.as_secs()),
        ),
        InvalidTimings::RetryPeriod(value, renew) => (
            "LEASE_RETRY_PERIOD",
            value,
            format!(
                "from 100 ms to half of LEASE_RENEW_DEADLINE ({} ms)",
                renew.as_millis()
            ),
        ),
    };
    Invalid::new(name, &format!("{}ms", value.as_millis()), &takes)
}

impl LeaseOptions {
    /// Logs what these timings mean, for whoever set them.
    pub fn log_timings(&self) {
        let timings = &self.timings;
        tracing::info!(
            lease_s = timings.lease_duration.as_secs(),
            // Of the API server, with the leader staying leader.
            outage_tolerated_ms = (timings.renew_deadline - timings.retry_period).as_millis(),
            // After a leader that neither released nor was proved dead.
            worst_takeover_ms = (timings.lease_duration + timings.retry_period / 2).as_millis(),
            "lease timings"
        );
    }
}
