//! The limit of calls in flight follows what the API server and its watch take.
//!
//! Slow start doubles the limit with each round of answers in time; from the first answer
//! that meets congestion on, each round in time adds one (additive increase), and each
//! round that meets congestion or is turned away multiplies the limit by [`DECREASE`].
//!
//! Invariants: the limit lies between [`MIN_IN_FLIGHT`] and [`MAX_IN_FLIGHT`]; it grows
//! only while more than half of it is in use; calls that were sent before a decrease cause
//! no other.
use std::time::Duration;

use tokio::time::Instant;

use super::tuning::{CONGESTED, CONGESTED_RATIO, DECREASE, MAX_IN_FLIGHT, MIN_IN_FLIGHT};

/// A `Limit` says how many calls may be in flight.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    limit: f64,
    is_slow_start: bool,
    /// The fastest answer since nothing was in flight.
    fastest: Duration,
    decreased: Option<Instant>,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            limit: MIN_IN_FLIGHT as f64,
            is_slow_start: true,
            fastest: Duration::MAX,
            decreased: None,
        }
    }
}

impl Limit {
    pub(super) fn get(&self) -> usize {
        self.limit as usize
    }

    /// Takes in how long a call took; `in_flight` includes it.
    pub(super) fn answered(&mut self, sent: Instant, now: Instant, in_flight: usize) {
        let took = now - sent;
        self.fastest = self.fastest.min(took);
        let in_time = self.fastest.saturating_mul(CONGESTED_RATIO).max(CONGESTED);
        if took > in_time {
            self.congested(sent, now);
        } else if in_flight * 2 > self.get() {
            let step = if self.is_slow_start {
                1.0
            } else {
                1.0 / self.limit
            };
            self.limit = (self.limit + step).min(MAX_IN_FLIGHT as f64);
        }
    }

    /// Takes in that a call was turned away, not answered in time, or shown late by the watch.
    pub(super) fn congested(&mut self, sent: Instant, now: Instant) {
        self.is_slow_start = false;
        if self.decreased.is_none_or(|decreased| sent >= decreased) {
            self.limit = (self.limit * DECREASE).max(MIN_IN_FLIGHT as f64);
            self.decreased = Some(now);
        }
    }

    /// Starts anew, because nothing is in flight: what was learnt of the server grows old.
    pub(super) fn idle(&mut self) {
        *self = Self {
            decreased: self.decreased,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// The limit after so many answers, each of which took `took`.
    fn after(limit: &mut Limit, start: Instant, answers: usize, took: Duration) -> usize {
        for n in 0..answers {
            let sent = start + MS(1) * u32::try_from(n).unwrap_or(0);
            limit.answered(sent, sent + took, limit.get());
        }
        limit.get()
    }

    #[test]
    fn a_round_of_answers_in_time_doubles_it_until_one_meets_congestion() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        assert_eq!(after(&mut limit, start, 20, MS(10)), 40);
        assert_eq!(after(&mut limit, start, 40, CONGESTED), 80);
        limit.answered(start, start + MS(101), 80);
        assert_eq!(limit.get(), 56);
        let later = start + MS(200);
        assert_eq!(after(&mut limit, later, 57, MS(10)), 57);
        assert_eq!(after(&mut limit, later, 99_999, MS(10)), MAX_IN_FLIGHT);
    }

    #[test]
    fn it_does_not_grow_while_it_is_not_used() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        for _ in 0..99 {
            limit.answered(now, now + MS(10), MIN_IN_FLIGHT / 2);
        }
        assert_eq!(limit.get(), MIN_IN_FLIGHT);
    }

    #[test]
    fn a_round_that_meets_congestion_is_one_decrease() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        after(&mut limit, start, 80, MS(10));
        for _ in 0..100 {
            limit.congested(start, start + MS(300));
        }
        assert_eq!(limit.get(), 70);
        limit.congested(start + MS(300), start + MS(600));
        assert_eq!(limit.get(), 49);
        for n in 0..99 {
            limit.congested(start + MS(600 + n), start + MS(600 + n));
        }
        assert_eq!(limit.get(), MIN_IN_FLIGHT);
    }

    #[test]
    fn a_server_that_is_far_away_is_not_taken_for_busy() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        assert_eq!(after(&mut limit, start, 20, MS(250)), 40);
        limit.answered(start, start + MS(750), 40);
        assert_eq!(limit.get(), 41);
        limit.answered(start, start + MS(751), 41);
        assert_eq!(limit.get(), 28);
    }

    /// A server that takes four milliseconds for each call, one after another.
    #[test]
    fn what_waits_at_a_busy_server_stays_within_bounds() {
        let (mut limit, mut now) = (Limit::default(), Instant::now());
        let mut most = 0;
        // The first one that it takes waits for nobody.
        limit.answered(now, now + MS(4), 1);
        for _ in 0..9_999 {
            let took = MS(4) * u32::try_from(limit.get()).unwrap_or(0);
            limit.answered(now, now + took, limit.get());
            now += MS(4);
            most = most.max(limit.get());
        }
        assert!(most <= 26, "{most}");
        assert!(limit.get() >= MIN_IN_FLIGHT);
    }

    #[test]
    fn each_burst_begins_anew() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        after(&mut limit, start, 48, MS(10));
        limit.congested(start, start + MS(99));
        limit.idle();
        assert_eq!(limit.get(), MIN_IN_FLIGHT);
        // It knows nothing of how fast the server was.
        assert_eq!(after(&mut limit, start + MS(100), 20, MS(200)), 40);
    }
}
