//! Calls that a follower forwards to the leader over loopback, with and without TLS.
#![expect(clippy::unwrap_used)]
use std::{io::Write as _, sync::Mutex, time::Duration};

use ring::digest::{SHA256, digest};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, transport::Endpoint};
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    args::Options,
    domain::request::{Outcome, OutcomeKind, Refusal, ScaleDown, ScaleUp},
    election::{Leader, Leadership, Pause, PauseSwitch},
    grpc::{Health, Router, Server},
    index::Index,
    listen::{ConnectionLimits, Listener},
    logs::LogViewer,
    proto::{ScaleRequest, ottoscaler_service_client::OttoscalerServiceClient},
    tls::{
        Connector, TcpOptions, Tls, TlsConfig, TlsPeer,
        test_certificates::{Ca, config},
    },
    workers::Scale,
};

const REPLICAS: &str = "r-replicas.n.svc";

/// A leader that records who called.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<Option<String>>>);

#[tonic::async_trait]
impl Scale for Recorder {
    async fn scale_up(&self, request: ScaleUp, _: Instant) -> Result<Outcome, Refusal> {
        let caller = request.caller().map(str::to_owned);
        self.0.lock().unwrap().push(caller);
        Ok(Outcome {
            kind: OutcomeKind::Success,
            message: String::new(),
            processed: 0,
            pod_names: vec![],
            task_version: 0,
            pod_version: 0,
        })
    }

    async fn scale_down(&self, request: ScaleDown) -> Result<Outcome, Refusal> {
        Err(Refusal::NoSuchTask(request.task_id().to_owned()))
    }
}

struct Replica {
    address: String,
    tls: Option<TlsPeer>,
    _file: tempfile::NamedTempFile,
    _views: tokio::sync::watch::Sender<Option<Arc<Leader>>>,
    _serving: JoinSet<()>,
}

fn line(name: &str, role: &str) -> String {
    let hash = digest(&SHA256, format!("token-of-{name}").as_bytes());
    let hash: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("{name} {role} {hash}\n")
}

/// Returns what connects to a replica with this configuration.
fn peer(config: &Arc<TlsConfig>) -> TlsPeer {
    let config = config.clone();
    let name = REPLICAS.try_into().unwrap();
    TlsPeer::new(name, move || config.client.clone())
}

/// Starts a replica with such callers, which leads with `scale` or follows a leader.
async fn replica(callers: &str, leads: Result<Arc<Recorder>, &str>) -> Replica {
    replica_with(None, callers, leads).await
}

/// The same, with TLS.
async fn replica_with(
    tls: Option<TlsConfig>,
    callers: &str,
    leads: Result<Arc<Recorder>, &str>,
) -> Replica {
    let tls = tls.map(Arc::new);
    let hop = tls.as_ref().map(peer);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{callers}").unwrap();
    let options = CallerOptions {
        mode: CallerMode::Static,
        file: Some(file.path().to_owned()),
        audience: String::new(),
        replicas_name: Some(REPLICAS.to_owned()),
    };
    let policy = Arc::new(Options::from_lookup(&|_| None).unwrap().worker);
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let nowhere = kube::Client::try_from(nowhere).unwrap();
    let callers = Callers::new(&options, "n", &policy, &nowhere).unwrap();
    let listener = Listener::bind(0, ConnectionLimits::grpc(), Default::default()).unwrap();
    let address = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    let (views, leadership) = Leadership::channel();
    let router = Arc::new(Router::new(leadership, "pod", &address, hop.clone()));
    views.send_replace(Some(Arc::new(Leader {
        term: "u/1/h".parse().unwrap(),
        address: Some(leads.clone().err().unwrap_or(&address).to_owned()),
        is_local: leads.is_ok(),
    })));
    if let Ok(scale) = leads {
        router.lead(scale);
    }
    let server = Server {
        router,
        index: Index::default(),
        policy,
        pause: Pause::channel(false).1,
        show: LogViewer::new(nowhere.clone(), "n", Index::default(), true),
        switch: PauseSwitch::new(nowhere, "n", "l"),
        health: Health::default(),
        callers,
        drain: CancellationToken::new(),
    };
    let mut serving = JoinSet::new();
    let served_with = tls.map(|config| Tls::new(tokio::sync::watch::channel(config).1));
    serving.spawn(async move {
        let stop = CancellationToken::new();
        let _ = server.serve(listener, served_with, stop).await;
    });
    Replica {
        address,
        tls: hop,
        _file: file,
        _views: views,
        _serving: serving,
    }
}

async fn scale_up(replica: &Replica, name: &str, image: &str) -> Result<(), Status> {
    let url = format!("http://{}", replica.address);
    let tcp = TcpOptions {
        keepalive: Duration::from_secs(30),
        retries: 1,
    };
    let connector = Connector::new(tcp, replica.tls.clone());
    let endpoint = Endpoint::from_shared(url).unwrap();
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut client = OttoscalerServiceClient::new(channel);
    let mut request = Request::new(ScaleRequest {
        task_id: "t".into(),
        worker_count: 1,
        build_config: [("OTTO_IMAGE".to_owned(), image.to_owned())].into(),
        ..ScaleRequest::default()
    });
    let token = format!("Bearer token-of-{name}").parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    request.set_timeout(Duration::from_secs(2));
    client.scale_up(request).await.map(|_| ())
}

#[tokio::test]
async fn a_leader_without_proof_of_the_follower_judges_the_clients_own_token() {
    let recorder = Arc::new(Recorder::default());
    let callers = line("ci", "scaler") + &line("ui", "viewer");
    let leader = replica(&callers, Ok(recorder.clone())).await;
    let follower = replica(&callers, Err(&leader.address)).await;
    scale_up(&follower, "ci", "i").await.unwrap();
    scale_up(&leader, "ci", "i").await.unwrap();
    let ci = Some("ci".to_owned());
    assert_eq!(*recorder.0.lock().unwrap(), [ci.clone(), ci]);
    let status = scale_up(&follower, "ui", "i").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert_eq!(recorder.0.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_hop_that_is_refused_by_rights_is_no_refusal_of_the_client() {
    let recorder = Arc::new(Recorder::default());
    for known_to_the_leader in [line("other", "scaler"), line("ci", "viewer")] {
        let leader = replica(&known_to_the_leader, Ok(recorder.clone())).await;
        let follower = replica(&line("ci", "scaler"), Err(&leader.address)).await;
        let status = scale_up(&follower, "ci", "i").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "NOT_LEADER");
    }
    assert!(recorder.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_role_is_held_to_its_narrower_settings() {
    let recorder = Arc::new(Recorder::default());
    let callers =
        line("ci", "scaler") + &line("ops", "admin") + "role scaler ALLOWED_IMAGES=ci/*\n";
    let leader = replica(&callers, Ok(recorder)).await;
    scale_up(&leader, "ci", "ci/agent:1").await.unwrap();
    scale_up(&leader, "ops", "other:1").await.unwrap();
    let status = scale_up(&leader, "ci", "other:1").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("ALLOWED_IMAGES"), "{status:?}");
}

#[tokio::test]
async fn a_leader_believes_a_follower_that_has_the_certificate_of_a_replica() {
    let ca = Ca::new();
    let recorder = Arc::new(Recorder::default());
    let with = |names: &[&str]| Some(config(&[&ca], &ca.issue(names)));
    // Only the follower knows the client.
    let (others, known) = (line("other", "admin"), line("ci", "scaler"));
    let leads = Ok(recorder.clone());
    let leader = replica_with(with(&[REPLICAS]), &others, leads).await;
    let follows = Err(leader.address.as_str());
    let follower = replica_with(with(&[REPLICAS]), &known, follows).await;
    scale_up(&follower, "ci", "i").await.unwrap();
    assert_eq!(*recorder.0.lock().unwrap(), [Some("ci".to_owned())]);
}

#[tokio::test]
async fn a_hop_to_a_server_without_the_name_of_a_replica_is_unavailable_to_the_client() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let recorder = Arc::new(Recorder::default());
    let callers = line("ci", "scaler");
    for (ca_of_leader, name) in [(&ca, "else.n.svc"), (&foreign, REPLICAS)] {
        let own = ca_of_leader.issue(&[name]);
        let leads = Ok(recorder.clone());
        let leader = replica_with(Some(config(&[&ca], &own)), &callers, leads).await;
        let own = ca.issue(&[REPLICAS]);
        let follows = Err(leader.address.as_str());
        let follower = replica_with(Some(config(&[&ca], &own)), &callers, follows).await;
        let status = scale_up(&follower, "ci", "i").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    assert!(recorder.0.lock().unwrap().is_empty());
}
