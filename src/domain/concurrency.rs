//! How many creates are under way at once: as many as the API server takes.
//!
//! Additive increase while answers come fast and all places are in use,
//! multiplicative decrease when the server says that it is too much; at most one
//! decrease for the requests of one round. Times are Durations of any clock.
use std::time::Duration;

const FIRST: f64 = 32.0;
const LEAST: f64 = 4.0;
const MOST: f64 = 256.0;
const DECREASE: f64 = 0.7;
/// Answers slower than this are no reason for more: what is sent beyond it waits at
/// the API server, and each request under way is a connection of its own.
const SLOW: Duration = Duration::from_millis(400);
/// And slower than this, one for less.
const TOO_SLOW: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, PartialEq)]
pub struct Concurrency {
    limit: f64,
    /// Requests sent before this belong to the round that was cut already.
    cut: Duration,
    /// Nothing is sent before this.
    held: Duration,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            limit: FIRST,
            cut: Duration::ZERO,
            held: Duration::ZERO,
        }
    }
}

impl Concurrency {
    /// How many more may be sent while `under_way` are.
    pub fn room(&self, under_way: usize, now: Duration) -> usize {
        if now < self.held {
            return 0;
        }
        (self.limit as usize).saturating_sub(under_way)
    }

    /// When there may be room again, if it is a matter of time.
    pub fn held_until(&self, now: Duration) -> Option<Duration> {
        Some(self.held).filter(|held| now < *held)
    }

    /// One was answered; `under_way` counts it.
    pub fn answered(&mut self, sent: Duration, now: Duration, under_way: usize) {
        let took = now.saturating_sub(sent);
        if took > TOO_SLOW {
            self.less(sent, now);
        } else if took < SLOW && under_way >= self.limit as usize {
            self.limit = (self.limit + 1.0).min(MOST);
        }
    }

    /// One was turned away: too many requests, or no answer in time.
    pub fn refused(&mut self, sent: Duration, now: Duration, retry_after: Duration) {
        self.less(sent, now);
        self.held = self.held.max(now + retry_after);
    }

    fn less(&mut self, sent: Duration, now: Duration) {
        if sent >= self.cut {
            self.limit = (self.limit * DECREASE).max(LEAST);
            self.cut = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn it_grows_only_while_all_places_are_in_use_and_answers_are_fast() {
        let mut c = Concurrency::default();
        c.answered(MS(0), MS(10), 5);
        assert_eq!(c.room(0, MS(10)), 32);
        c.answered(MS(0), MS(450), 32);
        assert_eq!(c.room(0, MS(450)), 32);
        for n in 0..1_000 {
            c.answered(MS(n), MS(n + 50), 300);
        }
        assert_eq!(c.room(0, MS(9_999)), 256);
    }

    #[test]
    fn a_round_of_refusals_is_one_decrease() {
        let mut c = Concurrency::default();
        for _ in 0..32 {
            c.refused(MS(100), MS(200), Duration::ZERO);
        }
        assert_eq!(c.room(0, MS(200)), 22);
        c.refused(MS(250), MS(300), Duration::ZERO);
        assert_eq!(c.room(0, MS(300)), 15);
        for n in 0..99 {
            c.refused(MS(300 + n), MS(300 + n), Duration::ZERO);
        }
        assert_eq!(c.room(0, MS(999)), 4);
    }

    #[test]
    fn retry_after_is_waited_for() {
        let mut c = Concurrency::default();
        c.refused(MS(0), MS(10), MS(1_000));
        assert_eq!(c.room(0, MS(500)), 0);
        assert_eq!(c.held_until(MS(500)), Some(MS(1_010)));
        assert_eq!(c.room(0, MS(1_010)), 22);
        assert_eq!(c.held_until(MS(1_010)), None);
    }

    #[test]
    fn a_server_that_answers_in_seconds_gets_less() {
        let mut c = Concurrency::default();
        c.answered(MS(0), MS(5_000), 32);
        assert_eq!(c.room(0, MS(5_000)), 22);
    }
}
