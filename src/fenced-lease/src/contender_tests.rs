#![expect(clippy::unwrap_used)]
use http::{Request, Response};
use kube::client::Body;
use tokio::time::Instant;

use super::*;
use crate::{Clock, LeaderContext, Time, Timings, test_server::PREFIX};

/// The boot clock goes with tokio's, which is paused and skips waiting.
struct Virtual(Instant);

impl Time for Virtual {
    fn boot(&self) -> Duration {
        Duration::from_secs(1_000) + self.0.elapsed()
    }

    fn started(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }
}

async fn nothing(leader: LeaderContext) {
    leader.lost.cancelled().await;
}

/// The API server refuses each request, or never answers.
fn away(is_mute: bool) -> kube::Client {
    let service = tower::service_fn(move |_: Request<Body>| async move {
        if is_mute {
            std::future::pending::<()>().await;
        }
        Err::<Response<Body>, tower::BoxError>("away".into())
    });
    kube::Client::new(service, "n")
}

fn contender(client: &kube::Client) -> Contender {
    Contender::builder(client.clone(), LeaseRef::new("n", "l"))
        .identity(Identity::of_pod("p", "u").with_address("127.0.0.1:1"))
        .names(PREFIX, "ottoscaler")
        .clock(Clock::new(Arc::new(Virtual(Instant::now()))))
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_api_server_away_for_an_hour_does_not_make_the_election_look_dead() {
    const WEDGED: Duration = Duration::from_secs(20);
    for is_mute in [false, true] {
        let one = contender(&away(is_mute));
        let heartbeat = one.heartbeat();
        let mut longest = Duration::ZERO;
        let an_hour = async {
            for _ in 0..36_000 {
                sleep(Duration::from_millis(100)).await;
                longest = longest.max(heartbeat.age());
            }
        };
        tokio::select! {
            () = one.run(nothing, CancellationToken::new()) => panic!("it ended"),
            () = an_hour => {}
        }
        assert!(longest < WEDGED / 2, "silent for {longest:?}");
        // Now it is dead.
        sleep(WEDGED).await;
        assert!(heartbeat.age() >= WEDGED);
    }
}

/// A candidate that waits for a held Lease, then the leader that it becomes, then one
/// that nobody answers.
#[tokio::test(start_paused = true)]
async fn the_election_looks_alive_with_any_timings_that_are_accepted() {
    use crate::{
        test_contender::{Manner, held, start_with},
        test_server::{Asked, Fate},
    };
    const WEDGED: Duration = Duration::from_secs(20);
    let ms = Duration::from_millis;
    for (duration, renew, retry) in [
        (60_000, 40_000, 10_000),
        (3_600_000, 3_599_999, 1_799_999),
        (60_000, 200, 100),
        (6_000, 4_000, 1_000),
        (1_000, 999, 499),
    ] {
        let timings = Timings {
            lease_duration: ms(duration),
            renew_deadline: ms(renew),
            retry_period: ms(retry),
            ..Timings::default()
        };
        assert_eq!(timings.validate(), Ok(()), "{duration} {renew} {retry}");
        let drains = Manner::Drains(Duration::ZERO);
        let one = start_with(&held(), drains, None, timings, ms(2_000));
        let mut longest = Duration::ZERO;
        let mut watch = async |phase: Duration| {
            let until = Instant::now() + phase;
            while Instant::now() < until {
                sleep(ms(250)).await;
                longest = longest.max(one.heartbeat.age());
            }
        };
        // It waits for the whole duration, its own or the holder's, then takes over.
        watch(ms(duration.max(6_000)) + ms(5_000)).await;
        let seen = one.seen.lock().map(|seen| seen.clone());
        assert!(
            one.leads(),
            "{duration} {renew} {retry}: nobody took over; {seen:?}"
        );
        watch(ms(retry) * 5).await;
        one.server.on(|asked: &Asked| {
            if asked.is_lease_call() {
                Fate::Lost
            } else {
                Fate::Answered
            }
        });
        watch(ms(renew) + Duration::from_secs(60)).await;
        assert!(
            longest < WEDGED / 2,
            "{duration} {renew} {retry}: silent for {longest:?}"
        );
    }
}

#[test]
fn a_held_lease_is_looked_at_again_when_it_may_be_free_and_after_some_retry_periods_anyway() {
    let s = Duration::from_secs;
    assert_eq!(pause_while_held(s(103), s(100), s(1)), s(3));
    assert_eq!(pause_while_held(s(160), s(100), s(1)), s(5));
    assert_eq!(pause_while_held(s(90), s(100), s(1)), s(0));
}
