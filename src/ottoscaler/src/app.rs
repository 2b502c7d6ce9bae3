//! Puts the parts together, and takes them apart in order.
//!
//! The first SIGTERM drains: not ready → the leader hands over → the server
//! answers its last calls → watches end → spans are flushed. A second one aborts.
use std::sync::Arc;

use anyhow::Context as _;
use kube::{Api, api::ListParams};
use prometheus_client::registry::Registry;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{
        self, Loggable,
        convert::PodView,
        crd::{UNFINISHED, WorkerTask},
        watch::{self, Select, Sink},
    },
    config::Config,
    domain::template::Policy,
    election::{self, Clients, Clock, Clocks, Contender, Pause, PauseSwitch, Reign, Tenure},
    grpc::{self, Guest, Health, Probe, Router, Server},
    index::{Index, PodFeed, TaskFeed},
    logs::{self, Forwarder, HandlerClient, Nobody, Show},
    supervisor::{Signals, Supervisor},
    telemetry,
    workers::{self, Drained, Manager, Parts, Tell},
};

/// For what blocks a thread when all else has ended.
const END_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs a replica until it is told to stop.
///
/// # Errors
/// It could not start, or a part of it failed for good.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    // A thread of its own: what renews the Lease must not wait for the work's turn.
    let election = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("election")
        .enable_all()
        .build()?;
    let apart = election.handle().clone();
    let result = runtime.block_on(async {
        let traces = telemetry::init(
            &config.telemetry,
            &config.replica.pod_name,
            &config.namespace,
        )?;
        grpc::raise_open_files();
        let result = Box::pin(serve(config, apart)).await;
        // The flush blocks; it must not hold a worker thread.
        tokio::task::spawn_blocking(move || traces.flush()).await?;
        result
    });
    election.shutdown_timeout(END_WITHIN);
    runtime.shutdown_timeout(END_WITHIN);
    result
}

/// `apart`: where the election runs.
async fn serve(config: Config, apart: Handle) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let kube = cluster::client::config()
        .await
        .context("no credentials for the API server")?;
    let clocks = Clocks::default();
    // Renewals have connections of their own, too.
    let lease_client = {
        let _entered = apart.enter();
        clocks.client(kube.clone())?
    };
    let work_client = clocks.client(kube)?;
    Box::pin(serve_with(config, apart, clocks, lease_client, work_client)).await
}

/// The same with clients of the API server.
async fn serve_with(
    config: Config,
    apart: Handle,
    clocks: Clocks,
    lease_client: kube::Client,
    work_client: kube::Client,
) -> anyhow::Result<()> {
    let Config {
        namespace,
        serve,
        replica,
        lease,
        worker,
        limits,
        paused,
        handler,
        telemetry: _,
        warnings: _,
    } = config;
    let shutdown = CancellationToken::new();
    let stop = CancellationToken::new();
    let mut tasks = Supervisor::new(shutdown.clone());
    let index = Index::default();
    watch_into_index(&mut tasks, &work_client, &namespace, &index, &stop);

    lease.log_timings();
    let (metrics, mut registry) = (election::Metrics::default(), Registry::default());
    metrics.register(&mut registry);
    clocks.register(&mut registry);
    telemetry::metrics::register(&mut registry);
    index.register(&mut registry);
    let logs = logs::Settings::new(&handler, &namespace, limits.log_drain_timeout);
    logs.register(&mut registry);
    let worker_metrics = workers::Metrics::default();
    worker_metrics.register(&mut registry);
    let switch = PauseSwitch::new(work_client.clone(), &namespace, &lease.name);
    let (contender, leadership) = Contender::new(
        lease,
        replica.clone(),
        &namespace,
        Clients {
            lease: lease_client,
            work: work_client.clone(),
            runtime: Some(Handle::current()),
        },
        metrics.clone(),
        Clock::default(),
    );
    let router = Arc::new(Router::new(leadership, &replica.pod_name, &replica.address));
    let pause = contender.pause(paused);
    let health = Health::default();
    let probe = Probe {
        index: index.clone(),
        beat: contender.beat(),
        drain: shutdown.clone(),
    };
    let policy = Arc::new(worker);
    let server = Server {
        router: router.clone(),
        index: index.clone(),
        policy: policy.clone(),
        pause: pause.clone(),
        switch,
        show: Show::new(
            work_client,
            &namespace,
            index.clone(),
            limits.logs_forwarded,
        ),
        health: health.clone(),
        drain: shutdown.clone(),
    };
    let listener = Server::listen(serve.grpc_port, Guest::grpc())?;
    let health_listener = Server::listen(serve.health_port, Guest::health())?;
    let metrics_listener = Server::listen(serve.metrics_port, Guest::metrics())?;
    tracing::info!(
        grpc_port = serve.grpc_port,
        health_port = serve.health_port,
        namespace,
        replica = replica.pod_name,
        "serving"
    );
    let handler = handler.host.as_deref().map(HandlerClient::new);
    let handler = handler.transpose().context("OTTO_HANDLER_HOST")?;
    if handler.is_none() {
        tracing::warn!(
            "there is no otto-handler: logs stay on their pods, and those for LOG_DRAIN_TIMEOUT"
        );
    }
    let reign = Leading {
        index,
        router,
        handler,
        logs,
        policy,
        limits,
        metrics: worker_metrics,
        pause,
        clocks,
    };

    let until = stop.clone();
    tasks.essential("grpc server", async move {
        Ok(server.serve(listener, until).await?)
    });
    let (reporter, until) = (health.clone(), stop.clone());
    tasks.essential("health server", async move {
        Ok(Server::serve_health(reporter, health_listener, until).await?)
    });
    let until = stop.clone();
    tasks.essential("metrics server", async move {
        Ok(telemetry::metrics::serve(registry, metrics_listener, until).await?)
    });
    let until = stop.clone();
    tasks.essential("health", async move {
        health.run(probe, until).await;
        Ok(())
    });
    let contended = CancellationToken::new();
    // Also when it panics: the shutdown must not wait for it then.
    let (told, done) = (shutdown.clone(), contended.clone().drop_guard());
    tasks.essential_on(&apart, "election", async move {
        Box::pin(contender.run(Arc::new(reign), told)).await;
        drop(done);
        // Ends with the others.
        Ok(())
    });

    let mut signals = Signals::new()?;
    let failed = tokio::select! {
        () = signals.next() => Ok(()),
        failed = tasks.watch(&stop) => failed,
    };
    tracing::info!("draining");
    shutdown.cancel();
    tokio::select! {
        () = signals.next() => anyhow::bail!("aborted by a second signal"),
        () = contended.cancelled() => {}
    }
    stop.cancel();
    tokio::select! {
        () = signals.next() => anyhow::bail!("aborted by a second signal"),
        joined = tasks.join() => failed.and(joined),
    }
}

fn watch_into_index(
    tasks: &mut Supervisor,
    client: &kube::Client,
    namespace: &str,
    index: &Index,
    stop: &CancellationToken,
) {
    let pods: Api<PodView> = Api::namespaced(client.clone(), namespace);
    let (sink, until) = (PodFeed(index.clone()), stop.clone());
    // All of the namespace: a selector by labels would lose a pod whose label somebody
    // removes, and tell of it as deleted. Those that are not ours leave nothing behind.
    tasks.essential("watch of pods", async move {
        watch::run(pods, Select::All, sink, until).await;
        Ok(())
    });
    let worker_tasks: Api<WorkerTask> = Api::namespaced(client.clone(), namespace);
    let (sink, until) = (TaskFeed(index.clone()), stop.clone());
    tasks.essential("watch of tasks", async move {
        watch::run(worker_tasks, Select::All, sink, until).await;
        Ok(())
    });
}

/// What a leader does.
#[derive(Debug)]
struct Leading {
    index: Index,
    router: Arc<Router>,
    handler: Option<HandlerClient>,
    logs: logs::Settings,
    policy: Arc<Policy>,
    limits: crate::config::Limits,
    metrics: workers::Metrics,
    pause: Pause,
    clocks: Clocks,
}

#[tonic::async_trait]
impl Reign for Leading {
    async fn run(&self, tenure: Tenure) {
        let caught_up = CancellationToken::new();
        let drained = Drained::default();
        let manager = Manager::new(&Parts {
            client: tenure.client.clone(),
            index: self.index.clone(),
            drained: drained.clone(),
            policy: self.policy.clone(),
            limits: self.limits.clone(),
            metrics: self.metrics.clone(),
            pause: self.pause.clone(),
            clocks: self.clocks.clone(),
            caught_up: caught_up.clone(),
            drain: tenure.drain.clone(),
            lost: tenure.lost.clone(),
        });
        let forwarder = self.handler.clone().map(|handler| Forwarder {
            handler,
            settings: self.logs.clone(),
            index: self.index.clone(),
            drained,
        });
        let tell: Arc<dyn Tell> = match &self.handler {
            Some(handler) => Arc::new(handler.clone()),
            None => Arc::new(Nobody),
        };
        self.router.lead(Arc::new(manager.clone()));
        let ended = async {
            tokio::select! {
                () = tenure.drain.cancelled() => {}
                () = tenure.lost.cancelled() => {}
            }
            self.router.follow();
        };
        // What is new can begin at once; what was there before, only once known.
        let forward = async {
            tokio::select! {
                () = self.catch_up(&tenure) => {}
                () = tenure.drain.cancelled() => return,
                () = tenure.lost.cancelled() => return,
            }
            caught_up.cancel();
            if let Some(forwarder) = forwarder {
                forwarder.run(&tenure).await;
            }
        };
        futures::future::join3(ended, manager.run(tell), forward).await;
    }
}

impl Leading {
    /// A new leader judges what its predecessor left by consistent lists: its
    /// watches may lag behind. Of tasks it lists those that are not finished; a
    /// thousand of the past would only hold up the first pods. One that it takes for
    /// unfinished in error is sealed, and the answer is what became of it.
    async fn catch_up(&self, tenure: &Tenure) {
        self.index.wait_synced().await;
        let tasks = tenure.client.api::<WorkerTask>();
        let pods = tenure.client.api::<PodView>();
        let (tasks, pods) = futures::future::join(
            list(
                &tasks,
                ListParams::default().fields(UNFINISHED),
                TaskFeed::keep,
            ),
            list(&pods, ListParams::default(), PodFeed::keep),
        )
        .await;
        let tasks_at = watch::number(&tasks.version);
        let feed = TaskFeed(self.index.clone());
        feed.some(tasks.all, tasks.unread, tasks_at);
        let pods_at = watch::number(&pods.version);
        PodFeed(self.index.clone()).listed(pods.all, pods.unread, pods_at);
    }
}

/// What there is, and as of which version. Tries until it has listed; the caller
/// bounds it by the term.
async fn list<K, T>(
    api: &Api<K>,
    params: ListParams,
    keep: impl Fn(K) -> Option<T>,
) -> watch::Listed<T>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned,
{
    loop {
        match watch::list(api, params.clone(), &keep).await {
            Ok(listed) => return listed,
            Err(ref error @ watch::Error::Api(kube::Error::Api(ref status)))
                if status.code == 400 =>
            {
                tracing::error!(error = %Loggable(error), "not listed; is this version's CustomResourceDefinition installed?");
            }
            Err(error) => {
                tracing::warn!(error = %Loggable(&error), "not listed; trying again");
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
#[path = "app_tests.rs"]
mod tests;
