//! One candidate's side of the contest for a Lease; pure.
//!
//! This state machine runs in production (the guard feeds it) and in a model checker.
//!
//! Invariants: an identity leads at most one term; what was read is the precondition of one
//! write at most; validity counts from when the last acknowledged write was *sent*. Times are
//! Durations since boot.
use std::time::Duration;

use crate::lease::{ObservedLease, Record, Standing};

/// How many former identities are remembered: a Lease names at most the last one.
const MAX_FORMER: usize = 4;

/// What a write of the Lease requires of it: its uid and its resourceVersion.
pub type Precondition = (String, String);

/// One participant of the contest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    observed: ObservedLease,
    renew_deadline: Duration,
    me: String,
    former: Vec<String>,
    dead: Option<String>,
    /// Of the last read; taken by the write that follows.
    precondition: Option<Precondition>,
    sent: Duration,
}

impl Candidate {
    /// Creates a candidate without an identity. It holds a Lease for `lease_duration`, and
    /// as a leader acts for `renew_deadline` after sending its last acknowledged write.
    pub fn new(lease_duration: Duration, renew_deadline: Duration) -> Self {
        Self {
            observed: ObservedLease::new(lease_duration),
            renew_deadline,
            me: String::new(),
            former: Vec::new(),
            dead: None,
            precondition: None,
            sent: Duration::ZERO,
        }
    }

    /// Takes a new identity; the one before becomes a former one, which never leads again.
    pub fn become_identity(&mut self, me: &str) {
        let old = std::mem::replace(&mut self.me, me.to_owned());
        if !old.is_empty() {
            self.former.push(old);
            let surplus = self.former.len().saturating_sub(MAX_FORMER);
            self.former.drain(..surplus);
        }
        self.precondition = None;
    }

    /// Returns the present identity.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Notes that `holder` was proved dead: a Lease that names it is free.
    pub fn proved_dead(&mut self, holder: String) {
        self.dead = Some(holder);
    }

    /// Takes what a watch reported. A watch may lag, so it is no precondition of a write.
    pub fn observe(&mut self, record: Option<Record>, now: Duration) {
        self.observed.observe(record, now);
    }

    /// Takes what a read returned; the next write is conditional on it.
    pub fn read(&mut self, record: Option<Record>, now: Duration) {
        self.precondition = record
            .as_ref()
            .map(|r| (r.uid.clone(), r.resource_version.clone()));
        self.observed.observe(record, now);
    }

    /// Returns what this candidate may do `now`.
    pub fn standing(&self, now: Duration) -> Standing {
        self.observed
            .standing(&self.me, &self.former, self.dead.as_deref(), now)
    }

    /// Takes the precondition of one write; `None` if nothing was read since the last write.
    pub fn take_precondition(&mut self) -> Option<Precondition> {
        self.precondition.take()
    }

    /// Notes that a write of the Lease is sent `now`.
    pub fn send(&mut self, now: Duration) {
        self.sent = now;
    }

    /// Returns when the last write was sent.
    pub fn sent(&self) -> Duration {
        self.sent
    }

    /// Returns until when the last write, once acknowledged, allows to act. The Lease stands
    /// for longer than that, and counted from later.
    pub fn valid_until(&self) -> Duration {
        self.sent + self.renew_deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::AcquireReason;

    fn candidate() -> Candidate {
        let mut candidate = Candidate::new(Duration::from_secs(6), Duration::from_secs(4));
        candidate.become_identity("a");
        candidate
    }

    fn record(holder: &str) -> Option<Record> {
        Some(Record {
            uid: "u".into(),
            resource_version: "7".into(),
            holder: holder.into(),
            duration: Duration::from_secs(6),
            released: false,
        })
    }

    #[test]
    fn what_was_read_is_the_precondition_of_one_write() {
        let mut candidate = candidate();
        assert_eq!(candidate.take_precondition(), None);
        candidate.read(record("x"), Duration::ZERO);
        assert_eq!(
            candidate.take_precondition(),
            Some(("u".into(), "7".into()))
        );
        assert_eq!(candidate.take_precondition(), None);
        // A watch is no read: it may lag behind.
        candidate.observe(record("x"), Duration::ZERO);
        assert_eq!(candidate.take_precondition(), None);
        // Nor does what a former identity read count.
        candidate.read(record("x"), Duration::ZERO);
        candidate.become_identity("b");
        assert_eq!(candidate.take_precondition(), None);
    }

    #[test]
    fn the_record_of_a_former_identity_is_free_and_never_ours() {
        let mut candidate = candidate();
        candidate.read(record("a"), Duration::ZERO);
        assert_eq!(candidate.standing(Duration::ZERO), Standing::Ours);
        candidate.become_identity("b");
        assert_eq!(
            candidate.standing(Duration::ZERO),
            Standing::Free(AcquireReason::Former)
        );
        for n in 0..MAX_FORMER {
            candidate.become_identity(&format!("c{n}"));
        }
        let standing = candidate.standing(Duration::ZERO);
        assert!(!matches!(standing, Standing::Free(_)), "forgotten");
    }

    #[test]
    fn what_a_watch_told_counts_and_so_does_a_proof_of_death() {
        let mut candidate = candidate();
        assert_eq!(candidate.me(), "a");
        candidate.observe(record("x"), Duration::from_secs(100));
        let standing = |c: &Candidate| c.standing(Duration::from_secs(101));
        let until = Duration::from_secs(106);
        assert_eq!(standing(&candidate), Standing::HeldUntil(until));
        candidate.proved_dead("y".into());
        assert_eq!(standing(&candidate), Standing::HeldUntil(until));
        candidate.proved_dead("x".into());
        assert_eq!(standing(&candidate), Standing::Free(AcquireReason::Dead));
    }

    #[test]
    fn validity_counts_from_sending() {
        let mut candidate = candidate();
        candidate.send(Duration::from_secs(10));
        assert_eq!(candidate.sent(), Duration::from_secs(10));
        assert_eq!(candidate.valid_until(), Duration::from_secs(14));
    }
}
