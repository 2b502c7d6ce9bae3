//! Calls to a whole replica on loopback, by a stock client and by raw HTTP/2.
#![expect(clippy::unwrap_used)]
use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, body::Body, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus as Wire, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    cluster::watch::WatchHandler as _,
    domain::task::{Task, TaskSpec},
    election::Leadership,
    index::{PodFeed, TaskFeed},
    listen::ConnectionLimits,
    proto::{
        ShowLogsRequest, ottoscaler_admin_service_client::OttoscalerAdminServiceClient,
        ottoscaler_service_client::OttoscalerServiceClient,
    },
};

const LONG: Duration = Duration::from_secs(20);

/// A replica that ends with the test.
struct Replica {
    port: u16,
    index: Index,
    _serving: JoinSet<()>,
}

async fn replica() -> Replica {
    let index = Index::default();
    let config = crate::args::Options::from_lookup(&|_| None).unwrap();
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let nowhere = kube::Client::try_from(nowhere).unwrap();
    let (_, leadership) = Leadership::channel();
    let server = Server {
        router: Arc::new(Router::new(leadership, "me", "127.0.0.1:1", None)),
        index: index.clone(),
        policy: Arc::new(config.worker),
        pause: Pause::channel(false).1,
        show: LogViewer::new(nowhere.clone(), "n", index.clone(), true),
        switch: PauseSwitch::new(nowhere, "n", "l"),
        health: Health::default(),
        callers: crate::grpc::Callers::anyone(),
        drain: CancellationToken::new(),
    };
    let listener = Listener::bind(0, ConnectionLimits::grpc(), Default::default()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let _ = server.serve(listener, None, CancellationToken::new()).await;
    });
    Replica {
        port,
        index,
        _serving: serving,
    }
}

/// Returns a replica whose watches have listed an empty cluster.
async fn synced() -> Replica {
    let replica = replica().await;
    TaskFeed(replica.index.clone()).reset(vec![], 1);
    PodFeed(replica.index.clone()).reset(vec![], 1);
    replica
}

impl Replica {
    async fn channel(&self) -> Channel {
        self.channel_at("127.0.0.1").await
    }

    async fn channel_at(&self, host: &str) -> Channel {
        let url = format!("http://{host}:{}", self.port);
        Channel::from_shared(url).unwrap().connect().await.unwrap()
    }

    async fn service(&self) -> OttoscalerServiceClient<Channel> {
        OttoscalerServiceClient::new(self.channel().await)
    }
}

fn within<T>(message: T, grpc_timeout: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = grpc_timeout.parse().unwrap();
    request.metadata_mut().insert("grpc-timeout", value);
    request
}

/// The server must also work in an IPv6-only cluster.
#[tokio::test]
async fn both_address_families_are_answered() {
    let replica = synced().await;
    for host in ["127.0.0.1", "[::1]"] {
        let mut service = OttoscalerServiceClient::new(replica.channel_at(host).await);
        let answer = service
            .get_worker_status(WorkerStatusRequest::default())
            .await;
        assert_eq!(answer.unwrap().into_inner().total_count, 0, "{host}");
    }
}

/// It uses raw HTTP/2, because stock clients enforce the deadline themselves.
#[tokio::test]
async fn a_deadline_that_is_none_is_refused_and_nothing_panics() {
    let replica = synced().await;
    let mut clients = JoinSet::new();
    for text in [
        "18446744073709551615H",
        "123456789S",
        "5",
        "+5S",
        "soon",
        "",
    ] {
        for method in ["ScaleUp", "GetWorkerStatus", "WatchWorkers"] {
            let path = format!("ottoscaler.v1.OttoscalerService/{method}");
            let empty = Body::new(http_body_util::Full::from(EMPTY));
            let code = raw(&replica, &path, Some(text), empty, &mut clients).await;
            assert_eq!(code, Some(Code::InvalidArgument as i32), "{text} {method}");
        }
    }
}

#[tokio::test]
async fn an_expired_deadline_ends_every_method() {
    let replica = synced().await;
    let mut clients = JoinSet::new();
    for method in [
        "ottoscaler.v1.OttoscalerService/ScaleUp",
        "ottoscaler.v1.OttoscalerService/ScaleDown",
        "ottoscaler.v1.OttoscalerService/GetWorkerStatus",
        "ottoscaler.v1.OttoscalerService/WatchWorkers",
        "ottoscaler.v1.OttoscalerAdminService/Pause",
        "ottoscaler.v1.OttoscalerAdminService/Resume",
        "ottoscaler.v1.OttoscalerAdminService/ShowLogs",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        for text in ["0S", "00000000n"] {
            let empty = Body::new(http_body_util::Full::from(EMPTY));
            let code = raw(&replica, method, Some(text), empty, &mut clients).await;
            assert_eq!(code, Some(Code::DeadlineExceeded as i32), "{method}");
        }
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_deadline() {
    let replica = synced().await;
    let began = Instant::now();
    let request = within(WorkerStatusRequest::default(), "300m");
    let mut events = replica
        .service()
        .await
        .watch_workers(request)
        .await
        .unwrap()
        .into_inner();
    let ended = async {
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                other => return other,
            }
        }
    };
    let status = timeout(LONG, ended).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(began.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_replica_that_has_not_listed_yet_answers_no_reader() {
    let replica = replica().await;
    let mut service = replica.service().await;
    let mut admin = OttoscalerAdminServiceClient::new(replica.channel().await);
    let logs = ShowLogsRequest {
        task_id: "t".into(),
        ..Default::default()
    };
    let nothing = WorkerStatusRequest::default;
    for status in [
        service.get_worker_status(nothing()).await.err(),
        service.watch_workers(nothing()).await.err(),
        admin.show_logs(logs).await.err(),
    ] {
        let status = status.unwrap();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.get_details_retry_info().is_some(), "{status:?}");
    }
}

async fn health_watch(
    replica: &Replica,
    service: &str,
) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    HealthClient::new(replica.channel().await)
        .watch(request)
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test]
async fn health_of_an_unknown_service_is_not_found_and_watched_as_unknown() {
    let replica = synced().await;
    let mut health = HealthClient::new(replica.channel().await);
    let request = HealthCheckRequest {
        service: "nobody".into(),
    };
    let status = health.check(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let mut watched = health_watch(&replica, "nobody").await;
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!(first.status(), Wire::ServiceUnknown);
    // The stream continues, because the service may appear.
    assert!(
        timeout(Duration::from_millis(300), watched.next())
            .await
            .is_err()
    );
}

/// Returns a body that begins as given and never ends.
fn unfinished(beginning: Bytes) -> Body {
    let first = futures::stream::iter([Ok::<_, Infallible>(Frame::data(beginning))]);
    Body::new(StreamBody::new(first.chain(futures::stream::pending())))
}

/// A message without fields.
const EMPTY: Bytes = Bytes::from_static(&[0; 5]);

/// Makes a call and returns the code with which it ends.
async fn raw(
    replica: &Replica,
    path: &str,
    grpc_timeout: Option<&str>,
    body: Body,
    clients: &mut JoinSet<()>,
) -> Option<i32> {
    let address = ("127.0.0.1", replica.port);
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    clients.spawn(async move { drop(connection.await) });
    let mut request = http::Request::post(format!("http://127.0.0.1/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(value) = grpc_timeout {
        request = request.header("grpc-timeout", value);
    }
    let request = request.body(body).unwrap();
    let response = timeout(LONG * 3, send.send_request(request))
        .await
        .unwrap()
        .unwrap();
    let status = |headers: &http::HeaderMap| {
        let value = headers.get("grpc-status")?;
        value.to_str().unwrap().parse().ok()
    };
    if let Some(code) = status(response.headers()) {
        return Some(code);
    }
    let body = response.into_body().collect().await.ok()?;
    body.trailers().and_then(status)
}

#[tokio::test]
async fn an_unfinished_request_is_ended() {
    let replica = synced().await;
    let mut clients = JoinSet::new();
    let header = Bytes::from_static(&[0, 0, 0x10, 0, 0]);
    let path = "ottoscaler.v1.OttoscalerService/ScaleUp";
    let code = raw(&replica, path, None, unfinished(header), &mut clients).await;
    assert_eq!(code, Some(Code::DeadlineExceeded as i32));
}

/// Stores tasks of 1,000 workers each.
fn with_workers(replica: &Replica, tasks: u64) {
    use crate::domain::task::{TaskStatus, WorkerRecord};
    for n in 0..tasks {
        let record = |index| WorkerRecord {
            index,
            attempt: 1,
            node: "ip-10-0-132-77.eu-central-1.compute.internal".into(),
            ..WorkerRecord::default()
        };
        replica.index.wrote_task(Task {
            name: format!("build-{n}"),
            uid: format!("u{n}"),
            resource_version: 2,
            spec: TaskSpec {
                task_id: format!("build-{n}"),
                repository: "organisation/application".into(),
                commit_sha: "4f0c1d7a54bd1d6b3bd1a3a3a8a59c0d0c1fbb6e".into(),
                workers: 1_000,
                ..TaskSpec::default()
            },
            status: TaskStatus {
                workers: (1..=1_000).map(record).collect(),
                ..TaskStatus::default()
            },
            ..Task::default()
        });
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_gets_pages_that_it_accepts() {
    let replica = synced().await;
    with_workers(&replica, 20);
    let mut usual = replica.service().await;
    let (mut names, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = WorkerStatusRequest {
            page_token: token,
            ..Default::default()
        };
        let answer = usual.get_worker_status(request).await.unwrap().into_inner();
        assert_eq!((answer.workers.len(), answer.total_count), (2_000, 20_000));
        names.extend(answer.workers.into_iter().map(|w| w.pod_name));
        pages += 1;
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    names.sort();
    names.dedup();
    assert_eq!((pages, names.len()), (10, 20_000));
    let of_other_filters = WorkerStatusRequest {
        page_token: "AAAA".into(),
        ..Default::default()
    };
    let negative = WorkerStatusRequest {
        page_size: -1,
        ..Default::default()
    };
    for (field, request) in [("page_token", of_other_filters), ("page_size", negative)] {
        let status = usual.get_worker_status(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let details = status.get_details_bad_request().unwrap();
        assert_eq!(details.field_violations[0].field, field);
    }
    let of_three = WorkerStatusRequest {
        page_size: 3,
        ..Default::default()
    };
    let answer = usual
        .get_worker_status(of_three)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.workers.len(), 3);
}

#[tokio::test]
async fn tasks_come_newest_first_page_by_page_while_others_come() {
    let replica = synced().await;
    let task = |n: i64, version| Task {
        name: format!("t-{n}"),
        uid: format!("u{n}"),
        resource_version: version,
        // Each second has two tasks.
        created: 1_000_000 + n / 2,
        spec: TaskSpec {
            task_id: format!("t-{n}"),
            repository: (if n % 3 == 0 { "a" } else { "b" }).to_owned(),
            workers: 1,
            ..TaskSpec::default()
        },
        ..Task::default()
    };
    for n in 0..50 {
        replica.index.wrote_task(task(n, 2));
    }
    let mut service = replica.service().await;
    for (repository, expected) in [("", 50), ("a", 17), ("none", 0)] {
        let is_selected = |t: &Task| repository.is_empty() || t.spec.repository == repository;
        let all = replica.index.tasks();
        let total = all.iter().filter(|t| is_selected(t)).count();
        let (mut ids, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let request = ListTasksRequest {
                repository: repository.to_owned(),
                page_size: 7,
                page_token,
                ..Default::default()
            };
            let answer = service.list_tasks(request).await.unwrap().into_inner();
            assert!(answer.tasks.len() <= 7);
            if pages == 0 {
                assert_eq!(
                    usize::try_from(answer.total_count),
                    Ok(total),
                    "{repository}"
                );
            }
            let numbers = answer.tasks.iter().map(|t| &t.task_id[2..]);
            ids.extend(numbers.map(|n| n.parse::<i64>().unwrap()));
            pages += 1;
            // A newer one, which is on no later page.
            replica.index.wrote_task(task(100 + pages, 2));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let seconds: Vec<i64> = ids.iter().map(|n| n / 2).collect();
        assert!(seconds.is_sorted_by(|a, b| a >= b), "{ids:?}");
        let old: std::collections::BTreeSet<i64> =
            ids.iter().copied().filter(|n| *n < 50).collect();
        let old_ones = ids.iter().filter(|n| **n < 50).count();
        assert_eq!((old.len(), old_ones), (expected, expected), "{repository}");
    }
    for (field, request) in [
        (
            "phase",
            ListTasksRequest {
                phase: "done".into(),
                ..Default::default()
            },
        ),
        (
            "since",
            ListTasksRequest {
                since: "then".into(),
                ..Default::default()
            },
        ),
        (
            "page_size",
            ListTasksRequest {
                page_size: -1,
                ..Default::default()
            },
        ),
        (
            "page_token",
            ListTasksRequest {
                page_token: "AAAA".into(),
                ..Default::default()
            },
        ),
    ] {
        let status = service.list_tasks(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        let details = status.get_details_bad_request().unwrap();
        assert_eq!(details.field_violations[0].field, field);
    }
}

#[tokio::test]
async fn a_client_that_accepts_larger_messages_gets_them() {
    let replica = synced().await;
    with_workers(&replica, 20);
    let mut usual = replica.service().await;
    let of_one = WorkerStatusRequest {
        task_id: "build-7".into(),
        ..Default::default()
    };
    let answer = usual.get_worker_status(of_one).await.unwrap().into_inner();
    assert_eq!(
        (
            answer.workers.len(),
            answer.total_count,
            answer.pending_count
        ),
        (1_000, 1_000, 1_000)
    );
    // A client that accepts larger messages says so.
    let mut more = replica.service().await.max_decoding_message_size(64 << 20);
    let mut request = Request::new(WorkerStatusRequest::default());
    request
        .metadata_mut()
        .insert(proto::MAX_RESPONSE_BYTES_KEY, "67108864".parse().unwrap());
    let answer = more.get_worker_status(request).await.unwrap().into_inner();
    assert_eq!((answer.workers.len(), answer.total_count), (20_000, 20_000));
    assert_eq!(answer.next_page_token, "");
    let mut request = Request::new(WorkerStatusRequest::default());
    request
        .metadata_mut()
        .insert(proto::MAX_RESPONSE_BYTES_KEY, "1100".parse().unwrap());
    let status = more.get_worker_status(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains(proto::MAX_RESPONSE_BYTES_KEY));
    let mut request = Request::new(WorkerStatusRequest::default());
    request
        .metadata_mut()
        .insert(proto::MAX_RESPONSE_BYTES_KEY, "lots".parse().unwrap());
    let status = more.get_worker_status(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

#[tokio::test]
async fn watches_are_bounded_and_their_end_makes_room() {
    let replica = synced().await;
    let mut service = replica.service().await;
    let mut watches = Vec::new();
    for _ in 0..MAX_WATCHES {
        let watch = service.watch_workers(WorkerStatusRequest::default()).await;
        watches.push(watch.unwrap().into_inner());
    }
    let refused = service.watch_workers(WorkerStatusRequest::default()).await;
    let status = refused.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.get_details_retry_info().is_some());
    // Other calls are answered.
    let answer = service
        .get_worker_status(WorkerStatusRequest::default())
        .await;
    assert!(answer.is_ok());
    drop(watches);
    let freed = async {
        while service
            .watch_workers(WorkerStatusRequest::default())
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, freed).await.unwrap();
}

/// The client never sends the first bytes of HTTP/2.
#[tokio::test]
async fn a_silent_connection_is_closed() {
    use tokio::io::AsyncReadExt as _;
    let replica = synced().await;
    let mut silent = TcpStream::connect(("127.0.0.1", replica.port))
        .await
        .unwrap();
    // It receives the server's settings, then the end.
    let mut all = Vec::new();
    let closed = timeout(LONG * 3, silent.read_to_end(&mut all)).await;
    assert!(closed.is_ok());
}
