//! A client of Ottoscaler in tonic. What it does and prints: `tests/clients/README.md`.
//!
//! tonic reads no service config. This client does what the published one says: it goes from
//! replica to replica, and makes up to five attempts.
use std::{
    error::Error as _,
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use backon::{ExponentialBuilder, Retryable as _};
use clap::{Parser, ValueEnum};
use futures::TryStreamExt as _;
use ottoscaler_partners::proto::{
    ListTasksRequest, PauseRequest, ResumeRequest, ScaleRequest, ShowLogsRequest,
    WorkerStatusRequest, ottoscaler_admin_service_client::OttoscalerAdminServiceClient as Admin,
    ottoscaler_service_client::OttoscalerServiceClient as Workers, task_event, worker_event,
};
use tokio::task::{JoinSet, spawn_blocking};
use tonic::{
    Code, Request, Response, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

#[derive(Debug, Parser)]
struct Args {
    mode: Mode,
    /// Addresses of the replicas.
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
    /// File with the CA of the servers; plaintext without it.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Name in the servers' certificate.
    #[arg(long)]
    server_name: Option<String>,
    /// File with a bearer token.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Task, or the beginning of its name.
    #[arg(long, default_value = "tonic")]
    task: String,
    /// ScaleUps per second.
    #[arg(long, default_value_t = 5.0)]
    rate: f64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    Methods,
    Pages,
    Scale,
}

/// A channel to each replica, which connects when it is used.
#[derive(Debug)]
struct Replicas {
    channels: Vec<Channel>,
    next: AtomicUsize,
    token_file: Option<PathBuf>,
}

impl Replicas {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let mut channels = Vec::new();
        for server in &args.servers {
            let scheme = if args.ca.is_some() { "https" } else { "http" };
            let mut endpoint = Endpoint::from_shared(format!("{scheme}://{server}"))?
                .connect_timeout(Duration::from_secs(2));
            if let Some(ca) = &args.ca {
                let ca = Certificate::from_pem(std::fs::read(ca)?);
                let mut tls = ClientTlsConfig::new().ca_certificate(ca);
                if let Some(name) = &args.server_name {
                    tls = tls.domain_name(name);
                }
                endpoint = endpoint.tls_config(tls)?;
            }
            channels.push(endpoint.connect_lazy());
        }
        anyhow::ensure!(!channels.is_empty(), "--servers names none");
        Ok(Self {
            channels,
            next: AtomicUsize::new(0),
            token_file: args.token_file.clone(),
        })
    }

    /// Returns the request with the token as it is in its file now.
    fn request<T>(&self, message: T, timeout: Option<Duration>) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        if let Some(file) = &self.token_file {
            let token = std::fs::read_to_string(file)?;
            let bearer = format!("Bearer {}", token.trim()).parse();
            let bearer = bearer.map_err(|_| Status::unauthenticated("the token is no text"))?;
            request.metadata_mut().insert("authorization", bearer);
        }
        Ok(request)
    }

    /// Makes a call at one replica after the other until one of them answers.
    async fn call<T, R, F>(
        &self,
        message: T,
        timeout: Option<Duration>,
        method: impl Fn(Channel, Request<T>) -> F,
    ) -> Result<R, Status>
    where
        T: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let next = AtomicUsize::new(self.next.fetch_add(1, Ordering::Relaxed));
        let attempt = || async {
            // Each attempt of a call is at another replica than the one before.
            let next = next.fetch_add(1, Ordering::Relaxed);
            let channel = self.channels[next % self.channels.len()].clone();
            let request = self.request(message.clone(), timeout)?;
            method(channel, request).await.map(Response::into_inner)
        };
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(3))
            .with_jitter()
            .with_max_times(4);
        attempt
            .retry(backoff)
            .when(is_retryable)
            .adjust(pushback)
            .await
    }
}

/// A status with a source was made here, because the connection broke.
fn is_retryable(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
        || status.source().is_some()
}

/// Returns the delay that the server asks for, or none when it says that a retry is senseless.
fn pushback(status: &Status, backoff: Option<Duration>) -> Option<Duration> {
    let backoff = backoff?;
    match status.metadata().get("grpc-retry-pushback-ms") {
        None => Some(backoff),
        Some(millis) => millis
            .to_str()
            .ok()?
            .parse()
            .map(Duration::from_millis)
            .ok(),
    }
}

const SCALE: Option<Duration> = Some(Duration::from_secs(60));
const READ: Option<Duration> = Some(Duration::from_secs(20));

async fn scale_up(replicas: &Replicas, task: &str) -> Result<(), Status> {
    let up = |channel, request| async move { Workers::new(channel).scale_up(request).await };
    replicas.call(scale(task, 1), SCALE, up).await.map(drop)
}

async fn scale_down(replicas: &Replicas, task: &str) -> Result<(), Status> {
    let down = |channel, request| async move { Workers::new(channel).scale_down(request).await };
    replicas.call(scale(task, 0), SCALE, down).await.map(drop)
}

fn scale(task: &str, workers: i32) -> ScaleRequest {
    ScaleRequest {
        task_id: task.to_owned(),
        repository: "org/repo".to_owned(),
        commit_sha: "abc".to_owned(),
        worker_count: workers,
        // No node takes such a worker: it stays as it is.
        build_config: [(
            "OTTO_NODE_SELECTOR".to_owned(),
            "kubernetes.io/arch=none".to_owned(),
        )]
        .into(),
        ..ScaleRequest::default()
    }
}

/// Prints all workers, page by page.
async fn pages(replicas: &Replicas, task: &str) -> anyhow::Result<()> {
    let (mut page_token, mut count) = (String::new(), 0);
    loop {
        let asked = WorkerStatusRequest {
            task_id: task.to_owned(),
            page_token,
            ..WorkerStatusRequest::default()
        };
        let status = |channel, request| async move {
            Workers::new(channel).get_worker_status(request).await
        };
        let page = replicas.call(asked, READ, status).await?;
        for worker in page.workers {
            println!("pod {}", worker.pod_name);
        }
        count += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            println!("pages {count}");
            return Ok(());
        }
    }
}

/// Calls each method once.
async fn methods(replicas: &Replicas, task: &str) -> anyhow::Result<()> {
    scale_up(replicas, task).await?;
    println!("ok ScaleUp");
    pages(replicas, task).await?;
    println!("ok GetWorkerStatus");
    let list = |channel, request| async move { Workers::new(channel).list_tasks(request).await };
    let listed = replicas
        .call(ListTasksRequest::default(), READ, list)
        .await?;
    anyhow::ensure!(!listed.tasks.is_empty(), "ListTasks returned no task");
    println!("ok ListTasks");
    let watch =
        |channel, request| async move { Workers::new(channel).watch_workers(request).await };
    let selected = WorkerStatusRequest {
        task_id: task.to_owned(),
        ..WorkerStatusRequest::default()
    };
    let mut workers = replicas.call(selected, None, watch).await?;
    while workers
        .message()
        .await?
        .context("WatchWorkers ended")?
        .r#type()
        != worker_event::Type::Synced
    {}
    println!("ok WatchWorkers");
    let watch = |channel, request| async move { Workers::new(channel).watch_tasks(request).await };
    let mut tasks = replicas
        .call(ListTasksRequest::default(), None, watch)
        .await?;
    while tasks.message().await?.context("WatchTasks ended")?.r#type() != task_event::Type::Synced {
    }
    println!("ok WatchTasks");
    let show = |channel, request| async move { Admin::new(channel).show_logs(request).await };
    let shown = ShowLogsRequest {
        task_id: task.to_owned(),
        ..ShowLogsRequest::default()
    };
    let lines = replicas.call(shown, None, show).await?;
    lines.try_for_each(|_| async { Ok(()) }).await?;
    println!("ok ShowLogs");
    let pause = |channel, request| async move { Admin::new(channel).pause(request).await };
    let reason = PauseRequest {
        reason: "a test".to_owned(),
    };
    replicas.call(reason, READ, pause).await?;
    println!("ok Pause");
    let resume = |channel, request| async move { Admin::new(channel).resume(request).await };
    replicas.call(ResumeRequest {}, READ, resume).await?;
    println!("ok Resume");
    scale_down(replicas, task).await?;
    println!("ok ScaleDown");
    Ok(())
}

/// Scales tasks up at the rate, and every fourth down again, until the standard input ends.
async fn scale_until_end(replicas: Arc<Replicas>, prefix: &str, rate: f64) -> anyhow::Result<()> {
    let read = || std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    let mut ended = spawn_blocking(read);
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    let mut calls = JoinSet::new();
    for n in 0_u64.. {
        tokio::select! {
            _ = &mut ended => break,
            _ = tick.tick() => {}
        }
        let (replicas, task) = (replicas.clone(), format!("{prefix}-{n}"));
        calls.spawn(async move {
            if let Err(status) = scale_up(&replicas, &task).await {
                return println!("failed ScaleUp {task} {status:?}");
            }
            println!("accepted {task}");
            if n % 4 > 0 {
                return;
            }
            if let Err(status) = scale_down(&replicas, &task).await {
                println!("failed ScaleDown {task} {status:?}");
            }
        });
        while calls.try_join_next().is_some() {}
    }
    calls.join_all().await;
    println!("done");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let replicas = Arc::new(Replicas::new(&args)?);
    match args.mode {
        Mode::Methods => methods(&replicas, &args.task).await,
        Mode::Pages => pages(&replicas, &args.task).await,
        Mode::Scale => scale_until_end(replicas, &args.task, args.rate).await,
    }
}
