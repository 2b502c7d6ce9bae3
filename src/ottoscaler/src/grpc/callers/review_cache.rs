//! Remembers what the API server said of each token and right.
//!
//! Invariants:
//! - The verdicts that are kept are bounded; those that allow and those that deny have separate
//!   places, so that whoever sends many bad tokens drives out no known caller ([`Verdicts`]).
//! - A key is an HMAC of the token under a key of this process, so memory holds no token.
//! - Of one key, one review is in flight; of all, at most [`MAX_REVIEWS`].
//! - An allowed token is reviewed again after a minute. While the API server cannot be asked
//!   it holds for at most 10 minutes after its last review, and never past its own `exp`.
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::WeakShared};
use ring::{hmac, rand::SystemRandom};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    reviews::{NotReviewed, Reviews},
    rights::Right,
    verdicts::{Key, Review, Verdict, Verdicts, remaining},
};

/// The number of reviews at a time. Each is two short calls to the API server, which does not notice
/// so few.
const MAX_REVIEWS: usize = 8;
/// The time that a review waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(3);

/// A `ReviewCache` asks the API server as seldom as it may.
#[derive(Debug)]
pub(super) struct ReviewCache {
    reviews: Arc<dyn Reviews>,
    audience: String,
    hmac: hmac::Key,
    turns: Semaphore,
    /// Written by reviews, read by calls. No lock is held across an await.
    state: Mutex<Verdicts>,
    /// Whether the last review got no answer, so that an outage is logged once.
    away: AtomicBool,
}

impl ReviewCache {
    /// # Panics
    /// Panics when the system has no randomness.
    #[expect(clippy::expect_used, reason = "without randomness no TLS works either")]
    pub(super) fn new(reviews: Arc<dyn Reviews>, audience: String) -> Self {
        Self {
            reviews,
            audience,
            hmac: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
                .expect("the system gives random bytes"),
            turns: Semaphore::new(MAX_REVIEWS),
            state: Mutex::default(),
            away: AtomicBool::new(false),
        }
    }

    /// Returns what the API server says of a token and a right; without a right, whether the token
    /// is anybody's.
    pub(super) async fn verdict(self: &Arc<Self>, token: &str, right: Option<Right>) -> Review {
        let key = self.key(token, right);
        let flight = {
            let mut state = self.state();
            if let Some(verdict) = state.fresh(&key, Instant::now()) {
                return Ok(verdict);
            }
            match state.flights.get(&key).and_then(WeakShared::upgrade) {
                Some(flight) => flight,
                None => {
                    let cache = self.clone();
                    let token = token.to_owned();
                    let review = async move { cache.review(key, &token, right).await };
                    state.depart(key, review.boxed().shared())
                }
            }
        };
        flight.await
    }

    fn key(&self, token: &str, right: Option<Right>) -> Key {
        let mut context = hmac::Context::with_key(&self.hmac);
        context.update(token.as_bytes());
        // No token has a NUL byte, so no token and right are those of another pair.
        context.update(b"\0");
        if let Some(right) = right {
            context.update(right.to_string().as_bytes());
        }
        let mut key = Key::default();
        key.copy_from_slice(context.sign().as_ref());
        key
    }

    fn state(&self) -> MutexGuard<'_, Verdicts> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn review(&self, key: Key, token: &str, right: Option<Right>) -> Review {
        let answer = self.ask(token, right).await;
        self.tell(answer.as_ref().err());
        let mut state = self.state();
        state.flights.remove(&key);
        let now = Instant::now();
        match answer {
            Ok(verdict) => {
                state.keep(key, verdict.clone(), now, remaining(token));
                Ok(verdict)
            }
            Err(error) => state.held(&key, now).ok_or(error),
        }
    }

    async fn ask(&self, token: &str, right: Option<Right>) -> Review {
        let turn = timeout(TURN_TIMEOUT, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(NotReviewed::Busy);
        };
        let status = self.reviews.token(token, &self.audience).await?;
        let is_ours = status
            .audiences
            .is_some_and(|all| all.contains(&self.audience));
        let user = status.user.unwrap_or_default();
        let name = user.username.clone().unwrap_or_default();
        if status.authenticated != Some(true) || !is_ours || name.is_empty() {
            return Ok(Verdict::BadToken);
        }
        match right {
            Some(right) if !self.reviews.access(&user, right).await? => {
                Ok(Verdict::Forbidden(name.into()))
            }
            Some(_) | None => Ok(Verdict::Allowed(name.into())),
        }
    }

    /// Logs the beginning and the end of an outage.
    fn tell(&self, error: Option<&NotReviewed>) {
        let was_away = self.away.swap(error.is_some(), Ordering::Relaxed);
        match (was_away, error) {
            (false, Some(error)) => tracing::warn!(
                %error,
                "callers cannot be reviewed: known ones hold for 10 minutes; is the API server \
                 away, or are the rights to create tokenreviews and localsubjectaccessreviews missing?"
            ),
            (true, None) => tracing::info!("callers can be reviewed again"),
            (true, Some(_)) | (false, None) => {}
        }
    }
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
