//! How long a Lease lasts and how often it is renewed.
use std::time::Duration;

/// The longest lease duration: a crash must not leave the work undone for longer.
const MAX_LEASE_DURATION: Duration = Duration::from_secs(3_600);
/// The shortest retry period: below it one slow answer of the API server costs the term.
const MIN_RETRY_PERIOD: Duration = Duration::from_millis(100);

/// The timings of the contest. All candidates for a Lease should use the same ones.
///
/// With the defaults (6 s, 4 s, 1 s) a leader survives an API server that is away for 3 s,
/// and a leader that crashes without a proof of death is succeeded within 6.5 s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    /// How long an unchanged Lease is left alone by the other candidates; whole seconds.
    pub lease_duration: Duration,
    /// How long a leader acts after it has sent its last acknowledged renewal; shorter than
    /// `lease_duration`.
    pub renew_deadline: Duration,
    /// How long a leader waits between two renewals; at most half of `renew_deadline`.
    pub retry_period: Duration,
    /// How long the work may drain after a shutdown before it is told that it is lost.
    pub handover_timeout: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(6),
            renew_deadline: Duration::from_secs(4),
            retry_period: Duration::from_secs(1),
            handover_timeout: Duration::from_secs(20),
        }
    }
}

/// [`Timings`] with which two could lead at once, or that are of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTimings {
    /// `lease_duration` is out of range.
    #[error("lease_duration {0:?} must be whole seconds, from 1 s to 1 h")]
    LeaseDuration(Duration),
    /// `renew_deadline` is out of range.
    #[error("renew_deadline {0:?} must be less than lease_duration ({1:?})")]
    RenewDeadline(Duration, Duration),
    /// `retry_period` is out of range.
    #[error("retry_period {0:?} must be from 100 ms to half of renew_deadline ({1:?})")]
    RetryPeriod(Duration, Duration),
}

impl Timings {
    /// Checks that a leader stops acting before anybody else may start, with time for more
    /// than one renewal.
    ///
    /// # Errors
    /// The first timing that is out of range.
    pub fn validate(&self) -> Result<(), InvalidTimings> {
        let lease = self.lease_duration;
        if lease.subsec_nanos() != 0 || lease.is_zero() || lease > MAX_LEASE_DURATION {
            return Err(InvalidTimings::LeaseDuration(lease));
        }
        if self.renew_deadline >= lease {
            return Err(InvalidTimings::RenewDeadline(self.renew_deadline, lease));
        }
        if self.retry_period < MIN_RETRY_PERIOD || self.retry_period * 2 > self.renew_deadline {
            return Err(InvalidTimings::RetryPeriod(
                self.retry_period,
                self.renew_deadline,
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn timings(lease: u64, renew: u64, retry: u64) -> Result<(), InvalidTimings> {
        Timings {
            lease_duration: MS(lease),
            renew_deadline: MS(renew),
            retry_period: MS(retry),
            ..Timings::default()
        }
        .validate()
    }

    #[test]
    fn timings_that_are_safe_and_of_use_are_accepted() {
        assert_eq!(Timings::default().validate(), Ok(()));
        for (lease, renew, retry) in [
            (1_000, 999, 499),
            (60_000, 200, 100),
            (3_600_000, 3_599_999, 1_799_999),
        ] {
            assert_eq!(timings(lease, renew, retry), Ok(()));
        }
    }

    #[test]
    fn timings_that_let_two_lead_or_end_every_term_are_refused() {
        for lease in [0, 1_500, 3_601_000] {
            let refused = Err(InvalidTimings::LeaseDuration(MS(lease)));
            assert_eq!(timings(lease, 800, 200), refused);
        }
        for renew in [6_000, 7_000] {
            let refused = Err(InvalidTimings::RenewDeadline(MS(renew), MS(6_000)));
            assert_eq!(timings(6_000, renew, 1_000), refused);
        }
        for retry in [0, 99, 2_001] {
            let refused = Err(InvalidTimings::RetryPeriod(MS(retry), MS(4_000)));
            assert_eq!(timings(6_000, 4_000, retry), refused);
        }
    }
}
