//! When a Lease may be acquired.
//!
//! Invariants: the decision rests on how long *this* process has seen a record unchanged,
//! never on a wall clock or a timestamp in the Lease; a record, or the absence of a Lease,
//! must stand for a whole lease duration before it counts as abandoned, unless its holder
//! released it or was proved dead. Times are Durations since boot.
use std::time::Duration;

/// The fields of a Lease that the protocol reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `spec.holderIdentity`; empty if nobody holds the Lease.
    pub holder: String,
    /// `spec.leaseDurationSeconds`.
    pub duration: Duration,
    /// Whether the last holder stepped down by itself.
    pub released: bool,
}

/// What a candidate may do about the Lease now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The Lease names the candidate's present identity.
    Ours,
    /// The Lease may be acquired by a write that is conditional on what was read.
    Free(AcquireReason),
    /// The Lease may not be acquired before this time, unless it changes.
    HeldUntil(Duration),
}

/// Why a Lease may be acquired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcquireReason {
    /// Its holder stepped down.
    Released,
    /// Its holder was proved dead.
    Dead,
    /// It names an earlier identity of this candidate, whose term is over.
    Former,
    /// It was not renewed for its whole duration.
    Expired,
    /// There was no Lease for a whole duration.
    Missing,
}

impl AcquireReason {
    /// The reason in words, for logs, metrics and Events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Dead => "its holder's container ended",
            Self::Former => "ours before",
            Self::Expired => "not renewed",
            Self::Missing => "missing",
        }
    }
}

/// The Lease as one candidate has observed it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObservedLease {
    /// The candidate's own lease duration.
    duration: Duration,
    /// When the present record was first seen.
    since: Duration,
    /// None: there is no Lease.
    record: Option<Record>,
    has_observed: bool,
}

impl ObservedLease {
    /// Starts with nothing observed. `duration` is the candidate's own lease duration; the
    /// longer of it and the record's counts.
    pub fn new(duration: Duration) -> Self {
        Self {
            duration,
            since: Duration::ZERO,
            record: None,
            has_observed: false,
        }
    }

    /// Takes the Lease as it is `now`; `None` if there is none.
    pub fn observe(&mut self, record: Option<Record>, now: Duration) {
        let version = |r: &Option<Record>| {
            r.as_ref()
                .map(|r| (r.uid.clone(), r.resource_version.clone()))
        };
        if !self.has_observed || version(&self.record) != version(&record) {
            self.since = now;
        }
        self.has_observed = true;
        self.record = record;
    }

    /// What the candidate `me` may do `now`. `former` are its identities of terms that are
    /// over; `dead` is the holder that was proved dead.
    pub fn standing(
        &self,
        me: &str,
        former: &[String],
        dead: Option<&str>,
        now: Duration,
    ) -> Standing {
        if !self.has_observed {
            return Standing::HeldUntil(now);
        }
        let duration = self
            .record
            .as_ref()
            .map_or(self.duration, |r| r.duration.max(self.duration));
        if let Some(record) = &self.record {
            let holder = record.holder.as_str();
            if !holder.is_empty() && holder == me {
                return Standing::Ours;
            }
            let reason = if holder.is_empty() {
                record.released.then_some(AcquireReason::Released)
            } else if dead == Some(holder) {
                Some(AcquireReason::Dead)
            } else {
                former
                    .iter()
                    .any(|f| f == holder)
                    .then_some(AcquireReason::Former)
            };
            if let Some(reason) = reason {
                return Standing::Free(reason);
            }
        }
        let until = self.since + duration;
        // Strictly later: the holder's validity is shorter than its lease anyway.
        if now > until {
            Standing::Free(
                self.record
                    .as_ref()
                    .map_or(AcquireReason::Missing, |_| AcquireReason::Expired),
            )
        } else {
            Standing::HeldUntil(until)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn record(holder: &str, version: &str) -> Option<Record> {
        Some(Record {
            uid: "u".into(),
            resource_version: version.into(),
            holder: holder.into(),
            duration: S(6),
            released: false,
        })
    }

    fn standing(o: &ObservedLease, now: u64) -> Standing {
        o.standing("me", &[], None, S(now))
    }

    #[test]
    fn a_record_must_stand_unchanged_for_its_whole_duration() {
        let mut o = ObservedLease::new(S(6));
        o.observe(record("a", "1"), S(100));
        assert_eq!(standing(&o, 106), Standing::HeldUntil(S(106)));
        assert_eq!(standing(&o, 107), Standing::Free(AcquireReason::Expired));
        o.observe(record("a", "2"), S(107));
        assert_eq!(standing(&o, 112), Standing::HeldUntil(S(113)));
    }

    #[test]
    fn a_second_look_at_the_same_record_starts_no_new_wait() {
        let mut o = ObservedLease::new(S(6));
        assert_eq!(
            standing(&o, 40),
            Standing::HeldUntil(S(40)),
            "never observed"
        );
        o.observe(None, S(50));
        o.observe(None, S(53));
        assert_eq!(standing(&o, 53), Standing::HeldUntil(S(56)));
        o.observe(record("a", "1"), S(100));
        o.observe(record("a", "1"), S(103));
        assert_eq!(standing(&o, 103), Standing::HeldUntil(S(106)));
        // The same version of another object.
        let mut anew = record("a", "1");
        if let Some(r) = &mut anew {
            r.uid = "v".into();
        }
        o.observe(anew, S(104));
        assert_eq!(standing(&o, 104), Standing::HeldUntil(S(110)));
        o.observe(None, S(105));
        assert_eq!(standing(&o, 105), Standing::HeldUntil(S(111)));
    }

    #[test]
    fn the_longer_duration_counts() {
        let mut o = ObservedLease::new(S(10));
        o.observe(record("a", "1"), S(0));
        assert_eq!(standing(&o, 7), Standing::HeldUntil(S(10)));
        let mut o = ObservedLease::new(S(3));
        o.observe(record("a", "1"), S(0));
        assert_eq!(standing(&o, 5), Standing::HeldUntil(S(6)));
    }

    #[test]
    fn a_released_lease_is_free_and_an_emptied_one_is_not() {
        let mut o = ObservedLease::new(S(6));
        let mut r = record("", "1");
        o.observe(r.clone(), S(0));
        assert_eq!(standing(&o, 1), Standing::HeldUntil(S(6)));
        if let Some(r) = &mut r {
            r.released = true;
        }
        o.observe(r, S(1));
        assert_eq!(standing(&o, 1), Standing::Free(AcquireReason::Released));
    }

    #[test]
    fn a_missing_lease_waits_a_whole_duration_too() {
        let mut o = ObservedLease::new(S(6));
        o.observe(None, S(0));
        assert_eq!(standing(&o, 5), Standing::HeldUntil(S(6)));
        assert_eq!(standing(&o, 7), Standing::Free(AcquireReason::Missing));
    }

    #[test]
    fn a_dead_holder_frees_only_its_own_record() {
        let mut o = ObservedLease::new(S(6));
        o.observe(record("a", "1"), S(0));
        assert_eq!(
            o.standing("me", &[], Some("a"), S(1)),
            Standing::Free(AcquireReason::Dead)
        );
        assert_eq!(
            o.standing("me", &[], Some("b"), S(1)),
            Standing::HeldUntil(S(6))
        );
    }

    #[test]
    fn our_own_old_record_is_free_but_not_ours() {
        let mut o = ObservedLease::new(S(6));
        o.observe(record("old-me", "1"), S(0));
        assert_eq!(
            o.standing("me", &["old-me".into()], None, S(1)),
            Standing::Free(AcquireReason::Former)
        );
    }
}
