//! The backoff of `accept`.
use std::{io, time::Duration};

use tokio::time::{Instant, sleep};

/// The delay after the first failed `accept`. It doubles up to [`MAX_BACKOFF`]. Without a delay a
/// process that is out of files would spin.
const MIN_BACKOFF: Duration = Duration::from_millis(10);
/// The longest delay between two calls of `accept`: a second after files are free again connections
/// are accepted.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// The time between two log lines while `accept` keeps failing: a person reads one a minute.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// An `AcceptBackoff` delays the next `accept` after an error. It logs the first error in a row,
/// then how many there were at intervals, and the end.
#[derive(Debug, Default)]
pub(super) struct AcceptBackoff {
    /// The number of errors in a row.
    errors: u32,
    last_logged: Option<Instant>,
}

impl AcceptBackoff {
    /// Returns what was accepted, or none after it has waited for the backoff.
    pub(super) async fn handle<T>(&mut self, accepted: io::Result<T>) -> Option<T> {
        match accepted {
            Ok(accepted) => {
                if self.errors > 0 {
                    tracing::info!(errors = self.errors, "connections are accepted again");
                    *self = Self::default();
                }
                Some(accepted)
            }
            // The peer left before it was accepted, which needs no backoff.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) =>
            {
                None
            }
            Err(error) => {
                let backoff = MIN_BACKOFF * 2_u32.pow(self.errors.min(10));
                self.errors = self.errors.saturating_add(1);
                if self
                    .last_logged
                    .is_none_or(|at| at.elapsed() >= LOG_INTERVAL)
                {
                    self.last_logged = Some(Instant::now());
                    tracing::warn!(
                        %error,
                        errors = self.errors,
                        "connections cannot be accepted; trying again. Is the limit of open files too low?"
                    );
                }
                sleep(backoff.min(MAX_BACKOFF)).await;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_accept_that_fails_is_tried_again_after_a_backoff() {
        let (mut backoff, mut tries, began) = (AcceptBackoff::default(), 0, Instant::now());
        while began.elapsed() < Duration::from_secs(60) {
            let failed: io::Result<()> = Err(Errno::MFILE.into());
            assert!(backoff.handle(failed).await.is_none());
            tries += 1;
        }
        assert!((60..80).contains(&tries), "{tries} tries in a minute");
        // Told at once, and once a minute.
        assert!(backoff.last_logged.is_some_and(|at| at == began));
        assert!(backoff.handle(Ok(())).await.is_some());
        assert_eq!(backoff.errors, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_left_before_it_was_accepted_delays_nobody() {
        let (mut backoff, began) = (AcceptBackoff::default(), Instant::now());
        for _ in 0..100 {
            let left: io::Result<()> = Err(Errno::CONNABORTED.into());
            assert!(backoff.handle(left).await.is_none());
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
