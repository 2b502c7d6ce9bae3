#![expect(clippy::unwrap_used)]
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::Time;

/// Clocks that a test sets, in seconds.
#[derive(Default)]
pub(crate) struct Hands {
    pub(crate) boot: AtomicI64,
    pub(crate) wall: AtomicI64,
}

impl Time for Hands {
    fn boot(&self) -> Duration {
        Duration::from_secs(self.boot.load(Ordering::Relaxed).unsigned_abs())
    }

    fn started(&self) -> Timestamp {
        self.wall()
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_second(self.wall.load(Ordering::Relaxed)).unwrap()
    }
}

const HOUR: i64 = 3_600;
/// By a right clock.
const BEGAN: i64 = 1_800_000_000;

struct World {
    hands: Arc<Hands>,
    clocks: Clocks,
    /// Of the API server's clock.
    off: i64,
}

impl World {
    fn new() -> Self {
        let hands = Arc::new(Hands::default());
        hands.boot.store(10 * HOUR, Ordering::Relaxed);
        hands.wall.store(BEGAN, Ordering::Relaxed);
        Self {
            clocks: Clocks::new(Clock::new(hands.clone())),
            hands,
            off: 0,
        }
    }

    /// All clocks go on.
    fn pass(&self, seconds: i64) {
        self.hands.boot.fetch_add(seconds, Ordering::Relaxed);
        self.hands.wall.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Somebody sets this replica's clock.
    fn step(&self, seconds: i64) {
        self.hands.wall.fetch_add(seconds, Ordering::Relaxed);
    }

    /// The right time.
    fn now(&self) -> i64 {
        BEGAN + self.hands.boot.load(Ordering::Relaxed) - 10 * HOUR
    }

    /// The API server answers what was sent so long ago.
    fn answer(&self, took: i64) {
        let date = Timestamp::from_second(self.now() + self.off).unwrap();
        let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let headers = HeaderMap::from_iter([(DATE, date.parse().unwrap())]);
        let sent = self.hands.boot() - Duration::from_secs(took.unsigned_abs());
        self.clocks.answered(&headers, sent);
    }

    fn skew(&self) -> f64 {
        self.clocks.skew().as_secs_f64()
    }

    fn warned(&self) -> bool {
        self.clocks.state().warned
    }
}

#[test]
fn a_leaders_time_does_not_step_with_the_wall_clock() {
    let world = World::new();
    let time = world.clocks.leader_time();
    for step in [HOUR, -2 * HOUR, 24 * HOUR] {
        world.step(step);
        world.pass(60);
        assert_eq!(time.now(), world.now(), "{step}");
    }
    // A later term begins with what the wall says then, and does not step either.
    let later = world.clocks.leader_time();
    assert_eq!(later.now(), world.now() + 23 * HOUR);
}

#[test]
fn the_api_servers_time_goes_on_between_two_answers_whatever_is_set() {
    let world = World::new();
    assert_eq!(world.clocks.api_now(), None);
    world.answer(0);
    world.step(-HOUR);
    world.pass(100);
    assert_eq!(world.clocks.api_now(), Some(BEGAN + 100));
}

#[test]
fn clocks_that_differ_are_told_once_and_again_when_they_have_agreed_for_a_while() {
    for (by_leader, by_server) in [(HOUR, 0), (-HOUR, 0), (0, HOUR), (0, -HOUR)] {
        let mut world = World::new();
        world.answer(0);
        assert!(!world.warned());
        // One of them steps.
        world.step(by_leader);
        world.off = by_server;
        world.answer(0);
        let skew = (by_server - by_leader) as f64;
        assert!((world.skew() - skew).abs() <= 1.0, "{}", world.skew());
        assert!(world.warned());
        // It is set right, and there may be another API server that is not.
        world.step(-by_leader);
        world.off = 0;
        for _ in 0..6 {
            world.pass(10);
            world.answer(0);
            assert!(world.warned());
        }
        world.pass(1);
        world.answer(0);
        assert_eq!((world.skew(), world.warned()), (0.0, false));
    }
}

#[test]
fn a_slow_answer_and_whole_seconds_are_no_skew() {
    let mut world = World::new();
    // Stamped when it was sent, 5 s before it came.
    world.off = -5;
    world.answer(5);
    assert_eq!((world.skew(), world.warned()), (0.0, false));
    // One that took longer tells nothing.
    world.off = -40;
    world.answer(6);
    assert_eq!(world.clocks.api_now(), Some(BEGAN - 5));
    world.off = -7;
    world.answer(0);
    assert!(world.warned() && world.skew() <= -5.0, "{}", world.skew());
}

#[tokio::test]
async fn every_answer_of_a_client_tells_the_api_servers_time() {
    let world = World::new();
    let date = "Fri, 15 Jan 2027 09:00:00 GMT";
    let server = tower::service_fn(move |_: Request<()>| async move {
        let answer = Response::builder().header(DATE, date).body(())?;
        Ok::<_, http::Error>(answer)
    });
    let mut client = world.clocks.layer(server);
    client.call(Request::new(())).await.unwrap();
    assert_eq!(world.skew(), HOUR as f64);
    assert_eq!(world.clocks.api_now(), Some(BEGAN + HOUR));
}

#[test]
fn an_answer_counts_up_to_the_tolerance() {
    let mut world = World::new();
    world.off = HOUR;
    let tolerance = i64::try_from(TOLERANCE.as_secs()).unwrap();
    world.answer(tolerance + 1);
    assert!(!world.warned());
    world.answer(tolerance);
    assert!(world.warned());
}

#[test]
fn clocks_that_differ_by_the_tolerance_agree() {
    let mut world = World::new();
    world.off = i64::try_from(TOLERANCE.as_secs()).unwrap();
    world.answer(0);
    assert!(!world.warned());
    world.off += 1;
    world.answer(0);
    assert!(world.warned());
}

/// A service that has no room yet.
struct Full;

impl Service<Request<()>> for Full {
    type Response = http::Response<()>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Pending
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Ok(http::Response::new(())))
    }
}

#[test]
fn a_client_is_ready_when_the_service_inside_is() {
    let mut dated = Clocks::default().layer(Full);
    let ready = dated.poll_ready(&mut Context::from_waker(std::task::Waker::noop()));
    assert!(ready.is_pending());
}
