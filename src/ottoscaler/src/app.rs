//! Puts the parts together, and takes them apart in order.
//!
//! The first SIGTERM drains: not ready → the leader hands over → the server
//! answers its last calls → watches end → spans are flushed. A second one aborts.
use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::Api;
use prometheus_client::registry::Registry;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Options,
    cluster::{
        self,
        convert::PodView,
        crd::WorkerTask,
        watch::{self, Select},
    },
    election::{self, Clients, Clock, Clocks, Election, PauseSwitch},
    grpc::{Callers, Health, Probe, Router, Server},
    handler::HandlerClient,
    index::{Index, PodFeed, TaskFeed},
    leader::Controllers,
    listen::{self, ConnectionLimits, Listener},
    logs::{self, LogViewer},
    supervisor::{Signals, Supervisor},
    telemetry,
    tls::{HandlerTls, ServingFiles},
    workers,
};

/// The time that a blocked thread is given to end when all else has ended. Such a thread waits for
/// a file or a name, and holds nothing that must be finished.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Runs a replica until it is told to stop.
///
/// # Errors
/// It could not start, or a part of it failed for good.
pub fn run(options: Options) -> anyhow::Result<()> {
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
            &options.telemetry,
            &options.replica.pod_name,
            &options.namespace,
        )?;
        listen::raise_open_files();
        let result = Box::pin(serve(options, apart)).await;
        // The flush blocks; it must not hold a worker thread.
        tokio::task::spawn_blocking(move || traces.flush()).await?;
        result
    });
    election.shutdown_timeout(END_WITHIN);
    runtime.shutdown_timeout(END_WITHIN);
    result
}

/// `apart`: where the election runs.
async fn serve(options: Options, apart: Handle) -> anyhow::Result<()> {
    for warning in &options.warnings {
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
    Box::pin(serve_with(
        options,
        apart,
        clocks,
        lease_client,
        work_client,
    ))
    .await
}

/// The same with clients of the API server.
async fn serve_with(
    options: Options,
    apart: Handle,
    clocks: Clocks,
    lease_client: kube::Client,
    work_client: kube::Client,
) -> anyhow::Result<()> {
    let Options {
        namespace,
        serve,
        tls,
        callers,
        replica,
        lease,
        worker,
        limits,
        paused,
        handler,
        handler_tls,
        telemetry: _,
        warnings: _,
    } = options;
    let shutdown = CancellationToken::new();
    let stop = CancellationToken::new();
    let mut tasks = Supervisor::new(shutdown.clone());
    let index = Index::default();
    watch_into_index(&mut tasks, &work_client, &namespace, &index, &stop);

    lease.log_timings();
    let (metrics, mut registry) = (election::Metrics::default(), Registry::default());
    metrics.register(&mut registry);
    election::register_skew(&clocks, &mut registry);
    telemetry::metrics::register(&mut registry);
    index.register(&mut registry);
    let logs = logs::Context::new(&handler, &namespace, limits.log_drain_timeout);
    logs.register(&mut registry);
    let worker_metrics = workers::Metrics::default();
    worker_metrics.register(&mut registry);
    let switch = PauseSwitch::new(work_client.clone(), &namespace, &lease.name);
    let election = Election::new(
        &lease,
        &replica,
        &namespace,
        Clients {
            lease: lease_client,
            work: work_client.clone(),
            runtime: Some(Handle::current()),
        },
        metrics.clone(),
        Clock::default(),
    )?;
    let serving = tls.as_ref().map(ServingFiles::open).transpose()?;
    let handler_tls = handler_tls.as_ref().map(HandlerTls::open).transpose()?;
    let router = Arc::new(Router::new(
        election.leadership(),
        &replica.pod_name,
        &replica.address,
        serving.as_ref().map(ServingFiles::replicas),
    ));
    let pause = election.pause(paused);
    let health = Health::default();
    let probe = Probe {
        index: index.clone(),
        heartbeat: election.heartbeat(),
        drain: shutdown.clone(),
    };
    let policy = Arc::new(worker);
    let callers = Callers::new(&callers, &namespace, &policy, &work_client)?;
    callers.register(&mut registry);
    let server = Server {
        router: router.clone(),
        index: index.clone(),
        policy: policy.clone(),
        pause: pause.clone(),
        switch,
        show: LogViewer::new(
            work_client,
            &namespace,
            index.clone(),
            limits.logs_forwarded,
        ),
        health: health.clone(),
        callers: callers.clone(),
        drain: shutdown.clone(),
    };
    let connections = listen::Metrics::default();
    connections.register(&mut registry);
    let bind = |port, limits| {
        let listener = Listener::bind(port, limits, connections.clone());
        listener.with_context(|| format!("cannot listen on port {port}; is it taken?"))
    };
    let listener = bind(serve.grpc_port, ConnectionLimits::grpc())?;
    let health_listener = bind(serve.health_port, ConnectionLimits::health())?;
    let metrics_listener = bind(serve.metrics_port, ConnectionLimits::metrics())?;
    tracing::info!(
        grpc_port = serve.grpc_port,
        health_port = serve.health_port,
        tls = tls.is_some(),
        namespace,
        replica = replica.pod_name,
        "serving"
    );
    let handler_peer = handler_tls.as_ref().map(HandlerTls::peer);
    let handler = handler.host.as_deref();
    let handler = handler.map(|host| HandlerClient::new(host, handler_peer));
    let handler = handler.transpose().context("OTTO_HANDLER_HOST")?;
    if handler.is_none() {
        tracing::warn!(
            "there is no otto-handler: logs stay on their pods, and those for LOG_DRAIN_TIMEOUT"
        );
    }
    let controllers = Controllers {
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
    let served_with = serving.as_ref().map(ServingFiles::tls);
    tasks.essential("grpc server", async move {
        Ok(server.serve(listener, served_with, until).await?)
    });
    if let Some(files) = serving {
        files.register(&mut registry);
        tasks.essential_loop("tls files", files.run(stop.clone()));
    }
    if let Some(files) = handler_tls {
        files.register(&mut registry);
        tasks.essential_loop("tls files of otto-handler", files.run(stop.clone()));
    }
    let serve_health = Server::serve_health(health.clone(), health_listener, stop.clone());
    tasks.essential_loop("health server", serve_health);
    tasks.essential_loop("callers", callers.run(stop.clone()));
    let serve_metrics = telemetry::metrics::serve(registry, metrics_listener, stop.clone());
    tasks.essential_loop("metrics server", serve_metrics);
    let until = stop.clone();
    tasks.essential_loop("health", async move { health.run(probe, until).await });
    let contended = CancellationToken::new();
    // Also when it panics: the shutdown must not wait for it then.
    let (told, done) = (shutdown.clone(), contended.clone().drop_guard());
    tasks.essential_on(&apart, "election", async move {
        Box::pin(election.run(controllers, told)).await;
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
    tasks.essential_loop("watch of pods", watch::run(pods, Select::All, sink, until));
    let worker_tasks: Api<WorkerTask> = Api::namespaced(client.clone(), namespace);
    let (sink, until) = (TaskFeed(index.clone()), stop.clone());
    tasks.essential_loop(
        "watch of tasks",
        watch::run(worker_tasks, Select::All, sink, until),
    );
}

#[cfg(test)]
#[path = "app_tests.rs"]
mod tests;
