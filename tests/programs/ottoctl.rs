//! `ottoctl` as it is called: what it prints, how it ends. No cluster.
#![expect(clippy::unwrap_used)]
mod run;

use std::{pin::Pin, time::Duration};

use api::{
    ListTasksRequest, ListTasksResponse, PauseRequest, PauseState, ResumeRequest, ScaleRequest,
    ScaleResponse, ShowLogsRequest, ShownLine, TaskEvent, WorkerEvent, WorkerPodStatus,
    WorkerStatusRequest, WorkerStatusResponse,
    ottoscaler_admin_service_server::{OttoscalerAdminService, OttoscalerAdminServiceServer},
    ottoscaler_service_server::{OttoscalerService, OttoscalerServiceServer},
    worker_event::Type,
};
use futures::{Stream, StreamExt as _, stream};
use run::{errors, run, unread};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

const OTTOCTL: &str = env!("CARGO_BIN_EXE_ottoctl");
/// What a timeout of one second may take on a busy machine.
const SOON: Duration = Duration::from_secs(5);
/// More than a pipe holds.
const MANY: u32 = 5_000;

/// Has many workers, each of which has printed a line.
#[derive(Clone)]
struct Replica;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn worker(index: u32) -> WorkerPodStatus {
    WorkerPodStatus {
        pod_name: format!("otto-agent-t-{index}"),
        status: "Succeeded".to_owned(),
        ..WorkerPodStatus::default()
    }
}

#[tonic::async_trait]
impl OttoscalerService for Replica {
    type WatchWorkersStream = Answers<WorkerEvent>;

    async fn scale_up(&self, _: Request<ScaleRequest>) -> Result<Response<ScaleResponse>, Status> {
        Ok(Response::new(ScaleResponse {
            worker_pod_names: (1..=MANY).map(|n| worker(n).pod_name).collect(),
            ..ScaleResponse::default()
        }))
    }

    async fn scale_down(
        &self,
        request: Request<ScaleRequest>,
    ) -> Result<Response<ScaleResponse>, Status> {
        self.scale_up(request).await
    }

    async fn get_worker_status(
        &self,
        _: Request<WorkerStatusRequest>,
    ) -> Result<Response<WorkerStatusResponse>, Status> {
        Ok(Response::new(WorkerStatusResponse {
            workers: (1..=MANY).map(worker).collect(),
            ..WorkerStatusResponse::default()
        }))
    }

    async fn watch_workers(
        &self,
        _: Request<WorkerStatusRequest>,
    ) -> Result<Response<Self::WatchWorkersStream>, Status> {
        let event = |n| WorkerEvent {
            r#type: Type::Updated.into(),
            worker: Some(worker(n)),
        };
        let events = stream::iter(1..=MANY).map(move |n| Ok(event(n)));
        Ok(Response::new(Box::pin(events.chain(stream::pending()))))
    }

    type WatchTasksStream = Answers<TaskEvent>;

    async fn list_tasks(
        &self,
        _: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        Ok(Response::new(ListTasksResponse::default()))
    }

    async fn watch_tasks(
        &self,
        _: Request<ListTasksRequest>,
    ) -> Result<Response<Self::WatchTasksStream>, Status> {
        Ok(Response::new(Box::pin(stream::pending())))
    }
}

#[tonic::async_trait]
impl OttoscalerAdminService for Replica {
    type ShowLogsStream = Answers<ShownLine>;

    async fn pause(&self, _: Request<PauseRequest>) -> Result<Response<PauseState>, Status> {
        Ok(Response::new(PauseState::default()))
    }

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<PauseState>, Status> {
        Ok(Response::new(PauseState::default()))
    }

    async fn show_logs(
        &self,
        _: Request<ShowLogsRequest>,
    ) -> Result<Response<Self::ShowLogsStream>, Status> {
        let line = |n| ShownLine {
            worker_pod_name: worker(n).pod_name,
            message: "a line".to_owned(),
            ..ShownLine::default()
        };
        let lines = stream::iter(1..=MANY).map(move |n| Ok(line(n)));
        Ok(Response::new(Box::pin(lines)))
    }
}

/// A replica and the runtime that it lives in.
fn replica() -> (String, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = tonic::transport::Server::builder()
        .add_service(OttoscalerServiceServer::new(Replica))
        .add_service(OttoscalerAdminServiceServer::new(Replica))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    // It ends with the runtime.
    drop(runtime.spawn(serve));
    (address, runtime)
}

#[test]
fn a_reader_that_has_gone_ends_each_command_quietly() {
    let (server, _runtime) = replica();
    let commands: &[&[&str]] = &[
        &["scale-up", "t"],
        &["scale-down", "t", "-n", "1"],
        &["cancel", "t"],
        &["status"],
        &["status", "-o", "json"],
        &["status", "--watch"],
        &["status", "--watch", "-o", "json"],
        &["logs", "t"],
        &["logs", "t", "-f", "-o", "json"],
        &["pause"],
        &["resume"],
    ];
    for command in commands {
        for and_errors in [false, true] {
            let args = [&["--server", &server][..], command].concat();
            let ended = unread(OTTOCTL, &args, and_errors);
            assert_eq!(errors(&ended), "", "{command:?}");
            assert_eq!(ended.status.code(), Some(141), "{command:?}");
        }
    }
    // Progress goes to standard error, and so does what went wrong.
    let watched = ["--server", &server, "scale-up", "t", "--watch"];
    assert_eq!(unread(OTTOCTL, &watched, true).status.code(), Some(141));
    for args in [&["--help"][..], &["status", "--help"], &["--version"]] {
        let ended = unread(OTTOCTL, args, true);
        assert!(matches!(ended.status.code(), Some(0 | 141)), "{args:?}");
    }
    let wrong = unread(OTTOCTL, &["--server", "nobody:x", "status"], true);
    assert_eq!(wrong.status.code(), Some(2));
}

const COMMANDS: [&[&str]; 8] = [
    &["scale-up", "t"],
    &["scale-down", "t", "-n", "1"],
    &["cancel", "t"],
    &["status"],
    &["status", "--watch"],
    &["logs", "t"],
    &["logs", "t", "-f"],
    &["resume"],
];

#[test]
fn a_closed_port_is_told_within_the_timeout() {
    // Nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = port.local_addr().unwrap().to_string();
    drop(port);
    for command in COMMANDS {
        let args = [&["--server", &server, "--timeout", "1"][..], command].concat();
        let (ended, took) = run(OTTOCTL, &args, &[]);
        let said = errors(&ended);
        assert!(
            said.contains(&format!("connection refused at {server}")),
            "{command:?}: {said}"
        );
        assert_eq!(ended.status.code(), Some(78), "{command:?}");
        assert!(took < SOON, "{command:?}: {took:?}");
    }
}

#[test]
fn a_server_that_does_not_answer_is_told_at_the_timeout() {
    // Connections are made, by the kernel; nobody takes them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = silent.local_addr().unwrap().to_string();
    for command in COMMANDS {
        let args = [&["--server", &server, "--timeout", "1"][..], command].concat();
        let (ended, took) = run(OTTOCTL, &args, &[]);
        let said = errors(&ended);
        assert!(
            said.contains(&format!("no answer from {server} within 1 s")),
            "{command:?}: {said}"
        );
        assert_eq!(ended.status.code(), Some(68), "{command:?}");
        let near = Duration::from_millis(900)..SOON;
        assert!(near.contains(&took), "{command:?}: {took:?}");
    }
}

#[test]
fn a_timeout_that_is_none_is_refused() {
    for timeout in ["0", "18446744073709551615", "soon"] {
        let (ended, _) = run(OTTOCTL, &["--timeout", timeout, "status"], &[]);
        assert_eq!(ended.status.code(), Some(2), "{timeout}");
        assert!(errors(&ended).contains("--timeout"), "{}", errors(&ended));
    }
}
