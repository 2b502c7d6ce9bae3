//! Decides when refused creates are retried.
//!
//! A refusal closes a [`Gate`] for all creates that would be refused as well: all of them,
//! those of one shape, those of a task, or one attempt. A closed gate lets one create through
//! at a time, as a probe, with exponential backoff. The first probe that succeeds opens the
//! gate for a few creates at a time, and each success for one more, so that a quota with room
//! for one pod does not receive hundreds.
//!
//! Invariants:
//! - At most one create of a closed gate is in flight.
//! - Between two probes of a gate lie [`FIRST`] to [`MOST`], or [`EACH`] for each closed gate
//!   if there are many, so that all gates together probe no more often than that.
//! - A gate whose time has come is next, whatever else waits.
//!
//! Times are Durations of the leader's monotonic clock.
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use super::{
    queue::Gate,
    refusal::{By, Refusal},
};

/// The backoff after the first refusal. It doubles with each refusal that follows. What is refused
/// for a moment (a race for a quota, a webhook that restarts) passes soon after.
pub const FIRST: Duration = Duration::from_millis(500);
/// The longest backoff of a gate. A place that has become free is used within ten seconds, which a
/// worker that waited for it hardly notices.
pub const MOST: Duration = Duration::from_secs(10);
/// The longest backoff of [`Gate::All`]: one probe stands for all creates and costs little.
const MOST_OF_ALL: Duration = Duration::from_secs(1);
/// The shortest time between two probes of all closed gates together: 20 creates a second that will
/// mostly fail are little for an API server, however many tasks are refused.
const EACH: Duration = Duration::from_millis(50);
/// The window at which a gate counts as open. Each create that succeeds adds one to it; after so
/// many the refusal is over.
const OPEN: usize = 32;
/// The time after which a gate is forgotten that is due and at which nobody waits. It is the
/// longest backoff, so that a refusal that still holds is still known.
const FORGET: Duration = Duration::from_secs(10);

/// A `Closed` is the state of a gate that is closed or opening.
#[derive(Debug, Clone)]
pub struct Closed {
    /// The last refusal.
    pub refusal: Refusal,
    /// The time at which refusals of this kind began.
    pub since: Duration,
    /// The time of the last refusal.
    pub last: Duration,
    /// The number of probes in a row that were refused.
    refusals: u32,
    /// The time of the next probe.
    next: Duration,
    /// The number of creates in flight.
    under_way: usize,
    /// The number of creates that may be in flight. 0: the gate is closed.
    window: usize,
}

/// A `Gates` holds all gates that are closed or opening. A gate that is not here is open.
#[derive(Debug, Default)]
pub struct Gates {
    closed: HashMap<Gate, Closed>,
    /// The closed gates by the time of their next probe.
    by_time: BTreeSet<(Duration, Gate)>,
    /// The gates that are opening.
    opening: BTreeSet<Gate>,
    /// The number of gates that a quota closed.
    quotas: usize,
    /// The number of gates that share the rate of probes. A create that was not answered is
    /// retried by itself, and soon.
    counted: u32,
}

/// Reports whether a gate that this refusal closed shares the rate of probes.
fn is_counted(refusal: &Refusal) -> bool {
    !matches!(refusal.by, By::Server | By::Silence | By::Conflict)
}

impl Gates {
    /// Returns the state of a gate, or None if it is open.
    pub fn get(&self, gate: &Gate) -> Option<&Closed> {
        self.closed.get(gate)
    }

    /// Reports whether a gate is closed or opening.
    pub fn is_closed(&self, gate: &Gate) -> bool {
        self.closed.contains_key(gate)
    }

    /// Reports whether a quota closed a gate.
    pub fn has_quota(&self) -> bool {
        self.quotas > 0
    }

    /// Returns how many more creates the gate lets through while `under_way` are in flight.
    fn room_of(closed: &Closed, under_way: usize, now: Duration) -> usize {
        match closed.window {
            0 => usize::from(closed.next <= now && under_way == 0),
            window => window.saturating_sub(under_way),
        }
    }

    /// Returns how many more creates the gate lets through now.
    pub fn room(&self, gate: &Gate, now: Duration) -> usize {
        let closed = self.closed.get(gate);
        closed.map_or(usize::MAX, |c| Self::room_of(c, c.under_way, now))
    }

    /// Returns how many more creates [`Gate::All`] lets through now. Every create goes through
    /// it, so the caller gives the number that are in flight.
    pub fn room_of_all(&self, under_way: usize, now: Duration) -> usize {
        let closed = self.closed.get(&Gate::All);
        closed.map_or(usize::MAX, |c| Self::room_of(c, under_way, now))
    }

    /// Returns the closed gates whose time has come, the one that has waited longest first.
    pub fn due(&self, now: Duration) -> impl Iterator<Item = &Gate> {
        let due = self.by_time.iter().take_while(move |(at, _)| *at <= now);
        due.map(|(_, gate)| gate)
    }

    /// Returns the gates that may let a create through: those that are opening, and then those
    /// that are due, the one that has waited longest first.
    pub fn waiting(&self, now: Duration) -> impl Iterator<Item = &Gate> {
        self.opening.iter().chain(self.due(now))
    }

    /// Returns the time at which the next gate is due at which somebody waits, as `are_asked`
    /// says. Gates that are due already do not count.
    pub fn next_due(&self, now: Duration, are_asked: impl Fn(&Gate) -> bool) -> Option<Duration> {
        let later = self.by_time.iter().skip_while(|(at, _)| *at <= now);
        let mut asked = later.filter(|(_, gate)| are_asked(gate));
        asked.next().map(|(at, _)| *at)
    }

    /// Returns the time of the next probe of a gate, or None if the gate is not closed.
    pub fn next_of(&self, gate: &Gate) -> Option<Duration> {
        let closed = self.closed.get(gate).filter(|c| c.window == 0)?;
        Some(closed.next)
    }

    /// Records that a create was sent through the gate.
    pub fn sent(&mut self, gate: &Gate) {
        if let Some(closed) = self.closed.get_mut(gate) {
            closed.under_way += 1;
        }
    }

    /// Records that a create that was sent through the gate is in flight no more.
    pub fn returned(&mut self, gate: &Gate) {
        if let Some(closed) = self.closed.get_mut(gate) {
            closed.under_way = closed.under_way.saturating_sub(1);
        }
    }

    /// Returns the backoff of a gate after so many refusals in a row.
    fn wait(&self, gate: &Gate, refusals: u32) -> Duration {
        let most = if *gate == Gate::All {
            MOST_OF_ALL
        } else {
            MOST
        };
        let doubled = FIRST * 2_u32.pow(refusals.saturating_sub(1).min(8));
        doubled.min(most).max(EACH * self.counted)
    }

    /// Closes the gate because a create that was sent at `sent` was refused.
    pub fn refused(&mut self, gate: &Gate, refusal: &Refusal, sent: Duration, now: Duration) {
        let before = self.closed.get(gate);
        let (since, refusals, under_way) = match before {
            // Of several creates that were in flight together, only the first one counts.
            Some(c) if c.window == 0 && c.refusal.by == refusal.by && sent < c.last => {
                (c.since, c.refusals, c.under_way)
            }
            Some(c) if c.window == 0 && c.refusal.by == refusal.by => {
                (c.since, c.refusals + 1, c.under_way)
            }
            before => (now, 1, before.map_or(0, |c| c.under_way)),
        };
        self.forget(gate);
        self.quotas += usize::from(refusal.by == By::Quota);
        self.counted += u32::from(is_counted(refusal));
        let closed = Closed {
            refusal: refusal.clone(),
            since,
            last: now,
            refusals,
            next: now,
            under_way,
            window: 0,
        };
        self.closed.insert(gate.clone(), closed);
        self.set_next(gate, now + self.wait(gate, refusals));
    }

    /// Records that a probe came back with an answer that says nothing of the gate. If others
    /// share the gate, the next of them probes at once; a task or an attempt by itself backs
    /// off.
    pub fn undecided(&mut self, gate: &Gate, now: Duration) {
        if let Some(closed) = self.closed.get(gate).filter(|c| c.window == 0) {
            let wait = match gate {
                Gate::All | Gate::Shape(_) => Duration::ZERO,
                Gate::Task(_) | Gate::Attempt(..) => self.wait(gate, closed.refusals),
            };
            self.set_next(gate, now + wait);
        }
    }

    /// Opens the gate further because a create that was sent at `sent` succeeded. One that was
    /// sent before the last refusal says nothing.
    pub fn passed(&mut self, gate: &Gate, sent: Duration) {
        let Some(closed) = self.closed.get_mut(gate).filter(|c| c.last <= sent) else {
            return;
        };
        closed.window = closed.window.max(1) + 1;
        let (is_open, next) = (closed.window > OPEN, closed.next);
        if is_open {
            self.forget(gate);
        } else {
            self.by_time.remove(&(next, gate.clone()));
            self.opening.insert(gate.clone());
        }
    }

    /// Brings the next probes of quotas forward because pods have ended, so that there may be
    /// room.
    pub fn room_appeared(&mut self, now: Duration) {
        if self.quotas == 0 {
            return;
        }
        let is_closed = |c: &Closed| c.refusal.by == By::Quota && c.window == 0 && c.next > now;
        let quotas = self.closed.iter().filter(|(_, c)| is_closed(c));
        let quotas: Vec<Gate> = quotas.map(|(gate, _)| gate.clone()).collect();
        for gate in quotas {
            let wait = self.wait(&gate, 1);
            if let Some(closed) = self.closed.get_mut(&gate) {
                closed.refusals = 0;
                let next = closed.next.min(closed.last + wait);
                self.set_next(&gate, next);
            }
        }
    }

    /// Opens a gate. Returns whether it was closed or opening.
    pub fn forget(&mut self, gate: &Gate) -> bool {
        let Some(old) = self.closed.remove(gate) else {
            return false;
        };
        self.by_time.remove(&(old.next, gate.clone()));
        self.opening.remove(gate);
        self.quotas -= usize::from(old.refusal.by == By::Quota);
        self.counted -= u32::from(is_counted(&old.refusal));
        true
    }

    /// Returns a few gates whose time came long ago without a probe. The caller knows whether
    /// anybody waits there, and forgets the others.
    pub fn idle(&self, now: Duration) -> Vec<Gate> {
        let is_idle = |gate: &&Gate| {
            let closed = self.closed.get(*gate);
            closed.is_some_and(|c| c.under_way == 0 && c.next + FORGET <= now)
        };
        self.due(now).take(16).filter(is_idle).cloned().collect()
    }

    /// Changes the time of the next probe of a closed gate.
    pub fn retry_at(&mut self, gate: &Gate, next: Duration) {
        if self.closed.get(gate).is_some_and(|c| c.window == 0) {
            self.set_next(gate, next);
        }
    }

    fn set_next(&mut self, gate: &Gate, next: Duration) {
        if let Some(closed) = self.closed.get_mut(gate) {
            self.by_time.remove(&(closed.next, gate.clone()));
            closed.next = next;
            self.by_time.insert((next, gate.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Verdict;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn by(by: By) -> Refusal {
        Refusal::new(by, Verdict::Repeats, "no")
    }

    fn task(n: usize) -> Gate {
        Gate::Task(n.to_string().into())
    }

    /// Returns the times at which a gate probes that is always refused.
    fn asks(gate: &Gate, beside: usize) -> Vec<u64> {
        let mut gates = Gates::default();
        for n in 1..=beside {
            gates.refused(&task(n), &by(By::Judge), MS(0), MS(0));
        }
        let (mut asked, mut now) = (vec![], MS(0));
        for _ in 0..7 {
            gates.refused(gate, &by(By::Judge), now, now);
            assert_eq!(gates.room(gate, now), 0);
            now = gates.next_of(gate).unwrap_or_default();
            assert_eq!(gates.room(gate, now), 1);
            asked.push(u64::try_from(now.as_millis()).unwrap_or(0));
        }
        asked
    }

    #[test]
    fn a_closed_gate_asks_with_backoff_and_many_no_more_often_than_a_few() {
        let alone = [500, 1_500, 3_500, 7_500, 15_500, 25_500, 35_500];
        assert_eq!(asks(&task(0), 0), alone);
        assert_eq!(asks(&task(0), 999)[..2], [50_000, 100_000]);
        assert_eq!(asks(&Gate::All, 0)[..4], [500, 1_500, 2_500, 3_500]);
    }

    #[test]
    fn one_round_of_refusals_counts_once_and_another_kind_begins_anew() {
        let (mut gates, gate) = (Gates::default(), task(0));
        for n in 0..9 {
            gates.refused(&gate, &by(By::Judge), MS(0), MS(10 + n));
        }
        assert_eq!(gates.next_of(&gate), Some(MS(518)));
        gates.refused(&gate, &by(By::Judge), MS(600), MS(600));
        let since = |gates: &Gates| gates.get(&gate).map(|c| c.since);
        assert_eq!(since(&gates), Some(MS(10)));
        gates.refused(&gate, &by(By::Missing), MS(700), MS(700));
        assert_eq!(
            (since(&gates), gates.next_of(&gate)),
            (Some(MS(700)), Some(MS(1_200)))
        );
    }

    #[test]
    fn a_gate_opens_with_each_that_gets_through() {
        let (mut gates, gate) = (Gates::default(), task(0));
        gates.refused(&gate, &by(By::Quota), MS(0), MS(10));
        // The create was sent before the refusal came.
        gates.passed(&gate, MS(5));
        assert_eq!(gates.room(&gate, MS(20)), 0);
        gates.sent(&gate);
        assert_eq!(gates.room(&gate, MS(999)), 0, "one at a time");
        gates.returned(&gate);
        gates.passed(&gate, MS(600));
        assert_eq!(gates.room(&gate, MS(601)), 2);
        assert!(gates.has_quota() && gates.due(MS(99_999)).next().is_none());
        for n in 0..30 {
            assert!(gates.is_closed(&gate));
            gates.passed(&gate, MS(610 + n));
        }
        gates.passed(&gate, MS(700));
        assert_eq!(gates.room(&gate, MS(700)), usize::MAX);
        assert!(!gates.has_quota());
    }

    #[test]
    fn a_refusal_closes_a_gate_that_opens() {
        let (mut gates, gate) = (Gates::default(), task(0));
        gates.refused(&gate, &by(By::Quota), MS(0), MS(0));
        gates.passed(&gate, MS(500));
        gates.refused(&gate, &by(By::Quota), MS(510), MS(520));
        assert_eq!(gates.next_of(&gate), Some(MS(1_020)));
        assert_eq!(gates.due(MS(1_020)).count(), 1);
    }

    #[test]
    fn an_end_is_a_reason_to_ask_a_quota_and_nobody_else() {
        let (mut gates, quota, other) = (Gates::default(), task(0), task(1));
        for n in 0..6 {
            gates.refused(&quota, &by(By::Quota), MS(n), MS(n));
            gates.refused(&other, &by(By::Judge), MS(n), MS(n));
        }
        gates.room_appeared(MS(100));
        assert_eq!(gates.next_of(&quota), Some(MS(505)));
        assert_eq!(gates.next_of(&other), Some(MS(10_005)));
        // The backoff begins anew: the quota controller takes a while.
        gates.refused(&quota, &by(By::Quota), MS(505), MS(505));
        assert_eq!(gates.next_of(&quota), Some(MS(1_005)));
    }

    #[test]
    fn who_asks_and_hears_nothing_of_the_gate_makes_way_for_the_next() {
        let mut gates = Gates::default();
        for (gate, next) in [(Gate::All, 600), (task(0), 1_100)] {
            gates.refused(&gate, &by(By::Judge), MS(0), MS(0));
            gates.undecided(&gate, MS(600));
            assert_eq!(gates.next_of(&gate), Some(MS(next)));
        }
    }

    #[test]
    fn a_gate_that_nobody_asks_is_idle() {
        let (mut gates, gate) = (Gates::default(), task(0));
        gates.refused(&gate, &by(By::Judge), MS(0), MS(0));
        assert_eq!(gates.idle(MS(10_499)), []);
        assert_eq!(gates.idle(MS(10_500)), std::slice::from_ref(&gate));
        assert!(gates.forget(&gate) && !gates.forget(&gate));
        assert_eq!(gates.due(MS(99_999)).count(), 0);
    }
}
