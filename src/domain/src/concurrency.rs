//! How many creates are under way at once: as many as the API server takes.
//!
//! Each burst begins with few: a server that has just started takes seconds for each of
//! many. While most places are in use, an answer in time makes it one more, so that a
//! round doubles it; from the first that waited on, each round makes it one more or one
//! less, so that half of the answers wait. While others wait for news of the API server
//! there are a few where none of them waits, else one: each delays everybody's watches.
//! Once somebody has waited for a while there are a few anyway: news come for as long as
//! workers end, and who waits must not wait for ever. Multiplicative decrease when the
//! server says that it is too much, at most once for the requests of one round. Times are
//! Durations of any clock.
use std::time::Duration;

const FIRST: f64 = 8.0;
const LEAST: f64 = 4.0;
const MOST: f64 = 256.0;
const DECREASE: f64 = 0.7;
/// An answer that takes this many times the fastest of its burst waited for others: what
/// is sent beyond that waits at the API server, in the way of everybody's watches too.
const QUEUED: u32 = 3;
/// Faster than this is in time, whatever the fastest; slower than the other never is.
const SLOW: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(400));
/// And slower than this is a reason for less.
const TOO_SLOW: Duration = Duration::from_secs(1);
/// Few: between one and the least of other times, a step for each answer. An answer that
/// takes this many times the fastest of late was in somebody's way.
const FEW: (f64, f64) = (1.0, LEAST);
const FEW_STEP: f64 = 0.25;
const IN_THE_WAY: u32 = 2;
/// So many answers later the fastest of late may be that part slower.
const OF_LATE: u32 = 100;
/// So long there may be less than a few.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq)]
pub struct Concurrency {
    limit: f64,
    /// The fastest answer of this burst.
    fastest: Duration,
    /// None of them waited yet.
    probes: bool,
    /// Requests sent before this belong to the round that was cut already.
    cut: Duration,
    /// Nothing is sent before this.
    held: Duration,
    /// And few until then, as many as this.
    few_until: Duration,
    few: f64,
    /// Since when somebody has waited without a break.
    waits_since: Option<Duration>,
    /// The fastest answer of late.
    floor: Duration,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            limit: FIRST,
            fastest: Duration::MAX,
            probes: true,
            cut: Duration::ZERO,
            held: Duration::ZERO,
            few_until: Duration::ZERO,
            few: FEW.0,
            waits_since: None,
            floor: Duration::MAX,
        }
    }
}

impl Concurrency {
    /// How many more may be sent while `under_way` are.
    pub fn room(&self, under_way: usize, now: Duration) -> usize {
        if now < self.held {
            return 0;
        }
        let waited = self.waits_since.is_some_and(|at| at + PATIENCE <= now);
        let limit = if now >= self.few_until {
            self.limit
        } else if waited {
            FEW.1
        } else {
            self.few
        };
        (limit as usize).saturating_sub(under_way)
    }

    /// Somebody waits until then for what watches tell.
    pub fn hold_back(&mut self, until: Duration) {
        self.few_until = self.few_until.max(until);
    }

    /// Whether somebody waits for room now.
    pub fn waits(&mut self, somebody: bool, now: Duration) {
        self.waits_since = somebody.then(|| self.waits_since.unwrap_or(now));
    }

    /// When there may be room again, if it is a matter of time.
    pub fn held_until(&self, now: Duration) -> Option<Duration> {
        Some(self.held).filter(|held| now < *held)
    }

    /// One was answered; `under_way` counts it.
    pub fn answered(&mut self, sent: Duration, now: Duration, under_way: usize) {
        let took = now.saturating_sub(sent);
        self.floor = took.min(self.floor.saturating_add(self.floor / OF_LATE));
        if now < self.few_until {
            let waited = took > self.floor * IN_THE_WAY;
            let step = if waited { -FEW_STEP } else { FEW_STEP };
            self.few = (self.few + step).clamp(FEW.0, FEW.1);
        }
        self.fastest = self.fastest.min(took);
        let slow = self.fastest.saturating_mul(QUEUED).clamp(SLOW.0, SLOW.1);
        self.probes &= took < slow;
        if took > TOO_SLOW {
            self.less(sent, now);
        } else if took >= slow {
            self.limit = (self.limit - 1.0 / self.limit).max(LEAST);
        } else if under_way * 2 > self.limit as usize {
            let step = if self.probes { 1.0 } else { 1.0 / self.limit };
            self.limit = (self.limit + step).min(MOST);
        }
        if under_way == 1 {
            self.rested();
        }
    }

    /// Nothing is under way: how the server is doing is not known any more.
    fn rested(&mut self) {
        self.limit = self.limit.min(FIRST);
        self.fastest = Duration::MAX;
        self.probes = true;
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
    fn few_are_under_way_while_somebody_waits_for_news() {
        let mut c = Concurrency::default();
        c.hold_back(MS(100));
        c.hold_back(MS(50));
        assert_eq!((c.room(0, MS(99)), c.room(1, MS(99))), (1, 0));
        assert_eq!((c.room(9, MS(99)), c.room(0, MS(100))), (0, 8));
    }

    #[test]
    fn who_has_waited_for_a_while_waits_no_longer_for_news() {
        let mut c = Concurrency::default();
        c.hold_back(MS(9_999));
        c.waits(true, MS(0));
        c.waits(true, MS(900));
        assert_eq!((c.room(0, MS(999)), c.room(0, MS(1_000))), (1, 4));
        c.waits(false, MS(1_000));
        c.waits(true, MS(1_000));
        assert_eq!((c.room(0, MS(1_999)), c.room(0, MS(2_000))), (1, 4));
    }

    /// How many are under way after so many answers that take `each` and `more` for each
    /// that is under way beside it.
    fn few(each: Duration, more: Duration) -> usize {
        let mut c = Concurrency::default();
        c.hold_back(MS(9_999));
        for n in 0..999 {
            let under_way = c.room(0, MS(n));
            let took = each + more * (under_way as u32 - 1);
            c.answered(MS(n), MS(n) + took, under_way);
        }
        c.room(0, MS(999))
    }

    #[test]
    fn few_are_more_where_the_server_is_far_than_where_it_is_busy() {
        assert_eq!(few(MS(50), MS(0)), 4);
        assert_eq!(few(MS(50), MS(10)), 4);
        assert_eq!(few(MS(5), MS(6)), 1);
    }

    #[test]
    fn a_server_that_became_farther_is_not_taken_for_busy_for_good() {
        let mut c = Concurrency::default();
        c.answered(MS(0), MS(5), 2);
        c.hold_back(MS(99_999));
        let mut after = |answers: u64| {
            for n in 0..answers {
                c.answered(MS(n), MS(n + 50), 1);
            }
            c.room(0, MS(answers))
        };
        assert_eq!((after(100), after(200)), (1, 4));
    }

    #[test]
    fn a_round_of_answers_in_time_doubles_it_while_most_places_are_in_use() {
        let mut c = Concurrency::default();
        c.answered(MS(0), MS(10), 4);
        assert_eq!(c.room(0, MS(10)), 8);
        for _ in 0..8 {
            c.answered(MS(0), MS(10), 8);
        }
        assert_eq!(c.room(0, MS(10)), 16);
        for n in 0..1_000 {
            c.answered(MS(n), MS(n + 19), 300);
        }
        assert_eq!(c.room(0, MS(9_999)), 256);
    }

    #[test]
    fn once_answers_wait_half_of_them_do() {
        let mut c = Concurrency::default();
        c.answered(MS(0), MS(10), 8);
        c.answered(MS(0), MS(30), 9);
        // A round in time.
        for _ in 0..9 {
            c.answered(MS(0), MS(29), 9);
        }
        assert_eq!(c.room(0, MS(30)), 9);
        // A server that takes two milliseconds for each that is under way.
        for n in 0..9_999 {
            let under_way = c.room(0, MS(n));
            c.answered(MS(n), MS(n) + MS(2) * under_way as u32, under_way);
        }
        assert!((14..=15).contains(&c.room(0, MS(9_999))));
        // It gives no less than a few.
        for n in 0..9_999 {
            c.answered(MS(n), MS(n + 500), 9);
        }
        assert_eq!(c.room(0, MS(9_999)), 4);
    }

    #[test]
    fn what_is_in_time_follows_the_fastest_answer() {
        let mut c = Concurrency::default();
        c.answered(MS(0), MS(100), 8);
        c.answered(MS(0), MS(299), 9);
        assert_eq!(c.room(0, MS(300)), 10);
        c.answered(MS(0), MS(300), 10);
        assert_eq!(c.room(0, MS(300)), 9);
        // A server that is slow from the first answer on gets no more.
        let mut c = Concurrency::default();
        c.answered(MS(0), MS(400), 8);
        assert_eq!(c.room(0, MS(400)), 7);
    }

    #[test]
    fn each_burst_begins_with_few() {
        let mut c = Concurrency::default();
        for _ in 0..9 {
            c.answered(MS(0), MS(10), 99);
        }
        assert_eq!(c.room(0, MS(10)), 17);
        c.answered(MS(0), MS(10), 1);
        assert_eq!(c.room(0, MS(10)), 8);
        // And none waited yet, or was fast.
        c.answered(MS(0), MS(200), 8);
        assert_eq!(c.room(0, MS(200)), 9);
        // A server that wanted less still gets less.
        c.refused(MS(300), MS(400), Duration::ZERO);
        c.answered(MS(300), MS(400), 1);
        assert_eq!(c.room(0, MS(400)), 6);
    }

    fn grown_to_32() -> Concurrency {
        let mut c = Concurrency::default();
        for _ in 8..32 {
            c.answered(MS(0), MS(10), 32);
        }
        c
    }

    #[test]
    fn a_round_of_refusals_is_one_decrease() {
        let mut c = grown_to_32();
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
        let mut c = grown_to_32();
        c.refused(MS(0), MS(10), MS(1_000));
        assert_eq!(c.room(0, MS(500)), 0);
        assert_eq!(c.held_until(MS(500)), Some(MS(1_010)));
        assert_eq!(c.room(0, MS(1_010)), 22);
        assert_eq!(c.held_until(MS(1_010)), None);
    }

    #[test]
    fn a_server_that_answers_in_seconds_gets_less() {
        let mut c = grown_to_32();
        c.answered(MS(0), MS(5_000), 32);
        assert_eq!(c.room(0, MS(5_000)), 22);
    }
}
