//! What one call, and all calls together, may take of this replica.
//!
//! A layer around every method of a port. What holds:
//! - A call ends at its client's deadline with DEADLINE_EXCEEDED, whether it has
//!   begun to answer or not; one that has yet to answer ends after
//!   [`LONGEST_CALL`] in any case.
//! - A request is sent whole within [`Limits::body_within`].
//! - Calls under way, streams too, are bounded, and so are the bytes of requests
//!   that have yet to be answered: RESOURCE_EXHAUSTED with a RetryInfo beyond.
//! - What an answer holds ([`Place`] in its extensions) is held until the client
//!   has taken it, or the call has ended.
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, sleep_until, timeout_at},
};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    deadline::{Deadline, LONGEST_CALL, exceeded},
    errors::{self, answered},
    untaken::Place,
};

/// Bytes in use out of so many.
#[derive(Debug)]
pub(super) struct Budget {
    of: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(of: usize) -> Arc<Self> {
        Arc::new(Self {
            of,
            used: AtomicUsize::new(0),
        })
    }

    /// A share of it to begin with; None when there is no room.
    pub(super) fn share(self: &Arc<Self>, bytes: usize) -> Option<Arc<Share>> {
        let share = Arc::new(Share {
            budget: self.clone(),
            bytes: AtomicUsize::new(0),
        });
        share.grow(bytes).then_some(share)
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// What one call holds of a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Share {
    /// Whether there was room for so many more.
    fn grow(&self, bytes: usize) -> bool {
        let Budget { of, used } = &*self.budget;
        let more = |used: usize| used.checked_add(bytes).filter(|sum| sum <= of);
        let fits = used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok();
        if fits {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Of one port; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    calls: Arc<Semaphore>,
    requests: Arc<Budget>,
    /// For a request to be sent whole.
    body_within: Duration,
}

impl Limits {
    pub(super) fn new(calls: usize, request_bytes: usize, body_within: Duration) -> Self {
        Self {
            calls: Arc::new(Semaphore::new(calls)),
            requests: Budget::new(request_bytes),
            body_within,
        }
    }

    /// A place for a call, and its share of the requests' bytes.
    fn admit(&self) -> Result<(OwnedSemaphorePermit, Arc<Share>), Status> {
        let place = self.calls.clone().try_acquire_owned().ok();
        place.zip(self.requests.share(0)).ok_or_else(|| {
            errors::exhausted("this replica has as many calls under way as it takes; try again")
        })
    }
}

impl<S> Layer<S> for Limits {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited {
            inner,
            limits: self.clone(),
        }
    }
}

/// A service within [`Limits`].
#[derive(Debug, Clone)]
pub(super) struct Limited<S> {
    inner: S,
    limits: Limits,
}

impl<S> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready, not its copy.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        let limits = self.limits.clone();
        Box::pin(async move {
            let admitted = Deadline::of(request.headers())
                .and_then(|deadline| Ok((deadline, limits.admit()?)));
            let (deadline, (call, share)) = match admitted {
                Ok(admitted) => admitted,
                Err(status) => return Ok(refused(status)),
            };
            let longest = Instant::now() + LONGEST_CALL;
            let until = deadline.map_or(longest, |Deadline(at)| at.min(longest));
            let mut request = request.map(|body| {
                Body::new(RequestBody {
                    body,
                    within: Box::pin(sleep(limits.body_within)),
                    share: share.clone(),
                })
            });
            if let Some(deadline) = deadline {
                request.extensions_mut().insert(deadline);
            }
            // The request is held by the call that works on it.
            let answer = timeout_at(until, inner.call(request)).await;
            drop(share);
            let mut response = match answer {
                Ok(answer) => answer?,
                Err(_) => return Ok(refused(exceeded())),
            };
            let held = response.extensions_mut().remove::<Arc<Place>>();
            Ok(response.map(|body| {
                Body::new(ResponseBody {
                    body: Some(body),
                    until: deadline.map(|Deadline(at)| Box::pin(sleep_until(at))),
                    _call: call,
                    _held: held,
                })
            }))
        })
    }
}

fn refused(status: Status) -> Response<Body> {
    let refused = answered::<()>(Err(status));
    refused.map_or_else(Status::into_http, |()| Response::default())
}

/// A request on its way in.
struct RequestBody {
    body: Body,
    within: Pin<Box<Sleep>>,
    share: Arc<Share>,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(if self.share.grow(bytes) {
                    Ok(frame)
                } else {
                    Err(errors::exhausted(
                        "this replica holds as many bytes of requests as it takes; try again",
                    ))
                }))
            }
            Poll::Pending if self.within.as_mut().poll(cx).is_ready() => {
                let late = Status::deadline_exceeded("the request was not sent whole in time");
                Poll::Ready(Some(Err(late)))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// An answer on its way out.
struct ResponseBody {
    /// None once the deadline has ended it.
    body: Option<Body>,
    until: Option<Pin<Box<Sleep>>>,
    _call: OwnedSemaphorePermit,
    _held: Option<Arc<Place>>,
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.body.is_none() {
            return Poll::Ready(None);
        }
        // First: a stream that always has more would never come to its end.
        if let Some(until) = &mut self.until
            && until.as_mut().poll(cx).is_ready()
        {
            self.body = None;
            let mut trailers = http::HeaderMap::new();
            return Poll::Ready(Some(
                exceeded()
                    .add_header(&mut trailers)
                    .map(|()| Frame::trailers(trailers)),
            ));
        }
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
