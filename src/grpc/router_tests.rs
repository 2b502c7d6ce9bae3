#![expect(clippy::unwrap_used)]
use std::sync::Mutex;

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    domain::request::{Outcome, OutcomeKind, ScaleRequest},
    election::Leader,
    grpc::{Health, Server},
    index::Index,
    proto,
};

/// A leader that remembers what it was asked.
#[derive(Debug, Default)]
struct Asked {
    requests: Mutex<Vec<ScaleRequest>>,
    refuse_first: Mutex<Option<Refusal>>,
}

#[tonic::async_trait]
impl Scale for Asked {
    async fn scale_up(&self, request: ScaleRequest) -> Result<Outcome, Refusal> {
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

    async fn scale_down(&self, request: ScaleRequest) -> Result<Outcome, Refusal> {
        self.scale_up(request).await
    }
}

type Views = watch::Sender<Option<Arc<Leader>>>;

fn router(address: &str) -> (Views, Arc<Router>) {
    let (views, leadership) = Leadership::channel();
    (views, Arc::new(Router::new(leadership, "me", address)))
}

fn leader(address: &str, n: i32) -> Option<Arc<Leader>> {
    let term = format!("u/{n}/h").parse().unwrap();
    Some(Arc::new(Leader {
        term,
        address: address.to_owned(),
        here: false,
    }))
}

fn call(within: Duration) -> Call {
    Call {
        verb: Verb::Up,
        request: proto::ScaleRequest {
            task_id: "t".into(),
            worker_count: 1,
            ..Default::default()
        },
        request_id: "r1".into(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        deadline: Instant::now() + within,
        forwarded: false,
    }
}

/// A whole replica on loopback, whose leader is `asked`.
async fn replica(
    asked: Option<Arc<Asked>>,
) -> (String, CancellationToken, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (views, router) = router(&address);
    if let Some(asked) = asked {
        router.lead(asked);
    }
    let config = crate::config::Config::from_lookup(&|_| None).unwrap();
    let server = Server {
        router,
        index: Index::default(),
        policy: Arc::new(config.worker),
        health: Health::default(),
        drain: CancellationToken::new(),
    };
    let stop = CancellationToken::new();
    let mut serving = tokio::task::JoinSet::new();
    let until = stop.clone();
    serving.spawn(async move {
        let _views = views;
        let _ = server.serve(listener, until).await;
    });
    (address, stop, serving)
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_call_crosses_one_hop_with_all_that_belongs_to_it() {
    let asked = Arc::new(Asked::default());
    let (address, _stop, _serving) = replica(Some(asked.clone())).await;
    let (views, follower) = router("127.0.0.1:1");
    views.send_replace(leader(&address, 1));
    let answer = follower.route(call(LONG)).await.unwrap();
    assert_eq!(answer.response.worker_pod_names, ["p"]);
    let got = asked.requests.lock().unwrap().clone();
    assert_eq!(
        (
            got.len(),
            got[0].task_id.as_str(),
            got[0].request_id.as_str()
        ),
        (1, "t", "r1")
    );
    assert!(
        got[0]
            .traceparent
            .as_ref()
            .unwrap()
            .contains("0af7651916cd43dd8448eb211c80319c")
    );
}

#[tokio::test]
async fn a_forwarded_call_is_never_forwarded_again() {
    let asked = Arc::new(Asked::default());
    let (address, _stop, _serving) = replica(Some(asked.clone())).await;
    let (views, router) = router("127.0.0.1:1");
    views.send_replace(leader(&address, 1));
    let marked = Call {
        forwarded: true,
        ..call(LONG)
    };
    let status = router.route(marked).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.get_details_error_info().unwrap().reason,
        "NOT_LEADER"
    );
    assert!(status.get_details_retry_info().is_some());
    // Not even to a replica that leads: the one that sent it looks again.
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
    let here = leader("127.0.0.1:1", 1).map(|l| {
        Arc::new(Leader {
            here: true,
            ..Leader::clone(&l)
        })
    });
    views.send_replace(here);
    let marked = Call {
        forwarded: true,
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
    assert_eq!((got.len(), &got[0].request_id), (2, &got[1].request_id));
}

#[tokio::test]
async fn without_a_leader_the_answer_comes_before_the_deadline() {
    let (_views, router) = router("127.0.0.1:1");
    let deadline = Instant::now() + Duration::from_millis(400);
    let status = router
        .route(Call {
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
    let (address, _stop, _serving) = replica(None).await;
    let (views, leadership) = Leadership::channel();
    // An old record still names us, though we do not lead.
    views.send_replace(leader(&address, 1));
    let router = Router::new(leadership, "me", &address);
    let status = router
        .route(call(Duration::from_millis(300)))
        .await
        .unwrap_err();
    assert!(status.message().contains("no leader"), "{status:?}");
}

#[tokio::test]
async fn a_dead_leader_is_left_for_its_successor() {
    let asked = Arc::new(Asked::default());
    let (alive, _stop, _serving) = replica(Some(asked.clone())).await;
    let (views, router) = router("127.0.0.1:1");
    // Takes connections and answers nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    views.send_replace(leader(&mute.local_addr().unwrap().to_string(), 1));
    let (answer, ()) = tokio::join!(router.route(call(LONG)), async {
        let _taken = mute.accept().await.unwrap();
        views.send_replace(leader(&alive, 2));
        std::future::ready(()).await;
    });
    assert!(answer.is_ok());
}
