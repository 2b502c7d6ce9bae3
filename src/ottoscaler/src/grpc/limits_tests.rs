#![expect(clippy::unwrap_used)]
use std::convert::Infallible;

use futures::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::grpc::undelivered::UndeliveredResponses;

const WITHIN: Duration = Duration::from_secs(20);

fn limits() -> CallLimits {
    CallLimits::new(2, 100, WITHIN)
}

type MethodResult = Result<Response<Body>, Infallible>;

/// Returns a method that reads its request, as every method does, and then answers with `then`.
fn method<T, F>(
    limits: &CallLimits,
    then: T,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ use<T, F>
where
    T: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send,
{
    limits.layer(tower::service_fn(move |request: Request<Body>| {
        let then = then.clone();
        async move {
            match request.into_body().collect().await {
                Ok(_) => Ok(then().await),
                Err(status) => Ok(status.into_http()),
            }
        }
    }))
}

fn request(grpc_timeout: Option<&str>, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    if let Some(value) = grpc_timeout {
        let headers = request.headers_mut();
        headers.insert("grpc-timeout", value.parse().unwrap());
    }
    request
}

/// Returns a body of so many bytes that does not end.
fn unfinished(bytes: usize) -> Body {
    let first = Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; bytes])));
    let first = futures::stream::iter([first]);
    Body::new(StreamBody::new(first.chain(futures::stream::pending())))
}

fn status(answer: MethodResult) -> Status {
    let response = answer.unwrap();
    Status::from_header_map(response.headers()).unwrap()
}

async fn ok() -> Response<Body> {
    Response::new(Body::empty())
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_ends_at_its_deadline_or_after_five_minutes() {
    let mut waits = method(&limits(), std::future::pending);
    for (given, seconds) in [(Some("7S"), 7), (Some("1H"), 300), (None, 300)] {
        let began = Instant::now();
        let ended = status(waits.call(request(given, Body::empty())).await);
        assert_eq!(ended.code(), Code::DeadlineExceeded);
        let took = began.elapsed().as_millis();
        assert!(
            (seconds * 1_000..=seconds * 1_000 + 2).contains(&took),
            "{given:?}: {took} ms"
        );
    }
}

/// Returns the response of a stream that always has more data.
fn endless() -> Response<Body> {
    let more = futures::stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from("x"))));
    Response::new(Body::new(StreamBody::new(more)))
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_its_deadline_and_not_before() {
    let mut streams = method(&limits(), || async { endless() });
    // This is longer than a unary call may last.
    let response = streams
        .call(request(Some("1H"), Body::empty()))
        .await
        .unwrap();
    let mut body = response.into_body();
    for minute in 0..60 {
        let frame = body.frame().await.unwrap().unwrap();
        assert!(frame.is_data(), "in minute {minute}");
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    let last = body
        .frame()
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    let ended = Status::from_header_map(&last).unwrap();
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    assert!(body.frame().await.is_none());
    // Without a deadline the stream continues.
    let response = streams.call(request(None, Body::empty())).await.unwrap();
    tokio::time::advance(Duration::from_secs(86_400)).await;
    assert!(
        response
            .into_body()
            .frame()
            .await
            .unwrap()
            .unwrap()
            .is_data()
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_sent_whole_ends_and_gives_its_bytes_back() {
    let limits = limits();
    let mut method = method(&limits, ok);
    let (began, call) = (Instant::now(), method.call(request(None, unfinished(60))));
    let ended = status(call.await);
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
    let took = began.elapsed();
    assert!((WITHIN..WITHIN * 2).contains(&took), "{took:?}");
    assert_eq!(limits.requests.used(), 0);
}

/// A client that sends a byte now and then makes no progress.
#[tokio::test(start_paused = true)]
async fn a_request_that_drips_ends_too() {
    let drops = futures::stream::unfold((), |()| async {
        sleep(Duration::from_secs(1)).await;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from("x"))), ()))
    });
    let drips = Body::new(StreamBody::new(drops.boxed()));
    let mut method = method(&limits(), ok);
    let ended = status(method.call(request(None, drips)).await);
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn the_bytes_of_requests_are_bounded_until_they_are_answered() {
    let limits = limits();
    let mut slow = method(&limits, || async {
        sleep(WITHIN / 2).await;
        ok().await
    });
    let sixty = || Body::new(http_body_util::Full::new(Bytes::from(vec![0; 60])));
    // The first request is complete and in flight; the second one exceeds the bound.
    let (first, second) = tokio::join!(slow.call(request(None, sixty())), async {
        sleep(WITHIN / 4).await;
        assert_eq!(limits.requests.used(), 60);
        slow.clone().call(request(None, sixty())).await
    });
    assert_eq!(first.unwrap().headers().get("grpc-status"), None);
    let refused = status(second);
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.get_details_retry_info().is_some());
    assert_eq!(limits.requests.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn calls_under_way_are_bounded_and_a_stream_counts_until_it_ends() {
    let limits = limits();
    let mut streams = method(&limits, || async { endless() });
    let one = streams.call(request(None, Body::empty())).await.unwrap();
    let other = streams.call(request(None, Body::empty())).await.unwrap();
    let refused = status(streams.call(request(None, Body::empty())).await);
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.get_details_retry_info().is_some());
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));
    drop(one);
    assert!(streams.call(request(None, Body::empty())).await.is_ok());
    drop(other);
    assert_eq!(limits.calls.available_permits(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_when_to_retry_in_headers_and_in_trailers() {
    let bare = || Status::unavailable("made by nobody here");
    let mut at_once = method(&limits(), move || async move { bare().into_http() });
    let refused = status(at_once.call(request(None, Body::empty())).await);
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));
    let mut at_the_end = method(&limits(), move || async move {
        let mut trailers = http::HeaderMap::new();
        bare().add_header(&mut trailers).unwrap();
        let end = futures::stream::iter([Ok::<_, Infallible>(Frame::trailers(trailers))]);
        Response::new(Body::new(StreamBody::new(end)))
    });
    let response = at_the_end.call(request(None, Body::empty())).await.unwrap();
    let trailers = response.into_body().collect().await.unwrap();
    let refused = Status::from_header_map(trailers.trailers().unwrap()).unwrap();
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));
    assert!(refused.get_details_retry_info().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_holds_is_held_until_it_was_taken() {
    let undelivered = UndeliveredResponses::new(10);
    let place = undelivered.reserve(7, None).unwrap();
    let mut method = method(&limits(), move || {
        let place = place.clone();
        async move {
            let mut response = endless();
            response.extensions_mut().insert(place);
            response
        }
    });
    let response = method.call(request(None, Body::empty())).await.unwrap();
    drop(method);
    let (_, mut body) = response.into_parts();
    assert!(body.frame().await.is_some());
    assert_eq!(undelivered.used(), 7);
    drop(body);
    assert_eq!(undelivered.used(), 0);
}
