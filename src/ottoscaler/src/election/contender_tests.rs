use http::{Request, Response};
use kube::client::Body;
use tokio::time::Instant;

use super::*;
use crate::election::{Tenure, Time};

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

struct Nothing;

#[tonic::async_trait]
impl Reign for Nothing {
    async fn run(&self, tenure: Tenure) {
        tenure.lost.cancelled().await;
    }
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
    let lease = config::Lease {
        name: "l".to_owned(),
        duration: Duration::from_secs(6),
        renew_deadline: Duration::from_secs(4),
        retry_period: Duration::from_secs(1),
        handover_timeout: Duration::from_secs(20),
    };
    let replica = config::Replica {
        pod_name: "p".to_owned(),
        pod_uid: Some("u".to_owned()),
        address: "127.0.0.1:1".to_owned(),
    };
    let clients = Clients {
        lease: client.clone(),
        work: client.clone(),
        runtime: None,
    };
    let clock = Clock::new(Arc::new(Virtual(Instant::now())));
    Contender::new(lease, replica, "n", clients, Metrics::default(), clock).0
}

#[tokio::test(start_paused = true)]
async fn an_api_server_away_for_an_hour_does_not_make_the_election_look_dead() {
    const WEDGED: Duration = Duration::from_secs(20);
    for is_mute in [false, true] {
        let one = contender(&away(is_mute));
        let beat = one.beat();
        let mut longest = Duration::ZERO;
        let an_hour = async {
            for _ in 0..36_000 {
                sleep(Duration::from_millis(100)).await;
                longest = longest.max(beat.silence());
            }
        };
        tokio::select! {
            () = one.run(Arc::new(Nothing), CancellationToken::new()) => panic!("it ended"),
            () = an_hour => {}
        }
        assert!(longest < WEDGED / 2, "silent for {longest:?}");
        // Now it is dead.
        sleep(WEDGED).await;
        assert!(beat.silence() >= WEDGED);
    }
}

/// A candidate that waits for a held Lease, then the leader that it becomes, then one
/// that nobody answers.
#[tokio::test(start_paused = true)]
async fn the_election_looks_alive_with_any_timings_that_are_accepted() {
    use crate::election::{
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
        let timings = |name: &str| {
            let value = match name {
                "LEASE_NAME" => return Some("l".to_owned()),
                "LEASE_DURATION" => duration,
                "LEASE_RENEW_DEADLINE" => renew,
                "LEASE_RETRY_PERIOD" => retry,
                _ => return None,
            };
            Some(format!("{value}ms"))
        };
        let config = config::Config::from_lookup(&timings);
        assert!(config.is_ok(), "{duration} {renew} {retry}: {config:?}");
        let Ok(config) = config else { return };
        let drains = Manner::Drains(Duration::ZERO);
        let one = start_with(&held(), drains, None, config.lease, ms(2_000));
        let mut longest = Duration::ZERO;
        let mut watch = async |phase: Duration| {
            let until = Instant::now() + phase;
            while Instant::now() < until {
                sleep(ms(250)).await;
                longest = longest.max(one.beat.silence());
            }
        };
        // It waits for the whole duration, its own or the holder's, then takes over.
        watch(ms(duration.max(6_000)) + ms(5_000)).await;
        let seen = one.seen.lock().map(|seen| seen.clone());
        assert!(
            one.metric("ottoscaler_leader 1"),
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

#[tokio::test(start_paused = true)]
async fn a_pause_is_told_when_the_lease_begins_or_ends_it_and_only_then() {
    let one = contender(&away(false));
    let seen = Seen {
        guard: one.guard.clone(),
        lease: watch::channel(None).0,
        wake: watch::channel(()).0,
        paused: one.paused.clone(),
    };
    let mut pause = one.pause(false);
    let lease = |why: Option<&str>| {
        let mut lease = Lease::default();
        let annotation = why.map(|why| ("ottoscaler.io/paused".to_owned(), why.to_owned()));
        lease.metadata.annotations = Some(annotation.into_iter().collect());
        lease
    };
    let second = Duration::from_secs(1);
    for (why, is_news) in [
        (None, false),
        (Some("x"), true),
        (Some("x"), false),
        (None, true),
        (None, false),
    ] {
        seen.apply(lease(why));
        let told = timeout(second, pause.changed()).await.is_ok();
        assert_eq!((told, pause.why().as_deref()), (is_news, why));
    }
}
