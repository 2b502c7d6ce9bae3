//! Every method for every caller, through the layer: the code and the details of each answer.
#![expect(clippy::unwrap_used)]
use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    io::Write as _,
    sync::{Mutex, atomic::Ordering},
};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tonic::{Code, body::Body};
use tonic_types::StatusExt as _;
use tower::{Layer as _, ServiceExt as _};

use super::{
    super::forward::{FORWARDED, TERM},
    test_reviews::TestReviews,
    *,
};
use crate::args::Options;

const UP: &str = "/ottoscaler.v1.OttoscalerService/ScaleUp";
const DOWN: &str = "/ottoscaler.v1.OttoscalerService/ScaleDown";
const LIST: &str = "/ottoscaler.v1.OttoscalerService/GetWorkerStatus";
const WATCH: &str = "/ottoscaler.v1.OttoscalerService/WatchWorkers";
const TASKS: &str = "/ottoscaler.v1.OttoscalerService/ListTasks";
const WATCH_TASKS: &str = "/ottoscaler.v1.OttoscalerService/WatchTasks";
const LOGS: &str = "/ottoscaler.v1.OttoscalerAdminService/ShowLogs";
const PAUSE: &str = "/ottoscaler.v1.OttoscalerAdminService/Pause";
const RESUME: &str = "/ottoscaler.v1.OttoscalerAdminService/Resume";

/// The methods that take a right, with the right.
const RIGHTS: [(&str, &str, &str); 9] = [
    (UP, "create", "workers"),
    (DOWN, "delete", "workers"),
    (LIST, "list", "workers"),
    (WATCH, "watch", "workers"),
    (TASKS, "list", "workers"),
    (WATCH_TASKS, "watch", "workers"),
    (LOGS, "get", "workers/log"),
    (PAUSE, "update", "workers/pause"),
    (RESUME, "update", "workers/pause"),
];
const KNOWN: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
const ANYONE: [&str; 2] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

const VIEWER: [&str; 5] = [LIST, WATCH, TASKS, WATCH_TASKS, LOGS];
const SCALER: [&str; 7] = [LIST, WATCH, TASKS, WATCH_TASKS, LOGS, UP, DOWN];
const ADMIN: [&str; 9] = [
    LIST,
    WATCH,
    TASKS,
    WATCH_TASKS,
    LOGS,
    UP,
    DOWN,
    PAUSE,
    RESUME,
];

fn policy() -> Arc<Policy> {
    Arc::new(Options::from_lookup(&|_| None).unwrap().worker)
}

fn sha256(token: &str) -> String {
    let hash = digest(&SHA256, token.as_bytes());
    hash.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Callers of a real file. The file is there as long as the test.
fn from_file(more: &str) -> (tempfile::NamedTempFile, Callers) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for role in ["viewer", "scaler", "admin"] {
        let hash = sha256(&format!("token-of-{role}"));
        writeln!(file, "a-{role} {role} {hash}").unwrap();
    }
    write!(file, "{more}").unwrap();
    let opened = CallersFile::open(file.path().to_owned(), policy()).unwrap();
    let callers = Callers {
        mode: Mode::Static(Arc::new(opened)),
        replicas_name: Some("r-replicas.n.svc".into()),
    };
    (file, callers)
}

/// Callers whom an API server in memory knows.
fn reviewed() -> (Arc<TestReviews>, Callers) {
    let reviews = Arc::new(TestReviews::default());
    let of = |methods: &[&str]| {
        let rights = RIGHTS.iter().filter(|(path, ..)| methods.contains(path));
        let rights: Vec<String> = rights
            .map(|(_, verb, what)| format!("{verb} {what}"))
            .collect();
        rights
    };
    for (token, name, methods) in [
        ("token-of-viewer", "a-viewer", &VIEWER[..]),
        ("token-of-scaler", "a-scaler", &SCALER),
        ("token-of-admin", "a-admin", &ADMIN),
        ("for-another-audience", "a-stranger", &ADMIN),
    ] {
        let rights = of(methods);
        let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
        reviews.add(token, name, &rights);
    }
    let mut users = reviews.users.lock().unwrap();
    users.get_mut("for-another-audience").unwrap().audiences = vec!["api".to_owned()];
    drop(users);
    let cache = ReviewCache::new(reviews.clone(), "ottoscaler".to_owned());
    let callers = Callers {
        mode: Mode::Kubernetes(Arc::new(cache)),
        replicas_name: Some("r-replicas.n.svc".into()),
    };
    (reviews, callers)
}

fn request(path: &str, token: Option<&str>) -> Request<Body> {
    let mut request = Request::post(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.body(Body::empty()).unwrap()
}

/// What the handler sees, or the status of the refusal.
async fn call(callers: &Callers, request: Request<Body>) -> Result<Request<()>, Status> {
    let service =
        callers
            .layer()
            .unwrap()
            .layer(tower::service_fn(|request: Request<Body>| async move {
                let mut response = Response::new(Body::empty());
                let seen = Arc::new(Mutex::new(Some(request.map(|_| ()))));
                response.extensions_mut().insert(seen);
                Ok::<_, Infallible>(response)
            }));
    let mut response = service.oneshot(request).await.unwrap();
    let seen = response
        .extensions_mut()
        .remove::<Arc<Mutex<Option<Request<()>>>>>();
    match seen {
        Some(seen) => Ok(seen.lock().unwrap().take().unwrap()),
        None => Err(Status::from_header_map(response.headers()).unwrap()),
    }
}

fn name(seen: &Request<()>) -> Option<String> {
    Some(seen.extensions().get::<Caller>()?.name.to_string())
}

fn reason(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, "ottoscaler.io");
    (status.code(), info.reason)
}

/// Calls every method as a caller who may call `allowed`, and returns the number of calls.
async fn may_call(callers: &Callers, role: &str, allowed: &[&str]) -> usize {
    let token = format!("token-of-{role}");
    for (path, verb, resource) in RIGHTS {
        let answer = call(callers, request(path, Some(&token))).await;
        if allowed.contains(&path) {
            let seen = answer.unwrap();
            assert_eq!(name(&seen), Some(format!("a-{role}")), "{path}");
            continue;
        }
        let status = answer.unwrap_err();
        assert_eq!(
            reason(&status),
            (Code::PermissionDenied, "FORBIDDEN".into()),
            "{path}"
        );
        let wanted = [("verb", verb), ("resource", resource)];
        let wanted = wanted.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata, HashMap::from(wanted), "{path}");
        assert!(
            status.message().contains(&format!("{verb} {resource}")),
            "{status:?}"
        );
    }
    for path in KNOWN {
        let seen = call(callers, request(path, Some(&token))).await.unwrap();
        assert_eq!(name(&seen), Some(format!("a-{role}")), "{path}");
    }
    RIGHTS.len() + KNOWN.len()
}

#[tokio::test]
async fn a_viewer_lists_watches_and_reads_logs_and_no_more() {
    assert_eq!(may_call(&from_file("").1, "viewer", &VIEWER).await, 11);
    assert_eq!(may_call(&reviewed().1, "viewer", &VIEWER).await, 11);
}

#[tokio::test]
async fn a_scaler_starts_and_ends_workers_too_and_no_more() {
    assert_eq!(may_call(&from_file("").1, "scaler", &SCALER).await, 11);
    assert_eq!(may_call(&reviewed().1, "scaler", &SCALER).await, 11);
}

#[tokio::test]
async fn an_admin_does_everything() {
    assert_eq!(may_call(&from_file("").1, "admin", &ADMIN).await, 11);
    assert_eq!(may_call(&reviewed().1, "admin", &ADMIN).await, 11);
}

#[tokio::test]
async fn whoever_is_not_known_calls_only_health() {
    let named = RIGHTS.iter().map(|(path, ..)| *path);
    let named: BTreeSet<&str> = named.chain(KNOWN).chain(ANYONE).collect();
    let listed: BTreeSet<&str> = rights::METHODS.iter().map(|(path, _)| *path).collect();
    assert_eq!(named, listed, "this test calls every method");
    let mut calls = 0;
    for callers in [from_file("").1, reviewed().1] {
        for path in &listed {
            for (token, told) in [
                (None, "NO_TOKEN"),
                (Some("nobody's"), "BAD_TOKEN"),
                (Some("for-another-audience"), "BAD_TOKEN"),
            ] {
                calls += 1;
                let answer = call(&callers, request(path, token)).await;
                if ANYONE.contains(path) {
                    assert_eq!(name(&answer.unwrap()), None, "{path}");
                    continue;
                }
                let status = answer.unwrap_err();
                assert_eq!(
                    reason(&status),
                    (Code::Unauthenticated, told.into()),
                    "{path}"
                );
                assert!(!status.message().contains("nobody's"), "{status:?}");
            }
        }
        for scheme in [
            "Basic token-of-admin",
            "Bearer",
            "Bearer ",
            "token-of-admin",
        ] {
            let mut strange = request(UP, None);
            strange
                .headers_mut()
                .insert("authorization", scheme.parse().unwrap());
            let status = call(&callers, strange).await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{scheme}");
        }
    }
    assert_eq!(calls, 2 * 13 * 3);
}

#[tokio::test]
async fn a_path_that_is_no_method_is_refused() {
    for callers in [from_file("").1, reviewed().1] {
        for path in ["/x.Y/Z", "/ottoscaler.v1.OttoscalerService/scaleup", "/"] {
            let answer = call(&callers, request(path, Some("token-of-admin"))).await;
            let told = reason(&answer.unwrap_err());
            assert_eq!(
                told,
                (Code::Unimplemented, "UNKNOWN_METHOD".into()),
                "{path}"
            );
        }
    }
}

fn forged(path: &str, token: Option<&str>, marks: usize) -> Request<Body> {
    let mut forged = request(path, token);
    forged
        .headers_mut()
        .insert(CALLER, "a-admin".parse().unwrap());
    forged.headers_mut().insert(TERM, "u/1/h".parse().unwrap());
    for _ in 0..marks {
        forged
            .headers_mut()
            .append(FORWARDED, "pod".parse().unwrap());
    }
    forged
}

#[tokio::test]
async fn forged_caller_forwarded_and_term_metadata_change_nothing() {
    for callers in [from_file("").1, reviewed().1] {
        for marks in 0..4 {
            for path in [UP, DOWN] {
                for (token, told) in [
                    (None, (Code::Unauthenticated, "NO_TOKEN")),
                    (Some("nobody's"), (Code::Unauthenticated, "BAD_TOKEN")),
                    (
                        Some("token-of-viewer"),
                        (Code::PermissionDenied, "FORBIDDEN"),
                    ),
                ] {
                    let status = call(&callers, forged(path, token, marks))
                        .await
                        .unwrap_err();
                    assert_eq!(reason(&status), (told.0, told.1.to_owned()));
                    // The replica that forwarded it knows whose answer it is.
                    assert_eq!(status.metadata().get(TERM).unwrap(), "u/1/h");
                }
                let seen = call(&callers, forged(path, Some("token-of-scaler"), marks)).await;
                let seen = seen.unwrap();
                assert_eq!(name(&seen).as_deref(), Some("a-scaler"));
                assert!(!seen.headers().contains_key(CALLER));
                // Replicas that take each other for the leader stop at the second hop.
                assert_eq!(seen.headers().contains_key(FORWARDED), marks >= 2);
                assert_eq!(seen.extensions().get::<Caller>().unwrap().hops, marks);
            }
        }
    }
}

#[tokio::test]
async fn a_replica_is_believed_about_scale_calls_by_its_certificate_only() {
    let bears = |request: &mut Request<Body>, name: &str| {
        let names = vec!["x".to_owned(), name.to_owned()];
        request.extensions_mut().insert(PeerNames(names.into()));
    };
    for callers in [from_file("").1, reviewed().1] {
        let mut hop = forged(UP, None, 1);
        bears(&mut hop, "r-replicas.n.svc");
        let seen = call(&callers, hop).await.unwrap();
        assert_eq!(name(&seen).as_deref(), Some("a-admin"));
        assert!(seen.headers().contains_key(FORWARDED));
        for (path, marks, bearer) in [
            (UP, 1, "other-replicas.n.svc"),
            (UP, 0, "r-replicas.n.svc"),
            (PAUSE, 1, "r-replicas.n.svc"),
        ] {
            let mut hop = forged(path, None, marks);
            bears(&mut hop, bearer);
            let status = call(&callers, hop).await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{path} {bearer}");
        }
    }
}

#[tokio::test]
async fn a_certificate_has_the_role_of_its_name() {
    let (_file, callers) = from_file("certificate ops.example scaler\n");
    let mut bears = request(UP, None);
    let names = vec!["other.example".to_owned(), "ops.example".to_owned()];
    bears.extensions_mut().insert(PeerNames(names.into()));
    let seen = call(&callers, bears).await.unwrap();
    assert_eq!(name(&seen).as_deref(), Some("ops.example"));
    let mut bears = request(PAUSE, None);
    let names = PeerNames(vec!["ops.example".to_owned()].into());
    bears.extensions_mut().insert(names.clone());
    let status = call(&callers, bears).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    // A bad token is not made good by a certificate.
    let mut bears = request(UP, Some("nobody's"));
    bears.extensions_mut().insert(names);
    assert!(call(&callers, bears).await.is_err());
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What an API server was asked: the path and the object.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

fn api_server(asked: Asked) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let asked = asked.clone();
        async move {
            let (head, body) = request.into_parts();
            let mut object: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
            let path = head.uri.path().to_owned();
            asked.lock().unwrap().push((path.clone(), object.clone()));
            object["status"] = if path.ends_with("/tokenreviews") {
                let user = json!({
                    "username": "system:serviceaccount:ci:handler", "uid": "u1",
                    "groups": ["g"], "extra": {"k": ["v"]},
                });
                json!({ "authenticated": true, "audiences": ["ottoscaler"], "user": user })
            } else {
                json!({ "allowed": object["spec"]["resourceAttributes"]["verb"] == "create" })
            };
            let answer = Response::builder().status(201);
            let answer = answer.body(kube::client::Body::from(object.to_string().into_bytes()));
            Ok::<_, tower::BoxError>(answer?)
        }
    });
    kube::Client::new(service, "n")
}

#[tokio::test]
async fn the_api_server_is_asked_whose_token_it_is_and_then_for_the_right_and_no_log_has_the_token()
{
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // See app_tests.rs for why there is another one.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _logging = tracing::subscriber::set_default(lines);
    let asked = Asked::default();
    let options = CallerOptions {
        mode: CallerMode::Kubernetes,
        file: None,
        audience: "ottoscaler".to_owned(),
        replicas_name: None,
    };
    let client = api_server(asked.clone());
    let callers = Callers::new(&options, "n", &policy(), &client).unwrap();
    let seen = call(&callers, request(UP, Some("s3cr3t"))).await.unwrap();
    assert_eq!(
        name(&seen).as_deref(),
        Some("system:serviceaccount:ci:handler")
    );
    let status = call(&callers, request(LOGS, Some("s3cr3t")))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let asked = asked.lock().unwrap().clone();
    let paths: Vec<&str> = asked.iter().map(|(path, _)| path.as_str()).collect();
    let tokens = "/apis/authentication.k8s.io/v1/tokenreviews";
    let access = "/apis/authorization.k8s.io/v1/namespaces/n/localsubjectaccessreviews";
    assert_eq!(paths, [tokens, access, tokens, access]);
    let spec = |n: usize| asked[n].1["spec"].clone();
    assert_eq!(
        spec(0),
        json!({ "audiences": ["ottoscaler"], "token": "s3cr3t" })
    );
    let right = |verb, subresource: Option<&str>| {
        let mut right = json!({
            "group": "ottoscaler.io", "namespace": "n", "resource": "workers", "verb": verb,
        });
        if let Some(subresource) = subresource {
            right["subresource"] = json!(subresource);
        }
        json!({
            "user": "system:serviceaccount:ci:handler", "uid": "u1", "groups": ["g"],
            "extra": {"k": ["v"]}, "resourceAttributes": right,
        })
    };
    assert_eq!(spec(1), right("create", None));
    assert_eq!(spec(3), right("get", Some("log")));
    assert_eq!(asked[1].1["metadata"]["namespace"], "n");
    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    let told = "audit: the caller lacks the right caller=\"system:serviceaccount:ci:handler\" \
                right=get workers/log";
    assert!(text.contains(told), "{text}");
    assert!(!text.contains("s3cr3t"), "{text}");
}

#[tokio::test]
async fn without_the_api_server_a_cached_caller_is_served_and_another_told_to_come_back() {
    let (reviews, callers) = reviewed();
    assert!(
        call(&callers, request(UP, Some("token-of-scaler")))
            .await
            .is_ok()
    );
    reviews.away.store(true, Ordering::SeqCst);
    assert!(
        call(&callers, request(UP, Some("token-of-scaler")))
            .await
            .is_ok()
    );
    let status = call(&callers, request(UP, Some("token-of-admin")))
        .await
        .unwrap_err();
    assert_eq!(
        reason(&status),
        (Code::Unavailable, "CALLER_NOT_REVIEWED".into())
    );
    assert!(status.get_details_retry_info().is_some());
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
}
