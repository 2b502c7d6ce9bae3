//! A whole replica in process, whose callers, otto-handler and API server put a marker
//! into everything that they say: no line of the log has it.
#![expect(clippy::unwrap_used)]
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use http::{Request as HttpRequest, Response as HttpResponse};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::{
    args::{LogFormat, TelemetryOptions},
    proto::{
        LogForwardResponse, PauseRequest, ResumeRequest, ScaleRequest, ShowLogsRequest,
        WorkerLogEntry, WorkerStatusAck, WorkerStatusNotification, WorkerStatusRequest,
        log_forward_response,
        otto_handler_log_service_server::{OttoHandlerLogService, OttoHandlerLogServiceServer},
        ottoscaler_admin_service_client::OttoscalerAdminServiceClient,
        ottoscaler_service_client::OttoscalerServiceClient,
        worker_status_ack,
    },
};

const MARKER: &str = "s3cr3t";
const WORKERS: i32 = 4;

/// An API server in memory. Each collection answers its first requests with errors that
/// quote the marker.
#[derive(Default)]
struct ApiServer {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    /// By collection.
    watchers: Vec<(String, mpsc::UnboundedSender<String>)>,
    asked: HashMap<String, usize>,
    /// By the leader.
    listed: HashSet<String>,
}

type Answer = (u16, String);

fn failure(code: u16, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": format!("exceeded: {MARKER}"),
        "details": {"name": MARKER, "causes": [{"reason": MARKER, "message": MARKER}]},
    });
    (code, status.to_string())
}

/// What the nth request of a kind is answered instead of the truth.
fn fault(method: &str, what: &str, n: usize) -> Option<Answer> {
    let garbage = || {
        (
            200,
            json!({ "metadata": MARKER, "items": MARKER }).to_string(),
        )
    };
    match (method, what, n) {
        ("GET", "pods" | "workertasks", 0) => Some(failure(500, "InternalError")),
        ("GET", "pods" | "workertasks", 1) => Some(garbage()),
        ("POST", "pods", 0) => Some(failure(500, MARKER)),
        ("POST", "pods", 1) => Some(garbage()),
        ("POST", "pods", 2) => Some(failure(422, "Invalid")),
        ("PATCH", "workertasks/status", 0) => Some(failure(500, "InternalError")),
        ("PATCH", "workertasks/status", 1) => Some(failure(409, "Conflict")),
        ("PATCH", "workertasks/status", 2) => Some(garbage()),
        ("PATCH", "leases", 3) => Some(failure(500, "InternalError")),
        ("DELETE", "pods", 0..=1) => Some(failure(500, "InternalError")),
        ("GET", "pods/log", 0..=1) => Some(failure(500, "InternalError")),
        ("POST", "events", _) => Some(failure(500, "InternalError")),
        _ => None,
    }
}

impl ApiServer {
    fn client(self: &Arc<Self>) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: HttpRequest<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
                if query.contains("watch=true") {
                    let events = server.watch(path);
                    let body = axum::body::Body::from_stream(events);
                    return Ok::<_, tower::BoxError>(HttpResponse::new(body));
                }
                let (code, text) = server.answer(parts.method.as_str(), path, &body);
                let answer = HttpResponse::builder().status(code);
                Ok(answer.body(axum::body::Body::from(text))?)
            }
        });
        kube::Client::new(service, "n")
    }

    fn watch(&self, collection: &str) -> impl Stream<Item = Result<String, Infallible>> + use<> {
        let (send, events) = mpsc::unbounded_channel();
        let mut state = self.state.lock().unwrap();
        // Said again to whoever comes late.
        for object in state.of(collection) {
            let _ = send.send(event("MODIFIED", &object));
        }
        state.watchers.push((collection.to_owned(), send));
        UnboundedReceiverStream::new(events).map(Ok)
    }

    fn answer(&self, method: &str, path: &str, body: &Value) -> Answer {
        let parts: Vec<&str> = path.split('/').collect();
        let at = parts.iter().position(|p| *p == "namespaces").unwrap_or(0) + 2;
        let (kind, name, sub) = (parts.get(at), parts.get(at + 1), parts.get(at + 2));
        let kind = kind.copied().unwrap_or_default();
        let what = sub.map_or_else(|| kind.to_owned(), |sub| format!("{kind}/{sub}"));
        let collection = parts[..=at.min(parts.len() - 1)].join("/");
        let mut state = self.state.lock().unwrap();
        // The first list that a new leader asks for.
        let led = state.objects.keys().any(|key| key.contains("/leases/"));
        if method == "GET" && name.is_none() && led && state.listed.insert(what.clone()) {
            return failure(500, "InternalError");
        }
        let asked = state.asked.entry(format!("{method} {what}")).or_default();
        let n = *asked;
        *asked += 1;
        if let Some(answer) = fault(method, &what, n) {
            return answer;
        }
        if what == "pods/log" {
            return (200, format!("2026-01-01T00:00:00.000000001Z {MARKER}\n"));
        }
        let key = name.map(|name| format!("{collection}/{name}"));
        match (method, key) {
            ("POST", _) => {
                let name = body["metadata"]["name"].as_str().unwrap_or("unnamed");
                let key = format!("{collection}/{name}");
                if state.objects.contains_key(&key) {
                    return failure(409, "AlreadyExists");
                }
                let mut object = body.clone();
                object["metadata"]["uid"] = json!(format!("uid-of-{name}"));
                object["metadata"]["creationTimestamp"] = json!(jiff::Timestamp::now().to_string());
                (201, state.store(&collection, key, object, "ADDED"))
            }
            ("PATCH", Some(key)) => {
                let Some(mut object) = state.objects.get(&key).cloned() else {
                    return failure(404, "NotFound");
                };
                let meta = &body["metadata"];
                for given in ["uid", "resourceVersion"] {
                    if !meta[given].is_null() && meta[given] != object["metadata"][given] {
                        return failure(409, "Conflict");
                    }
                }
                merge(&mut object, body);
                (200, state.store(&collection, key, object, "MODIFIED"))
            }
            ("DELETE", key) => {
                let gone: Vec<String> = match key {
                    Some(key) => vec![key],
                    None => state.objects.keys().cloned().collect(),
                };
                for key in gone.iter().filter(|key| key.starts_with(&collection)) {
                    if let Some(object) = state.objects.remove(key) {
                        state.tell(&collection, "DELETED", &object);
                    }
                }
                (
                    200,
                    json!({"kind": "Status", "status": "Success"}).to_string(),
                )
            }
            (_, Some(key)) => match state.objects.get(&key) {
                Some(object) => (200, object.to_string()),
                None => failure(404, "NotFound"),
            },
            (_, None) => {
                let version = state.version.to_string();
                let list = json!({
                    "kind": "List", "apiVersion": "v1", "items": state.of(&collection),
                    "metadata": {"resourceVersion": version},
                });
                (200, list.to_string())
            }
        }
    }

    /// As a kubelet that runs every pod to its end.
    fn run_pods(&self) {
        let mut state = self.state.lock().unwrap();
        let pods = "/api/v1/namespaces/n/pods";
        for mut pod in state.of(pods) {
            let (phase, state_of_it) = match pod["status"]["phase"].as_str() {
                None => (
                    "Running",
                    json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),
                ),
                Some("Running") => (
                    "Failed",
                    json!({"terminated": {
                        "exitCode": 1, "reason": "Error", "message": MARKER,
                        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:09Z",
                    }}),
                ),
                Some(_) => continue,
            };
            pod["status"] = json!({
                "phase": phase, "message": MARKER, "startTime": "2026-01-01T00:00:00Z",
                "containerStatuses": [{
                    "name": "worker", "image": MARKER, "imageID": MARKER, "ready": false,
                    "restartCount": 0, "state": state_of_it, "containerID": "containerd://1",
                }],
            });
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            state.store(pods, format!("{pods}/{name}"), pod, "MODIFIED");
        }
    }

    fn asked(&self, what: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.asked.get(what).copied().unwrap_or_default()
    }
}

impl State {
    fn of(&self, collection: &str) -> Vec<Value> {
        let of = |(key, _): &(&String, &Value)| key.starts_with(&format!("{collection}/"));
        let found = self.objects.iter().filter(of);
        found.map(|(_, object)| object.clone()).collect()
    }

    fn store(&mut self, collection: &str, key: String, mut object: Value, told: &str) -> String {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(collection, told, &object);
        let text = object.to_string();
        self.objects.insert(key, object);
        text
    }

    fn tell(&mut self, collection: &str, told: &str, object: &Value) {
        let line = event(told, object);
        let to = |(of, to): &(String, mpsc::UnboundedSender<String>)| {
            of != collection || to.send(line.clone()).is_ok()
        };
        self.watchers.retain(to);
    }
}

fn event(told: &str, object: &Value) -> String {
    format!("{}\n", json!({ "type": told, "object": object }))
}

fn merge(target: &mut Value, patch: &Value) {
    let (Some(target), Some(patch)) = (target.as_object_mut(), patch.as_object()) else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else if value.is_object() {
            merge(target.entry(key).or_insert(json!({})), value);
        } else {
            target.insert(key.clone(), value.clone());
        }
    }
}

/// Refuses first, each time in other words of its own.
#[derive(Default)]
struct Handler {
    told: AtomicUsize,
    streams: AtomicUsize,
}

#[tonic::async_trait]
impl OttoHandlerLogService for Handler {
    type ForwardWorkerLogsStream =
        Pin<Box<dyn Stream<Item = Result<LogForwardResponse, Status>> + Send>>;

    async fn forward_worker_logs(
        &self,
        request: Request<Streaming<WorkerLogEntry>>,
    ) -> Result<Response<Self::ForwardWorkerLogsStream>, Status> {
        if self.streams.fetch_add(1, Ordering::Relaxed) < 3 {
            return Err(Status::unavailable(MARKER));
        }
        let answers = request.into_inner().map(|entry| {
            entry.map(|_| LogForwardResponse {
                status: log_forward_response::Status::Ack.into(),
                message: MARKER.to_owned(),
                ..LogForwardResponse::default()
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn notify_worker_status(
        &self,
        _: Request<WorkerStatusNotification>,
    ) -> Result<Response<WorkerStatusAck>, Status> {
        let status = match self.told.fetch_add(1, Ordering::Relaxed) {
            0 => return Err(Status::internal(MARKER)),
            1 => worker_status_ack::Status::Error,
            _ => worker_status_ack::Status::Received,
        };
        Ok(Response::new(WorkerStatusAck {
            status: status.into(),
            message: MARKER.to_owned(),
        }))
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    for key in ["x-token", "traceparent", "request_id"] {
        request.metadata_mut().insert(key, MARKER.parse().unwrap());
    }
    let token = format!("Bearer {MARKER}").parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    request.set_timeout(Duration::from_secs(2));
    request
}

fn scale(task: &str, count: i32) -> ScaleRequest {
    let map = || HashMap::from([(MARKER.to_owned(), MARKER.to_owned())]);
    ScaleRequest {
        task_id: task.to_owned(),
        repository: format!("{MARKER}/repository"),
        commit_sha: MARKER.to_owned(),
        worker_count: count,
        build_config: map(),
        triggered_by: MARKER.to_owned(),
        reason: MARKER.to_owned(),
        metadata: map(),
    }
}

/// Every call, with the marker in every field that is no id; right ones and wrong ones.
async fn call(channel: &Channel) {
    let mut service = OttoscalerServiceClient::new(channel.clone());
    let mut admin = OttoscalerAdminServiceClient::new(channel.clone());
    let wrong = ScaleRequest {
        build_config: HashMap::from([
            (format!("{MARKER}="), MARKER.to_owned()),
            (format!("OTTO_{MARKER}"), MARKER.to_owned()),
            ("OTTO_CPU_LIMIT".to_owned(), MARKER.to_owned()),
        ]),
        ..scale("", -1)
    };
    assert!(service.scale_up(request(wrong.clone())).await.is_err());
    assert!(service.scale_down(request(wrong)).await.is_err());
    let _ = admin
        .pause(request(PauseRequest {
            reason: MARKER.to_owned(),
        }))
        .await;
    let _ = admin.resume(request(ResumeRequest {})).await;
    for token in [
        format!("Bearer {MARKER}-viewer"),
        format!("Bearer not-{MARKER}"),
    ] {
        let mut refused = request(ResumeRequest {});
        let token = token.parse().unwrap();
        refused.metadata_mut().insert("authorization", token);
        assert!(admin.resume(refused).await.is_err());
    }
    let _ = service.scale_up(request(scale("task", WORKERS))).await;
    let other = ScaleRequest {
        commit_sha: format!("another {MARKER}"),
        ..scale("task", WORKERS)
    };
    let _ = service.scale_up(request(other)).await;
    for status_filter in [MARKER, ""] {
        let asked = WorkerStatusRequest {
            task_id: "task".to_owned(),
            status_filter: status_filter.to_owned(),
            ..WorkerStatusRequest::default()
        };
        let _ = service.get_worker_status(request(asked.clone())).await;
        let _ = service.watch_workers(request(asked)).await;
    }
    let asked = ShowLogsRequest {
        worker_pod_name: MARKER.to_owned(),
        ..ShowLogsRequest::default()
    };
    let _ = admin.show_logs(request(asked)).await;
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    (listener, port)
}

/// Each comes from a place that had, or might have, what somebody else said.
const SAID: [&str; 11] = [
    "\"serving\"",
    "\"leading\"",
    "call refused",
    "audit: write",
    "audit: the caller lacks the right",
    "pause set",
    "not listed",
    "waiting",
    "the API server refused",
    "otto-handler did not take a notification",
    "log stream to otto-handler broke",
];

#[tokio::test]
async fn no_line_of_the_log_has_what_others_said() {
    let log = Log::default();
    let settings = TelemetryOptions {
        log_level: "trace".to_owned(),
        log_format: LogFormat::Json,
        otel_exporter_otlp_endpoint: None,
    };
    // While a process has one dispatcher, tracing asks only the thread that meets a callsite
    // first whether it is enabled, and that may be the thread of another test. With two it
    // asks both dispatchers.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let writer = log.clone();
    let lines = telemetry::log_layer(&settings, move || writer.clone()).unwrap();
    let _logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines));

    let (listener, handler) = listen().await;
    let mut running = JoinSet::new();
    let serve = tonic::transport::Server::builder()
        .add_service(OttoHandlerLogServiceServer::new(Handler::default()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    running.spawn(async { serve.await.unwrap() });
    let hash = |token: &str| {
        let hash = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let hash = hash.as_ref().iter().map(|b| format!("{b:02x}"));
        hash.collect::<String>()
    };
    let mut callers = tempfile::NamedTempFile::new().unwrap();
    let viewer = format!("{MARKER}-viewer");
    let lines = format!("ci admin {}\nui viewer {}\n", hash(MARKER), hash(&viewer));
    io::Write::write_all(&mut callers, lines.as_bytes()).unwrap();
    let ports = (listen().await.1, listen().await.1, listen().await.1);
    let config = Options::from_lookup(&|name| {
        Some(match name {
            "GRPC_PORT" => ports.0.clone(),
            "HEALTH_PORT" => ports.1.clone(),
            "METRICS_PORT" => ports.2.clone(),
            "NAMESPACE" => "n".to_owned(),
            "CALLERS" => "static".to_owned(),
            "CALLERS_FILE" => callers.path().to_str().unwrap().to_owned(),
            "ALLOW_PLAINTEXT_TOKENS" => "true".to_owned(),
            "OTTO_HANDLER_HOST" => format!("127.0.0.1:{handler}"),
            "OTTO_AGENT_IMAGE" => MARKER.to_owned(),
            "ALLOWED_IMAGES" | "ALLOWED_SECRETS" | "REPOSITORY_WEIGHTS" => format!("{MARKER}=1"),
            _ => return None,
        })
    });
    let server = Arc::new(ApiServer::default());
    let (lease, work) = (server.client(), server.client());
    let replica = Box::pin(serve_with(
        config.unwrap(),
        Handle::current(),
        Clocks::default(),
        lease,
        work,
    ));
    let calls = async {
        let address = format!("http://127.0.0.1:{}", ports.0);
        let channel = Channel::from_shared(address).unwrap().connect_lazy();
        for _ in 0..240 {
            call(&channel).await;
            server.run_pods();
            tokio::time::sleep(Duration::from_millis(250)).await;
            let text = log.text();
            let is_said = SAID.iter().all(|said| text.contains(said));
            if is_said && server.asked("DELETE pods") > 1 && server.asked("GET pods/log") > 2 {
                break;
            }
        }
    };
    tokio::select! {
        ended = replica => ended.unwrap(),
        () = calls => {}
    }

    let text = log.text();
    for said in SAID {
        assert!(text.contains(said), "nothing was said of {said}");
    }
    assert!(text.lines().count() > 20);
    let written = |words: &[&str]| {
        let of = |line: &&str| words.iter().all(|word| line.contains(word));
        text.lines().filter(of).count()
    };
    let who = "\"caller\":\"ci\"";
    assert!(
        written(&[
            "audit: write",
            who,
            "ScaleUp",
            "\"task\":\"task\"",
            "\"result\":\"Ok\""
        ]) > 0
    );
    assert!(written(&["audit: write", who, "Pause", "\"result\""]) > 0);
    assert!(
        written(&[
            "lacks the right",
            "\"caller\":\"ui\"",
            "update workers/pause"
        ]) > 0
    );
    let leaks: Vec<&str> = text.lines().filter(|line| line.contains(MARKER)).collect();
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}
