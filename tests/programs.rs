//! The programs as they are called: what they print, how they end. No cluster.
#![expect(clippy::unwrap_used)]
use std::{
    pin::Pin,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, stream};
use ottoscaler::proto::{
    PauseRequest, PauseState, ResumeRequest, ScaleRequest, ScaleResponse, ShowLogsRequest,
    ShownLine, WorkerEvent, WorkerPodStatus, WorkerStatusRequest, WorkerStatusResponse,
    ottoscaler_admin_service_server::{OttoscalerAdminService, OttoscalerAdminServiceServer},
    ottoscaler_service_server::{OttoscalerService, OttoscalerServiceServer},
    worker_event::Type,
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

const OTTOCTL: &str = env!("CARGO_BIN_EXE_ottoctl");
const OTTOSCALER: &str = env!("CARGO_BIN_EXE_ottoscaler");
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

/// Runs a program whose output nobody reads any more.
fn unread(program: &str, args: &[&str], and_errors: bool) -> Output {
    let gone = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let errors = if and_errors { gone() } else { Stdio::piped() };
    let mut command = Command::new(program);
    command.env_clear().args(args).stdin(Stdio::null());
    let child = command.stdout(gone()).stderr(errors).spawn().unwrap();
    child.wait_with_output().unwrap()
}

fn run(program: &str, args: &[&str], environment: &[(&str, &str)]) -> (Output, Duration) {
    let began = Instant::now();
    let mut command = Command::new(program);
    command.env_clear().envs(environment.iter().copied());
    let output = command.args(args).stdin(Stdio::null()).output().unwrap();
    (output, began.elapsed())
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
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
    for args in [&["--help"][..], &["--version"], &["crd"]] {
        let ended = unread(OTTOSCALER, args, false);
        assert_eq!(errors(&ended), "", "{args:?}");
        assert_eq!(ended.status.code(), Some(141), "{args:?}");
    }
    let wrong = unread(OTTOSCALER, &["--no-such"], true);
    assert_eq!(wrong.status.code(), Some(64));
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

#[test]
fn a_setting_that_is_none_ends_the_program_with_64() {
    for (name, value, takes) in [
        ("LOG_LEVEL", "warning", "trace"),
        ("LOG_LEVEL", "kube=debug", "trace"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "https://"),
        ("GRPC_PORT", "many", "a port"),
    ] {
        let (ended, _) = run(OTTOSCALER, &[], &[(name, value)]);
        let said = errors(&ended);
        assert_eq!(ended.status.code(), Some(64), "{name}={value}: {said}");
        assert!(said.contains(name) && said.contains(takes), "{said}");
    }
    // It is the API server that is missing then.
    let (ended, _) = run(
        OTTOSCALER,
        &[],
        &[
            ("GRPC_PORT", "tcp://10.96.0.7:80"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1"),
            ("LOG_LEVEL", "Warn"),
        ],
    );
    let said = errors(&ended);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("GRPC_PORT is ignored"), "{said}");
}
