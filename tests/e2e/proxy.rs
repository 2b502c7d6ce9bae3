//! Between one replica and the API server, for faults: requests and answers can
//! be held, lost, refused, delayed or cut, each by what they ask for.
//!
//! Plain HTTP towards the replica; credentials are the replica's own.
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming},
    http::request::Parts,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};

/// What happens to a request that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Not passed on until the rules change; then it is, late.
    Hold,
    /// Never reaches the server; no answer, as in a black hole.
    RequestLost,
    /// The server acts; its answer is lost.
    AnswerLost,
    /// The server acts; its answer is late.
    AnswerLate(Duration),
    /// The connection is cut.
    Reset,
    /// The server acts; the connection is cut before its answer.
    ResetAfter,
    /// Answered by this code, without reaching the server.
    Status(u16),
    /// Its sender dies before it is sent: it is lost, and all that follows, of
    /// whatever kind.
    DeadBefore,
    /// Its sender dies before it is answered.
    DeadAfter,
}

/// Applies to requests of these methods (`A|B`; empty: any) whose path has one of
/// these texts, and that tell of `about` in path or body; `nth` of them only (0:
/// all), counted since the rules were set.
#[derive(Debug, Clone)]
pub struct Rule {
    pub method: &'static str,
    pub path: &'static str,
    pub about: String,
    pub nth: usize,
    pub fault: Fault,
}

impl Rule {
    pub fn all(fault: Fault) -> Self {
        Self {
            method: "",
            path: "/",
            about: String::new(),
            nth: 0,
            fault,
        }
    }

    pub fn on(method: &'static str, path: &'static str, fault: Fault) -> Self {
        Self {
            method,
            path,
            about: String::new(),
            nth: 0,
            fault,
        }
    }

    fn is_for(&self, request: &Parts, body: &[u8]) -> bool {
        let path = request.uri.path_and_query().map_or("", |p| p.as_str());
        let about = self.about.as_bytes();
        let mut methods = self.method.split('|');
        (self.method.is_empty() || methods.any(|m| request.method == *m))
            && self.path.split('|').any(|text| path.contains(text))
            && (about.is_empty()
                || path.contains(&self.about)
                || body.windows(about.len()).any(|text| text == about))
    }
}

#[derive(Debug)]
struct Rules {
    rules: Vec<Rule>,
    seen: Vec<AtomicUsize>,
    held: Vec<AtomicUsize>,
    version: usize,
    /// Raised to cut the answers that are on their way.
    cuts: usize,
}

struct State {
    upstream: Client,
    rules: watch::Sender<Arc<Rules>>,
    hit: AtomicUsize,
    /// The replica counts as dead until the rules change.
    dead: AtomicBool,
}

/// One request that a rule holds.
struct Held(Arc<Rules>, usize);

impl Held {
    fn by(rules: Arc<Rules>, rule: usize) -> Self {
        rules.held[rule].fetch_add(1, Ordering::SeqCst);
        Self(rules, rule)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held[self.1].fetch_sub(1, Ordering::SeqCst);
    }
}

impl Rules {
    fn new(rules: Vec<Rule>, version: usize, cuts: usize) -> Arc<Self> {
        let counts = || rules.iter().map(|_| AtomicUsize::new(0)).collect();
        Arc::new(Self {
            seen: counts(),
            held: counts(),
            rules,
            version,
            cuts,
        })
    }
}

/// Ends with the test.
pub struct Proxy {
    state: Arc<State>,
    /// For the replica: the proxy as its API server.
    pub kubeconfig: PathBuf,
    runtime: Option<Runtime>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Proxy {
    /// In front of the server of `kubeconfig`; its own goes into `dir`.
    pub fn start(kubeconfig: &str, dir: &Path, name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let original = Kubeconfig::read_from(kubeconfig).unwrap();
        let (upstream, listener) = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(original.clone(), &options)
                .await
                .unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            (Client::try_from(config).unwrap(), listener)
        });
        let mut theirs = serde_json::to_value(&original).unwrap();
        let cluster = &mut theirs["clusters"][0]["cluster"];
        *cluster =
            serde_json::json!({"server": format!("http://{}", listener.local_addr().unwrap())});
        let path = dir.join(format!("{name}.kubeconfig"));
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(theirs.to_string().as_bytes()).unwrap();
        let state = Arc::new(State {
            upstream,
            rules: watch::channel(Rules::new(vec![], 0, 0)).0,
            hit: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
        });
        runtime.spawn(accept(listener, state.clone()));
        Self {
            state,
            kubeconfig: path,
            runtime: Some(runtime),
        }
    }

    /// From now on; what is held goes on, what was lost stays lost.
    pub fn set(&self, rules: Vec<Rule>) {
        self.state.hit.store(0, Ordering::SeqCst);
        self.state.dead.store(false, Ordering::SeqCst);
        self.state.rules.send_modify(|current| {
            *current = Rules::new(rules, current.version + 1, current.cuts);
        });
    }

    /// Cuts the answers that are on their way, watches among them.
    pub fn cut_streams(&self) {
        self.state.rules.send_modify(|current| {
            let rules = current.rules.clone();
            *current = Rules::new(rules, current.version + 1, current.cuts + 1);
        });
    }

    pub fn heal(&self) {
        self.set(vec![]);
    }

    /// Requests that rule `n` was for, since the rules were set.
    pub fn hits_of(&self, n: usize) -> usize {
        self.state.rules.borrow().seen[n].load(Ordering::SeqCst)
    }

    /// Requests that a rule met since the rules were set.
    pub fn hits(&self) -> usize {
        self.state.hit.load(Ordering::SeqCst)
    }

    /// Requests that are held now, by any rule.
    pub fn holding(&self) -> usize {
        let rules = self.state.rules.borrow();
        rules.held.iter().map(|n| n.load(Ordering::SeqCst)).sum()
    }

    /// Requests that rule `n` holds now: whose sender has gone is not.
    pub fn held_by(&self, n: usize) -> usize {
        self.state.rules.borrow().held[n].load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        #[expect(clippy::disallowed_methods, reason = "it ends with its connection")]
        tokio::spawn(async move {
            let service = service_fn(move |request| serve(state.clone(), request));
            // A service error cuts the connection.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cut")]
struct Cut;

impl State {
    /// The fault that a request meets; counts it where it is to be held.
    fn fault(&self, request: &Parts, body: &[u8]) -> (Option<Fault>, Option<Held>) {
        let rules = self.rules.borrow().clone();
        if self.dead.load(Ordering::SeqCst) {
            return (Some(Fault::RequestLost), None);
        }
        for (at, rule) in rules.rules.iter().enumerate() {
            if rule.is_for(request, body) {
                let n = rules.seen[at].fetch_add(1, Ordering::SeqCst) + 1;
                if rule.nth == 0 || rule.nth == n {
                    let dies = matches!(rule.fault, Fault::DeadBefore | Fault::DeadAfter);
                    self.dead.fetch_or(dies, Ordering::SeqCst);
                    self.hit.fetch_add(1, Ordering::SeqCst);
                    let held = (rule.fault == Fault::Hold).then(|| Held::by(rules.clone(), at));
                    return (Some(rule.fault), held);
                }
            }
        }
        (None, None)
    }

    async fn changed_since(&self, version: usize) {
        let mut rules = self.rules.subscribe();
        let _ = rules.wait_for(|r| r.version > version).await;
    }
}

async fn serve(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Stream>, Cut> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let (fault, held) = state.fault(&parts, &body);
    if let Some(held) = held {
        state.changed_since(held.0.version).await;
    }
    match fault {
        Some(Fault::RequestLost | Fault::DeadBefore) => std::future::pending().await,
        Some(Fault::Reset) => return Err(Cut),
        Some(Fault::Status(code)) => {
            let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "code": code, "reason": "Injected", "message": "injected by a test"});
            let body = kube::client::Body::from(status.to_string().into_bytes());
            let mut response = Response::new(Stream::new(body, state.clone()));
            *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap();
            return Ok(response);
        }
        _ => {}
    }
    let mut upstream = Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
    // The client sets both for the server that it knows.
    upstream.headers_mut().remove(hyper::header::HOST);
    upstream.headers_mut().remove(hyper::header::AUTHORIZATION);
    // A held request goes through even if its sender has gone.
    #[expect(clippy::disallowed_methods, reason = "awaited below")]
    let answered = tokio::spawn({
        let client = state.upstream.clone();
        async move { client.send(upstream).await }
    });
    let response = answered.await.map_err(|_| Cut)?.map_err(|_| Cut)?;
    match fault {
        Some(Fault::AnswerLost | Fault::DeadAfter) => std::future::pending().await,
        Some(Fault::AnswerLate(by)) => tokio::time::sleep(by).await,
        Some(Fault::ResetAfter) => return Err(Cut),
        _ => {}
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(hyper::header::TRANSFER_ENCODING);
    Ok(Response::from_parts(parts, Stream::new(body, state)))
}

type Changed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An answer on its way: stands still or breaks with the path it came by.
struct Stream {
    body: kube::client::Body,
    state: Arc<State>,
    changed: Option<Changed>,
    cuts: usize,
}

impl Stream {
    fn new(body: kube::client::Body, state: Arc<State>) -> Self {
        let cuts = state.rules.borrow().cuts;
        Self {
            body,
            state,
            changed: None,
            cuts,
        }
    }
}

impl Body for Stream {
    type Data = hyper::body::Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Cut>>> {
        loop {
            let state = self.state.clone();
            // Subscribed before looking, so that no change is missed.
            let changed = self.changed.get_or_insert_with(|| {
                let mut rules = state.rules.subscribe();
                Box::pin(async move { drop(rules.changed().await) })
            });
            let changed = changed.as_mut().poll(cx).is_ready();
            let (fault, cuts) = {
                let rules = state.rules.borrow();
                let whole = rules
                    .rules
                    .iter()
                    .find(|r| r.method.is_empty() && r.path == "/");
                (whole.map(|r| r.fault), rules.cuts)
            };
            if fault == Some(Fault::Reset) || cuts != self.cuts {
                return Poll::Ready(Some(Err(Cut)));
            }
            if changed {
                self.changed = None;
                continue;
            }
            return match fault {
                Some(Fault::RequestLost | Fault::AnswerLost | Fault::Hold) => Poll::Pending,
                _ => Pin::new(&mut self.body).poll_frame(cx).map_err(|_| Cut),
            };
        }
    }
}
