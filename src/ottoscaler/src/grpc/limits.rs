//! A layer around every method of a port that limits each call and all calls together.
//!
//! Invariants:
//! - A call ends at its client's deadline with DEADLINE_EXCEEDED, whether its response has begun
//!   or not. A call without a response ends after [`MAX_UNARY_CALL`] in any case.
//! - A client sends its whole request within [`CallLimits::body_timeout`], or the call ends.
//! - The calls in flight, streams included, are bounded, and so are the bytes of requests that have
//!   yet to be answered. A call beyond either bound gets RESOURCE_EXHAUSTED with a RetryInfo.
//! - A response that refuses a call says when to retry ([`retry`]).
//! - The [`DeliverySlot`] in the extensions of a response is held until the client has read the
//!   response or the call has ended.
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
    deadline::{CallDeadline, MAX_UNARY_CALL, deadline_exceeded},
    errors::{self, record_outcome},
    retry,
    undelivered::DeliverySlot,
};

/// A `ByteBudget` bounds a number of bytes in use.
#[derive(Debug)]
pub(super) struct ByteBudget {
    capacity: usize,
    used: AtomicUsize,
}

impl ByteBudget {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            used: AtomicUsize::new(0),
        })
    }

    /// Reserves bytes, or returns none when too few are left.
    pub(super) fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Arc<ByteReservation>> {
        let reservation = Arc::new(ByteReservation {
            budget: self.clone(),
            bytes: AtomicUsize::new(0),
        });
        reservation.try_grow(bytes).then_some(reservation)
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A `ByteReservation` is the part of a [`ByteBudget`] that one call uses. It is released on drop.
#[derive(Debug)]
pub(super) struct ByteReservation {
    budget: Arc<ByteBudget>,
    bytes: AtomicUsize,
}

impl ByteReservation {
    /// Reserves more bytes and reports whether enough were left.
    fn try_grow(&self, bytes: usize) -> bool {
        let ByteBudget { capacity, used } = &*self.budget;
        let more = |used: usize| used.checked_add(bytes).filter(|sum| sum <= capacity);
        let fits = used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok();
        if fits {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }
}

impl Drop for ByteReservation {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The `CallLimits` of one port are shared by its calls and cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct CallLimits {
    calls: Arc<Semaphore>,
    requests: Arc<ByteBudget>,
    /// The time in which a client must send its whole request.
    body_timeout: Duration,
}

impl CallLimits {
    pub(super) fn new(calls: usize, request_bytes: usize, body_timeout: Duration) -> Self {
        Self {
            calls: Arc::new(Semaphore::new(calls)),
            requests: ByteBudget::new(request_bytes),
            body_timeout,
        }
    }

    /// Admits a call, with an empty reservation for the bytes of its request.
    fn admit(&self) -> Result<(OwnedSemaphorePermit, Arc<ByteReservation>), Status> {
        let permit = self.calls.clone().try_acquire_owned().ok();
        permit.zip(self.requests.reserve(0)).ok_or_else(|| {
            errors::resource_exhausted(
                "this replica has reached its maximum of calls in flight; try again",
            )
        })
    }
}

impl<S> Layer<S> for CallLimits {
    type Service = LimitedService<S>;

    fn layer(&self, inner: S) -> LimitedService<S> {
        LimitedService {
            inner,
            limits: self.clone(),
        }
    }
}

/// A `LimitedService` applies [`CallLimits`] to the service inside.
#[derive(Debug, Clone)]
pub(super) struct LimitedService<S> {
    inner: S,
    limits: CallLimits,
}

impl<S> Service<Request<Body>> for LimitedService<S>
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
        // The call must go to the instance that is ready, and not to its clone.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        let limits = self.limits.clone();
        Box::pin(async move {
            let admitted = CallDeadline::from_headers(request.headers())
                .and_then(|deadline| Ok((deadline, limits.admit()?)));
            let (deadline, (permit, reservation)) = match admitted {
                Ok(admitted) => admitted,
                Err(status) => return Ok(refusal_response(status)),
            };
            let longest = Instant::now() + MAX_UNARY_CALL;
            let until = deadline.map_or(longest, |CallDeadline(at)| at.min(longest));
            let mut request = request.map(|body| {
                Body::new(RequestBody {
                    body,
                    timeout: Box::pin(sleep(limits.body_timeout)),
                    reservation: reservation.clone(),
                })
            });
            if let Some(deadline) = deadline {
                request.extensions_mut().insert(deadline);
            }
            // The body of the request has a reservation of its own, and this one keeps the bytes
            // reserved until there is a response.
            let answer = timeout_at(until, inner.call(request)).await;
            drop(reservation);
            let mut response = match answer {
                Ok(answer) => answer?,
                Err(_) => return Ok(refusal_response(deadline_exceeded())),
            };
            // Most refusals come without a body, in the headers alone.
            retry::advise_headers(response.headers_mut());
            let slot = response.extensions_mut().remove::<Arc<DeliverySlot>>();
            Ok(response.map(|body| {
                Body::new(ResponseBody {
                    body: Some(body),
                    until: deadline.map(|CallDeadline(at)| Box::pin(sleep_until(at))),
                    _permit: permit,
                    _slot: slot,
                })
            }))
        })
    }
}

fn refusal_response(status: Status) -> Response<Body> {
    let refused = record_outcome::<()>(Err(status));
    refused.map_or_else(Status::into_http, |()| Response::default())
}

/// A `RequestBody` counts the bytes of a request and ends it when it arrives too slowly.
struct RequestBody {
    body: Body,
    timeout: Pin<Box<Sleep>>,
    reservation: Arc<ByteReservation>,
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
                Poll::Ready(Some(if self.reservation.try_grow(bytes) {
                    Ok(frame)
                } else {
                    Err(errors::resource_exhausted(
                        "this replica has reached its maximum of request bytes in flight; try again",
                    ))
                }))
            }
            Poll::Pending if self.timeout.as_mut().poll(cx).is_ready() => {
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

/// A `ResponseBody` ends a response at the deadline and holds what the call uses until then.
struct ResponseBody {
    /// The body, until the deadline has ended it.
    body: Option<Body>,
    until: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
    _slot: Option<Arc<DeliverySlot>>,
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
        // The deadline comes first: a stream that always has more data would never reach its end.
        if let Some(until) = &mut self.until
            && until.as_mut().poll(cx).is_ready()
        {
            self.body = None;
            let mut trailers = http::HeaderMap::new();
            return Poll::Ready(Some(
                deadline_exceeded()
                    .add_header(&mut trailers)
                    .map(|()| Frame::trailers(trailers)),
            ));
        }
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx).map_ok(|mut frame| {
                if let Some(trailers) = frame.trailers_mut() {
                    retry::advise_headers(trailers);
                }
                frame
            }),
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
