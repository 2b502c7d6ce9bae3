//! This replica's clock and the API server's, side by side.
//!
//! What holds: a leader's time is the wall clock as its term began, and moves on with the
//! time since boot, so no step of any clock moves it. The API server's time is the `Date` of
//! an answer, and moves on likewise. They are compared by each answer that a client gets
//! anyway; where they differ people are told, by a metric and once by a warning. Only the
//! history of finished tasks is judged by them, and by both.
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response, header::DATE};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822::DateTimeParser};
use kube::client::ClientBuilder;
use prometheus_client::{
    metrics::gauge::Gauge,
    registry::{Registry, Unit},
};
use tower::{Layer, Service};

use super::Clock;

/// Clocks that differ by more are not the same. A `Date` has whole seconds, and clocks that
/// anything keeps in step differ by milliseconds; the shortest deadline is 45 s.
const TOLERANCE: Duration = Duration::from_secs(5);
/// For so long no answer may have told otherwise, before people are told that clocks which
/// differed agree again: of several API servers one may be wrong. Answers come every few
/// seconds, for each watch is opened again every 15 s.
const SETTLED: Duration = Duration::from_secs(60);

/// Cheap to clone. Written by the clients' answers; read by the worker manager.
#[derive(Debug, Clone, Default)]
pub struct Clocks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    clock: Clock,
    state: Mutex<State>,
    skew: Gauge<f64, AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Sample>,
    /// When an answer last told that they differ (since boot).
    differed: Option<Duration>,
    /// People know that they differ.
    warned: bool,
}

/// One answer's `Date`, and when it came (since boot).
#[derive(Debug, Clone, Copy)]
struct Sample {
    date: Timestamp,
    at: Duration,
}

impl Clocks {
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            clock,
            ..Inner::default()
        }))
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "ottoscaler_clock_skew",
            "How far the API server's clock is ahead of this replica's, at least; 0 where they may agree",
            Unit::Seconds,
            self.0.skew.clone(),
        );
    }

    /// A client whose answers tell the API server's time.
    ///
    /// # Errors
    /// The credentials cannot be used (unreadable certificate …).
    pub fn client(&self, config: kube::Config) -> kube::Result<kube::Client> {
        Ok(ClientBuilder::try_from(config)?.with_layer(self).build())
    }

    /// The time of a term that begins now.
    pub fn leader_time(&self) -> LeaderTime {
        LeaderTime {
            clock: self.0.clock.clone(),
            wall: self.0.clock.wall(),
            boot: self.0.clock.boot(),
        }
    }

    /// The API server's time in Unix seconds; None: no answer told it yet.
    pub fn api_now(&self) -> Option<i64> {
        let last = self.state().last?;
        let passed = self.0.clock.boot().saturating_sub(last.at);
        Some(after(last.date, passed).as_second())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an answer's `Date`; its request was sent at `sent` (since boot).
    fn answered(&self, headers: &HeaderMap, sent: Duration) {
        static PARSER: DateTimeParser = DateTimeParser::new();
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let Some(date) = date.and_then(|date| PARSER.parse_timestamp(date).ok()) else {
            return;
        };
        let (wall, at) = (self.0.clock.wall(), self.0.clock.boot());
        let took = at.saturating_sub(sent);
        if took > TOLERANCE {
            // It may have been stamped at any moment of that.
            return;
        }
        // The API server's time, as the answer came, lies between these two.
        let least = date.duration_since(wall);
        let most = least + SignedDuration::from_secs(1) + signed(took);
        let skew = SignedDuration::ZERO.clamp(least, most);
        self.0.skew.set(skew.as_secs_f64());
        let differ = skew.unsigned_abs() > TOLERANCE;
        let mut state = self.state();
        state.last = Some(Sample { date, at });
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
        match (warned, warns) {
            (false, true) => tracing::warn!(
                skew_s = skew.as_secs_f64(),
                "the API server's clock and this replica's differ; finished tasks are kept until both \
                 say that their time is over, and times that are told are wrong: set one of them right"
            ),
            (true, false) => {
                tracing::info!("the API server's clock and this replica's agree again")
            }
            _ => {}
        }
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

fn after(time: Timestamp, passed: Duration) -> Timestamp {
    time.checked_add(passed).unwrap_or(Timestamp::MAX)
}

/// A leader's time: what its deadlines run on.
#[derive(Debug, Clone)]
pub struct LeaderTime {
    clock: Clock,
    /// As the term began.
    wall: Timestamp,
    boot: Duration,
}

impl LeaderTime {
    /// In seconds, which are Unix seconds as far as the wall clock was right as the term
    /// began. They never step.
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

/// A client's service that takes down the `Date` of each answer.
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
