//! When a Lease is free to take, decided by what *we* observed: never by a wall
//! clock, ours or the holder's. Times are Durations since boot.
use std::time::Duration;

/// A Lease's record, as far as contending needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Record {
    pub uid: String,
    pub resource_version: String,
    /// Empty: nobody.
    pub holder: String,
    pub duration: Duration,
    /// Its last holder stepped down by itself.
    pub released: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Ours,
    /// May be taken by a guarded write.
    Free(Why),
    /// Not before this time, unless something changes.
    HeldUntil(Duration),
}

/// Why a Lease is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its holder stepped down.
    Released,
    /// Its holder was proved dead.
    Dead,
    /// It names an identity of ours whose term is over.
    Former,
    /// It stood unchanged for its whole duration.
    Silent,
    /// There was none for a whole duration.
    Missing,
}

impl Why {
    pub fn word(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Dead => "its holder's container ended",
            Self::Former => "ours before",
            Self::Silent => "not renewed",
            Self::Missing => "missing",
        }
    }
}

/// Watches one Lease. What holds: an unchanged record, or none, must stand for a
/// whole duration before it is free, unless released or proved dead.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Observer {
    ours: Duration,
    since: Duration,
    /// None: there is no Lease.
    record: Option<Record>,
    looked: bool,
}

impl Observer {
    /// `ours` is our own lease duration: the longer of ours and the record's
    /// counts.
    pub fn new(ours: Duration) -> Self {
        Self {
            ours,
            since: Duration::ZERO,
            record: None,
            looked: false,
        }
    }

    pub fn look(&mut self, record: Option<Record>, now: Duration) {
        let version = |r: &Option<Record>| {
            r.as_ref()
                .map(|r| (r.uid.clone(), r.resource_version.clone()))
        };
        if !self.looked || version(&self.record) != version(&record) {
            self.since = now;
        }
        self.looked = true;
        self.record = record;
    }

    /// `former` are our identities of terms that are over; `dead` is the holder
    /// that was proved dead.
    pub fn standing(
        &self,
        me: &str,
        former: &[String],
        dead: Option<&str>,
        now: Duration,
    ) -> Standing {
        if !self.looked {
            return Standing::HeldUntil(now);
        }
        let duration = self
            .record
            .as_ref()
            .map_or(self.ours, |r| r.duration.max(self.ours));
        if let Some(record) = &self.record {
            let holder = record.holder.as_str();
            if !holder.is_empty() && holder == me {
                return Standing::Ours;
            }
            let why = if holder.is_empty() {
                record.released.then_some(Why::Released)
            } else if dead == Some(holder) {
                Some(Why::Dead)
            } else {
                former.iter().any(|f| f == holder).then_some(Why::Former)
            };
            if let Some(why) = why {
                return Standing::Free(why);
            }
        }
        let until = self.since + duration;
        // Strictly after: the holder's validity is shorter anyway.
        if now > until {
            Standing::Free(self.record.as_ref().map_or(Why::Missing, |_| Why::Silent))
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

    fn standing(o: &Observer, now: u64) -> Standing {
        o.standing("me", &[], None, S(now))
    }

    #[test]
    fn a_record_must_stand_unchanged_for_its_whole_duration() {
        let mut o = Observer::new(S(6));
        o.look(record("a", "1"), S(100));
        assert_eq!(standing(&o, 106), Standing::HeldUntil(S(106)));
        assert_eq!(standing(&o, 107), Standing::Free(Why::Silent));
        o.look(record("a", "2"), S(107));
        assert_eq!(standing(&o, 112), Standing::HeldUntil(S(113)));
    }

    #[test]
    fn a_second_look_at_the_same_record_starts_no_new_wait() {
        let mut o = Observer::new(S(6));
        assert_eq!(standing(&o, 40), Standing::HeldUntil(S(40)), "never looked");
        o.look(None, S(50));
        o.look(None, S(53));
        assert_eq!(standing(&o, 53), Standing::HeldUntil(S(56)));
        o.look(record("a", "1"), S(100));
        o.look(record("a", "1"), S(103));
        assert_eq!(standing(&o, 103), Standing::HeldUntil(S(106)));
        // The same version of another object.
        let mut anew = record("a", "1");
        if let Some(r) = &mut anew {
            r.uid = "v".into();
        }
        o.look(anew, S(104));
        assert_eq!(standing(&o, 104), Standing::HeldUntil(S(110)));
        o.look(None, S(105));
        assert_eq!(standing(&o, 105), Standing::HeldUntil(S(111)));
    }

    #[test]
    fn the_longer_duration_counts() {
        let mut o = Observer::new(S(10));
        o.look(record("a", "1"), S(0));
        assert_eq!(standing(&o, 7), Standing::HeldUntil(S(10)));
        let mut o = Observer::new(S(3));
        o.look(record("a", "1"), S(0));
        assert_eq!(standing(&o, 5), Standing::HeldUntil(S(6)));
    }

    #[test]
    fn a_released_lease_is_free_and_an_emptied_one_is_not() {
        let mut o = Observer::new(S(6));
        let mut r = record("", "1");
        o.look(r.clone(), S(0));
        assert_eq!(standing(&o, 1), Standing::HeldUntil(S(6)));
        if let Some(r) = &mut r {
            r.released = true;
        }
        o.look(r, S(1));
        assert_eq!(standing(&o, 1), Standing::Free(Why::Released));
    }

    #[test]
    fn a_missing_lease_waits_a_whole_duration_too() {
        let mut o = Observer::new(S(6));
        o.look(None, S(0));
        assert_eq!(standing(&o, 5), Standing::HeldUntil(S(6)));
        assert_eq!(standing(&o, 7), Standing::Free(Why::Missing));
    }

    #[test]
    fn a_dead_holder_frees_only_its_own_record() {
        let mut o = Observer::new(S(6));
        o.look(record("a", "1"), S(0));
        assert_eq!(
            o.standing("me", &[], Some("a"), S(1)),
            Standing::Free(Why::Dead)
        );
        assert_eq!(
            o.standing("me", &[], Some("b"), S(1)),
            Standing::HeldUntil(S(6))
        );
    }

    #[test]
    fn our_own_old_record_is_free_but_not_ours() {
        let mut o = Observer::new(S(6));
        o.look(record("old-me", "1"), S(0));
        assert_eq!(
            o.standing("me", &["old-me".into()], None, S(1)),
            Standing::Free(Why::Former)
        );
    }
}
