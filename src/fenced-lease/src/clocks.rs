//! This process's clock and the API server's, side by side.
//!
//! Invariants: a leader's time is the wall clock as its term began, and moves on with the
//! time since boot, so that no step of any clock moves it. The API server's time is the
//! `Date` of an answer, and moves on likewise. They are compared by each answer that a
//! client gets anyway.
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response, header::DATE};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822::DateTimeParser};
use kube::client::ClientBuilder;
use tower::{Layer, Service};

use crate::Clock;

/// Clocks that differ by more are reported. A `Date` has whole seconds, and clocks that are
/// synchronized differ by milliseconds.
const TOLERANCE: Duration = Duration::from_secs(5);
/// How long every answer must agree before clocks that differed count as equal again: of
/// several API servers one may be wrong. Each watch is opened again every 15 s, so answers
/// come every few seconds.
const SETTLED: Duration = Duration::from_secs(60);

/// Compares this process's clock with the API server's. Cheap to clone; written by the
/// answers of its clients.
#[derive(Debug, Clone, Default)]
pub struct Clocks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Sample>,
    /// How far the API server's clock was ahead at the last answer, at least.
    skew: SignedDuration,
    /// When an answer last showed that they differ, since boot.
    differed: Option<Duration>,
    /// A warning was logged.
    warned: bool,
}

/// One answer's `Date`, and when it came, since boot.
#[derive(Debug, Clone, Copy)]
struct Sample {
    date: Timestamp,
    at: Duration,
}

impl Clocks {
    /// Creates one that compares `clock`.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            clock,
            ..Inner::default()
        }))
    }

    /// Creates a client whose answers tell the API server's time.
    ///
    /// # Errors
    /// The credentials cannot be used (unreadable certificate …).
    pub fn client(&self, config: kube::Config) -> kube::Result<kube::Client> {
        Ok(ClientBuilder::try_from(config)?.with_layer(self).build())
    }

    /// Returns the time of a term that begins now.
    pub fn leader_time(&self) -> LeaderTime {
        LeaderTime {
            clock: self.0.clock.clone(),
            wall: self.0.clock.wall(),
            boot: self.0.clock.boot(),
        }
    }

    /// Returns how far the API server's clock is ahead of this process's, at least; zero
    /// where they may agree.
    pub fn skew(&self) -> SignedDuration {
        self.state().skew
    }

    /// Returns the API server's time in Unix seconds; `None` before the first answer.
    pub fn api_now(&self) -> Option<i64> {
        let last = self.state().last?;
        let passed = self.0.clock.boot().saturating_sub(last.at);
        Some(after(last.date, passed).as_second())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the `Date` of an answer whose request was sent at `sent`, since boot.
    fn answered(&self, headers: &HeaderMap, sent: Duration) {
        static PARSER: DateTimeParser = DateTimeParser::new();
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let Some(date) = date.and_then(|date| PARSER.parse_timestamp(date).ok()) else {
            return;
        };
        let (wall, at) = (self.0.clock.wall(), self.0.clock.boot());
        let took = at.saturating_sub(sent);
        if took > TOLERANCE {
            // The answer may have been stamped at any moment of that.
            return;
        }
        // The API server's time at the arrival of the answer lies between these two.
        let least = date.duration_since(wall);
        let most = least + SignedDuration::from_secs(1) + signed(took);
        let skew = SignedDuration::ZERO.clamp(least, most);
        let differ = skew.unsigned_abs() > TOLERANCE;
        let mut state = self.state();
        state.last = Some(Sample { date, at });
        state.skew = skew;
        if differ {
            state.differed = Some(at);
        }
        let settled = state
            .differed
            .is_none_or(|then| at.saturating_sub(then) > SETTLED);
        let warned = state.warned;
        let warns = differ || (warned && !settled);
        state.warned = warns;
        drop(state);
        log_change(warned, warns, skew);
    }
}

/// Logs once that the clocks differ, and once that they agree again.
fn log_change(warned: bool, warns: bool, skew: SignedDuration) {
    match (warned, warns) {
        (false, true) => tracing::warn!(
            skew_s = skew.as_secs_f64(),
            "the API server's clock and this replica's differ: set one of them right"
        ),
        (true, false) => {
            tracing::info!("the API server's clock and this replica's agree again")
        }
        _ => {}
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

fn after(time: Timestamp, passed: Duration) -> Timestamp {
    time.checked_add(passed).unwrap_or(Timestamp::MAX)
}

/// A leader's time, for deadlines that outlive it: it never steps within a term.
#[derive(Debug, Clone)]
pub struct LeaderTime {
    clock: Clock,
    /// The clocks as the term began.
    wall: Timestamp,
    boot: Duration,
}

impl LeaderTime {
    /// Returns seconds, which are Unix seconds as far as the wall clock was right when the
    /// term began.
    pub fn now(&self) -> i64 {
        let passed = self.clock.boot().saturating_sub(self.boot);
        after(self.wall, passed).as_second()
    }
}

impl<S> Layer<S> for Clocks {
    type Service = Dated<S>;

    fn layer(&self, inner: S) -> Dated<S> {
        Dated {
            inner,
            clocks: self.clone(),
        }
    }
}

/// The service of a client that takes down the `Date` of each answer.
#[derive(Debug, Clone)]
pub struct Dated<S> {
    inner: S,
    clocks: Clocks,
}

impl<S, B, R> Service<Request<B>> for Dated<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (clocks, sent) = (self.clocks.clone(), self.clocks.0.clock.boot());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            clocks.answered(answer.headers(), sent);
            Ok(answer)
        })
    }
}

#[cfg(test)]
#[path = "clocks_tests.rs"]
mod tests;
