//! The verdicts that are kept of tokens and rights, and the reviews in flight.
use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::future::{BoxFuture, Shared, WeakShared};
use lru::LruCache;
use tokio::time::Instant;

use super::reviews::NotReviewed;

/// The number of remembered tokens that may call. Callers are a few programs and people; more than
/// these are reviewed more often.
const MAX_ALLOWED: NonZeroUsize = NonZeroUsize::new(768).expect("not zero");
/// The number of remembered tokens that may not call. They have places of their own, so that an
/// attacker with many tokens does not push out those that may.
const MAX_DENIED: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// The time for which a review that allows counts: so long a right that was taken away still holds.
pub(super) const ALLOWED_FOR: Duration = Duration::from_secs(60);
/// The time for which a review that denies counts: so long a right that was just granted does not
/// hold yet, and so seldom a caller without rights costs a review.
pub(super) const DENIED_FOR: Duration = Duration::from_secs(10);
/// The time for which a review that allowed counts on while the API server does not answer: longer
/// than an upgrade of a control plane takes.
pub(super) const HELD_FOR: Duration = Duration::from_secs(600);
/// The time between two attempts to review a token that holds meanwhile.
pub(super) const HELD_RETRY: Duration = Duration::from_secs(5);

pub(super) type Key = [u8; 32];
pub(super) type Review = Result<Verdict, NotReviewed>;
pub(super) type Flight = BoxFuture<'static, Review>;

/// A `Verdict` is what the API server said of a token and a right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed(Arc<str>),
    /// The caller is known and lacks the right.
    Forbidden(Arc<str>),
    BadToken,
}

#[derive(Debug, Clone)]
struct Kept {
    verdict: Verdict,
    /// The time until which it counts without a question.
    fresh_until: Instant,
    /// The time until which it counts while the API server cannot be asked.
    held_until: Instant,
}

#[derive(Debug)]
pub(super) struct Verdicts {
    allowed: LruCache<Key, Kept>,
    denied: LruCache<Key, Kept>,
    /// The reviews in flight. One that no call waits for any more is dropped.
    pub(super) flights: HashMap<Key, WeakShared<Flight>>,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self {
            allowed: LruCache::new(MAX_ALLOWED),
            denied: LruCache::new(MAX_DENIED),
            flights: HashMap::new(),
        }
    }
}

impl Verdicts {
    pub(super) fn fresh(&mut self, key: &Key, now: Instant) -> Option<Verdict> {
        let kept = self.allowed.get(key).filter(|kept| now < kept.fresh_until);
        let kept = kept.or_else(|| self.denied.get(key).filter(|kept| now < kept.fresh_until));
        kept.map(|kept| kept.verdict.clone())
    }

    /// Returns an allowed verdict that still holds, and holds it for a while without a question.
    pub(super) fn held(&mut self, key: &Key, now: Instant) -> Option<Verdict> {
        let kept = self
            .allowed
            .get_mut(key)
            .filter(|kept| now < kept.held_until)?;
        kept.fresh_until = kept.held_until.min(now + HELD_RETRY);
        Some(kept.verdict.clone())
    }

    /// `valid_for`: how long the token itself is valid, if it says so.
    pub(super) fn keep(
        &mut self,
        key: Key,
        verdict: Verdict,
        now: Instant,
        valid_for: Option<Duration>,
    ) {
        let until = |after: Duration| now + valid_for.map_or(after, |valid| valid.min(after));
        self.allowed.pop(&key);
        match verdict {
            Verdict::Allowed(_) => {
                self.denied.pop(&key);
                let kept = Kept {
                    verdict,
                    fresh_until: until(ALLOWED_FOR),
                    held_until: until(HELD_FOR),
                };
                self.allowed.put(key, kept);
            }
            Verdict::Forbidden(_) | Verdict::BadToken => {
                let kept = Kept {
                    verdict,
                    fresh_until: now + DENIED_FOR,
                    held_until: now,
                };
                self.denied.put(key, kept);
            }
        }
    }

    /// Returns the number of verdicts that are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.allowed.len() + self.denied.len()
    }

    pub(super) fn depart(&mut self, key: Key, flight: Shared<Flight>) -> Shared<Flight> {
        // The calls in flight are bounded, and so is what is left.
        self.flights.retain(|_, flight| flight.upgrade().is_some());
        if let Some(weak) = flight.downgrade() {
            self.flights.insert(key, weak);
        }
        flight
    }
}

/// Returns for how long a JSON Web Token is valid by its own word, of which the API server has
/// checked the signature. Other tokens say nothing.
pub(super) fn remaining(token: &str) -> Option<Duration> {
    let payload = BASE64_URL_SAFE_NO_PAD
        .decode(token.split('.').nth(1)?)
        .ok()?;
    let payload: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    let expires_at = Duration::try_from_secs_f64(payload["exp"].as_f64()?).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(expires_at.saturating_sub(now))
}
