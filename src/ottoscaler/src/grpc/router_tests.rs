#![expect(clippy::unwrap_used)]
use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    args::Options,
    domain::request::{Outcome, OutcomeKind, ScaleDown, ScaleUp},
    election::{Leader, Pause, PauseSwitch},
    grpc::{Health, Server, call::ScaleMethod, convert},
    index::Index,
    listen::{ConnectionLimits, Listener},
    proto::{
        self, ScaleRequest, ottoscaler_service_client::OttoscalerServiceClient,
        scale_response::Status as ScaleStatus,
    },
};

/// A leader that records its requests.
#[derive(Debug, Default)]
struct Asked {
    requests: Mutex<Vec<ScaleUp>>,
    refuse_first: Mutex<Option<Refusal>>,
}

#[tonic::async_trait]
impl Scale for Asked {
    async fn scale_up(&self, request: ScaleUp, _: Instant) -> Result<Outcome, Refusal> {
        self.requests.lock().unwrap().push(request);
        if let Some(refusal) = self.refuse_first.lock().unwrap().take() {
            return Err(refusal);
        }
        Ok(Outcome {
            kind: OutcomeKind::Success,
            message: String::new(),
            processed: 1,
            pod_names: vec!["p".into()],
            task_version: 0,
            pod_version: 0,
        })
    }

    async fn scale_down(&self, request: ScaleDown) -> Result<Outcome, Refusal> {
        Err(Refusal::NoSuchTask(request.task_id().to_owned()))
    }
}

/// A leader that answers just before the caller's deadline.
#[derive(Debug)]
struct Patient;

#[tonic::async_trait]
impl Scale for Patient {
    async fn scale_up(&self, _: ScaleUp, deadline: Instant) -> Result<Outcome, Refusal> {
        tokio::time::sleep_until(deadline - Duration::from_millis(50)).await;
        Ok(Outcome {
            kind: OutcomeKind::Partial,
            message: "1 of 1 workers wait".into(),
            processed: 0,
            pod_names: vec![],
            // No watch in these tests ever reaches these versions.
            task_version: 1_000,
            pod_version: 1_000,
        })
    }

    async fn scale_down(&self, _: ScaleDown) -> Result<Outcome, Refusal> {
        Err(Refusal::Unavailable("task \"t\" is being deleted".into()))
    }
}

/// A leader that answers its first call only; later calls never end.
#[derive(Debug, Default)]
struct SaysOnce(AtomicBool);

#[tonic::async_trait]
impl Scale for SaysOnce {
    async fn scale_up(&self, _: ScaleUp, _: Instant) -> Result<Outcome, Refusal> {
        Err(Refusal::NotLeader)
    }

    async fn scale_down(&self, request: ScaleDown) -> Result<Outcome, Refusal> {
        if self.0.swap(true, Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Patient.scale_down(request).await
    }
}

/// A leader that never ends a call.
#[derive(Debug)]
struct NeverEnds;

#[tonic::async_trait]
impl Scale for NeverEnds {
    async fn scale_up(&self, _: ScaleUp, _: Instant) -> Result<Outcome, Refusal> {
        std::future::pending().await
    }

    async fn scale_down(&self, _: ScaleDown) -> Result<Outcome, Refusal> {
        std::future::pending().await
    }
}

type Views = watch::Sender<Option<Arc<Leader>>>;

fn router(address: &str) -> (Views, Arc<Router>) {
    let (views, leadership) = Leadership::channel();
    (
        views,
        Arc::new(Router::new(leadership, "me", address, None)),
    )
}

fn leader(address: &str, n: i32) -> Option<Arc<Leader>> {
    let term = format!("u/{n}/h").parse().unwrap();
    Some(Arc::new(Leader {
        term,
        address: Some(address.to_owned()),
        is_local: false,
    }))
}

/// Returns the same leader as seen in its own replica.
fn leads_here(address: &str, n: i32) -> Option<Arc<Leader>> {
    leader(address, n).map(|l| {
        Arc::new(Leader {
            is_local: true,
            ..Leader::clone(&l)
        })
    })
}

fn call(within: Duration) -> ScaleCall {
    call_of(ScaleMethod::Up, within)
}

fn call_of(method: ScaleMethod, within: Duration) -> ScaleCall {
    let request = proto::ScaleRequest {
        task_id: "t".into(),
        worker_count: 1,
        ..Default::default()
    };
    let request_id = "r1".to_owned();
    let traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    let policy = Options::from_lookup(&|_| None).unwrap().worker;
    let checked = convert::scale_request(request.clone(), request_id.clone(), traceparent.clone());
    ScaleCall {
        checked: Checked::parse(method, checked, &policy).unwrap(),
        request,
        request_id,
        traceparent,
        deadline: Instant::now() + within,
        target_term: None,
        caller: None,
    }
}

/// A whole replica that listens on loopback.
struct Replica {
    address: String,
    router: Arc<Router>,
    views: Views,
    /// The server's task, which ends with the test.
    _serving: tokio::task::JoinSet<()>,
}

/// Starts a replica that leads term 1 with `asked`, if given.
async fn replica(asked: Option<Arc<Asked>>) -> Replica {
    serving(asked.map(|asked| asked as Arc<dyn Scale>)).await
}

async fn serving(scale: Option<Arc<dyn Scale>>) -> Replica {
    let listener = Listener::bind(0, ConnectionLimits::grpc(), Default::default()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let (views, router) = router(&address);
    if let Some(scale) = scale {
        views.send_replace(leads_here(&address, 1));
        router.lead(scale);
    }
    let config = Options::from_lookup(&|_| None).unwrap();
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let nowhere = kube::Client::try_from(nowhere).unwrap();
    let server = Server {
        router: router.clone(),
        index: Index::default(),
        policy: Arc::new(config.worker),
        pause: Pause::channel(false).1,
        show: crate::logs::LogViewer::new(nowhere.clone(), "n", Index::default(), true),
        switch: PauseSwitch::new(nowhere, "n", "l"),
        health: Health::default(),
        callers: crate::grpc::Callers::anyone(),
        drain: CancellationToken::new(),
    };
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        let _ = server.serve(listener, None, CancellationToken::new()).await;
    });
    Replica {
        address,
        router,
        views,
        _serving: serving,
    }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_call_crosses_one_hop_with_all_that_belongs_to_it() {
    let asked = Arc::new(Asked::default());
    let led = replica(Some(asked.clone())).await;
    let (views, follower) = router("127.0.0.1:1");
    views.send_replace(leader(&led.address, 1));
    let answer = follower.route(call(LONG)).await.unwrap();
    assert_eq!(answer.response.worker_pod_names, ["p"]);
    let got = asked.requests.lock().unwrap().clone();
    assert_eq!(
        (
            got.len(),
            got[0].spec().task_id.as_str(),
            got[0].request_id()
        ),
        (1, "t", "r1")
    );
    assert!(
        got[0]
            .spec()
            .traceparent
            .as_ref()
            .unwrap()
            .contains("0af7651916cd43dd8448eb211c80319c")
    );
}

#[tokio::test]
async fn a_call_crosses_the_hop_to_an_ipv6_address() {
    let asked = Arc::new(Asked::default());
    let led = replica(Some(asked.clone())).await;
    let (_, port) = led.address.rsplit_once(':').unwrap();
    let (views, follower) = router("[fd00::1]:9090");
    views.send_replace(leader(&format!("[::1]:{port}"), 1));
    assert!(follower.route(call(LONG)).await.is_ok());
}

/// Returns a client of a replica and a request that has little time.
async fn hurried(
    address: &str,
) -> (
    OttoscalerServiceClient<Channel>,
    tonic::Request<ScaleRequest>,
) {
    let url = format!("http://{address}");
    let client = OttoscalerServiceClient::connect(url).await.unwrap();
    let mut request = tonic::Request::new(call(LONG).request);
    request.set_timeout(Duration::from_millis(1_500));
    (client, request)
}

#[tokio::test]
async fn what_waits_is_told_before_the_callers_deadline_also_over_the_hop() {
    let led = serving(Some(Arc::new(Patient))).await;
    let follower = replica(None).await;
    follower.views.send_replace(leader(&led.address, 1));
    for address in [&led.address, &follower.address] {
        let (mut client, request) = hurried(address).await;
        let answer = client.scale_up(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ScaleStatus::PartialSuccess);
        assert!(answer.behind);
    }
}

#[tokio::test]
async fn a_call_that_a_leader_does_not_finish_exceeds_its_deadline_also_over_the_hop() {
    let led = serving(Some(Arc::new(NeverEnds))).await;
    let follower = replica(None).await;
    follower.views.send_replace(leader(&led.address, 1));
    for address in [&led.address, &follower.address] {
        let (mut client, request) = hurried(address).await;
        let status = client.scale_down(request).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        // The replica says so, and not the client's own clock.
        let reason = status.get_details_error_info().unwrap().reason;
        assert_eq!(reason, "NOT_FINISHED");
        assert!(!status.metadata().contains_key("grpc-retry-pushback-ms"));
    }
}

#[tokio::test]
async fn what_a_leader_said_is_told_when_the_time_is_over() {
    let leaders: [Arc<dyn Scale>; 2] = [Arc::new(Patient), Arc::new(SaysOnce::default())];
    for leader in leaders {
        let (_views, router) = router("127.0.0.1:1");
        router.lead(leader);
        let down = call_of(ScaleMethod::Down, Duration::from_millis(450));
        let status = router.route(down).await.unwrap_err();
        assert!(status.message().contains("being deleted"), "{status:?}");
        assert!(status.get_details_retry_info().is_some());
    }
}

#[tokio::test]
async fn a_forwarded_call_is_never_forwarded_again() {
    let asked = Arc::new(Asked::default());
    let led = replica(Some(asked.clone())).await;
    let (views, router) = router("127.0.0.1:1");
    views.send_replace(leader(&led.address, 1));
    let marked = ScaleCall {
        target_term: Some("u/1/h".into()),
        ..call(LONG)
    };
    let status = router.route(marked).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.get_details_error_info().unwrap().reason,
        "NOT_LEADER"
    );
    assert!(status.get_details_retry_info().is_some());
    // The call does not even reach a replica that leads: the follower that sent it looks again.
    assert!(asked.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_call_is_held_until_there_is_a_leader() {
    let asked = Arc::new(Asked::default());
    let (_views, router) = router("127.0.0.1:1");
    let (held, ()) = tokio::join!(router.route(call(LONG)), async {
        tokio::task::yield_now().await;
        router.lead(asked.clone());
    });
    assert!(held.is_ok());
}

#[tokio::test]
async fn a_forwarded_call_waits_for_the_work_of_a_term_that_has_just_begun() {
    let asked = Arc::new(Asked::default());
    let (views, router) = router("127.0.0.1:1");
    views.send_replace(leads_here("127.0.0.1:1", 1));
    let marked = ScaleCall {
        target_term: Some("u/1/h".into()),
        ..call(LONG)
    };
    let (answered, ()) = tokio::join!(router.route(marked), async {
        tokio::task::yield_now().await;
        router.lead(asked.clone());
    });
    assert!(answered.is_ok());
}

#[tokio::test]
async fn a_leader_that_leaves_in_the_middle_gives_the_call_back_and_it_is_replayed() {
    let asked = Arc::new(Asked::default());
    *asked.refuse_first.lock().unwrap() = Some(Refusal::NotLeader);
    let (_views, router) = router("127.0.0.1:1");
    router.lead(asked.clone());
    assert!(router.route(call(LONG)).await.is_ok());
    let got = asked.requests.lock().unwrap().clone();
    assert_eq!((got.len(), got[0].request_id()), (2, got[1].request_id()));
}

#[tokio::test]
async fn without_a_leader_the_answer_comes_before_the_deadline() {
    let (_views, router) = router("127.0.0.1:1");
    let deadline = Instant::now() + Duration::from_millis(400);
    let status = router
        .route(ScaleCall {
            deadline,
            ..call(LONG)
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(Instant::now() <= deadline + Duration::from_millis(100));
}

#[tokio::test]
async fn a_replica_never_dials_itself() {
    let address = replica(None).await.address;
    let (views, leadership) = Leadership::channel();
    // An old Lease still names this replica, which does not lead.
    views.send_replace(leader(&address, 1));
    let router = Router::new(leadership, "me", &address, None);
    let status = router
        .route(call(Duration::from_millis(300)))
        .await
        .unwrap_err();
    assert!(status.message().contains("no leader"), "{status:?}");
}

#[tokio::test]
async fn a_dead_leader_is_left_for_its_successor() {
    let asked = Arc::new(Asked::default());
    let alive = replica(Some(asked.clone())).await;
    let (views, router) = router("127.0.0.1:1");
    // It accepts connections and answers nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    views.send_replace(leader(&mute.local_addr().unwrap().to_string(), 0));
    let (answer, ()) = tokio::join!(router.route(call(LONG)), async {
        let _taken = mute.accept().await.unwrap();
        views.send_replace(leader(&alive.address, 1));
        std::future::ready(()).await;
    });
    assert!(answer.is_ok());
}

#[tokio::test]
async fn a_call_meant_for_another_term_is_not_answered_here() {
    let asked = Arc::new(Asked::default());
    let led = replica(Some(asked.clone())).await;
    let (views, follower) = router("127.0.0.1:1");
    // This is, for example, the term of another installation, or an older one at the same address.
    views.send_replace(leader(&led.address, 7));
    let status = follower
        .route(call(Duration::from_secs(1)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(asked.requests.lock().unwrap().is_empty());
    views.send_replace(leader(&led.address, 1));
    assert!(follower.route(call(LONG)).await.is_ok());
    assert_eq!(asked.requests.lock().unwrap().len(), 1);
}

/// Both views are outdated: each follower takes the other for the leader.
#[tokio::test]
async fn followers_that_take_each_other_for_the_leader_find_the_one_there_is() {
    let asked = Arc::new(Asked::default());
    let led = replica(Some(asked.clone())).await;
    let (one, other) = (replica(None).await, replica(None).await);
    one.views.send_replace(leader(&other.address, 5));
    other.views.send_replace(leader(&one.address, 6));
    let wrong = one.router.route(call(Duration::from_millis(700))).await;
    let status = wrong.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(
        status.get_details_error_info().unwrap().reason,
        "NOT_LEADER"
    );
    let (first, second, ()) = tokio::join!(
        one.router.route(call(LONG)),
        other.router.route(call(LONG)),
        async {
            tokio::time::sleep(LEADER_POLL_INTERVAL * 3).await;
            one.views.send_replace(leader(&led.address, 1));
            other.views.send_replace(leader(&led.address, 1));
        }
    );
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    // Each call arrives once, over one hop.
    assert_eq!(asked.requests.lock().unwrap().len(), 2);
}

/// Starts a gRPC server of another kind, which counts its calls.
async fn stranger(asked: Arc<AtomicUsize>) -> (String, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (_, health) = tonic_health::server::health_reporter();
    let serve = tonic::transport::Server::builder()
        .trace_fn(move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            tracing::Span::none()
        })
        .add_service(health)
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        let _ = serve.await;
    });
    (address, serving)
}

/// Kubernetes gives the address of a dead pod to another one.
#[tokio::test]
async fn a_stranger_at_a_dead_leaders_address_does_not_answer_for_it() {
    let asked = Arc::new(Asked::default());
    let alive = replica(Some(asked.clone())).await;
    let strange = Arc::new(AtomicUsize::new(0));
    let (address, _serving) = stranger(strange.clone()).await;
    let (views, router) = router("127.0.0.1:1");
    views.send_replace(leader(&address, 0));
    let (answer, ()) = tokio::join!(router.route(call(LONG)), async {
        let until = Instant::now() + LONG / 2;
        while strange.load(Ordering::SeqCst) < 2 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        views.send_replace(leader(&alive.address, 1));
    });
    assert!(answer.is_ok(), "{answer:?}");
    assert!(
        strange.load(Ordering::SeqCst) >= 2,
        "the stranger was not asked"
    );
    assert_eq!(asked.requests.lock().unwrap().len(), 1);
    // When there is no leader, the client does not see the refusal of the other server.
    views.send_replace(leader(&address, 0));
    let status = router
        .route(call(Duration::from_millis(500)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_details_retry_info().is_some());
}

/// The leader's address refuses connections while 500 calls wait for it.
#[tokio::test]
async fn calls_that_wait_share_one_attempt_to_connect_and_its_backoff() {
    let asked = Arc::new(Asked::default());
    let alive = replica(Some(asked.clone())).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    let (views, router) = router("127.0.0.1:1");
    views.send_replace(leader(&address, 0));
    let calls = futures::future::join_all((0..500).map(|_| router.route(call(LONG))));
    let change = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let attempts = router.forwarding_client.connect_attempts();
        let began = Instant::now();
        views.send_replace(leader(&alive.address, 1));
        (attempts, began)
    };
    let (answers, (attempts, began)) = tokio::join!(calls, change);
    // The attempts begin after 0, 100 ms, 300 ms, 700 ms, 1.5 s and 2.5 s.
    assert!((4..=7).contains(&attempts), "{attempts} in 2 s");
    assert!(answers.iter().all(Result::is_ok));
    // No call waited for the backoff before it noticed the new leader.
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(asked.requests.lock().unwrap().len(), 500);
    assert_eq!(router.forwarding_client.connect_attempts(), attempts + 1);
}

/// The address accepts connections and closes them, as a proxy without a backend does.
#[tokio::test]
async fn a_leader_that_hangs_up_is_not_stormed() {
    let hangs_up = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (views, router) = router("127.0.0.1:1");
    let address = hangs_up.local_addr().unwrap().to_string();
    views.send_replace(leader(&address, 0));
    let mut taken = 0;
    let calls =
        futures::future::join_all((0..500).map(|_| router.route(call(Duration::from_secs(2)))));
    let take = async {
        while hangs_up.accept().await.is_ok() {
            taken += 1;
        }
    };
    let answers = tokio::select! {
        answers = calls => answers,
        () = take => panic!("it ended"),
    };
    // Each attempt makes one connection, and calls in flight may reconnect over it.
    assert!(taken <= 25, "{taken} connections in 2 s");
    for status in answers.into_iter().filter_map(Result::err) {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
}

#[tokio::test]
async fn a_closed_port_at_a_dead_leaders_address_is_left_for_its_successor() {
    let asked = Arc::new(Asked::default());
    let alive = replica(Some(asked.clone())).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    let (views, router) = router("127.0.0.1:1");
    views.send_replace(leader(&address, 0));
    let status = router
        .route(call(Duration::from_millis(500)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    let (answer, ()) = tokio::join!(router.route(call(LONG)), async {
        tokio::time::sleep(LEADER_POLL_INTERVAL * 3).await;
        views.send_replace(leader(&alive.address, 1));
    });
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(asked.requests.lock().unwrap().len(), 1);
}
