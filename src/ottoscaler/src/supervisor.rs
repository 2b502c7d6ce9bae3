//! Every long-lived task has a name and an owner.
//!
//! What holds: a task that ends before it was told to, or panics, begins the
//! shutdown of the process; nothing is detached.
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// Owns the process's tasks.
#[derive(Debug)]
pub struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    shutdown: CancellationToken,
}

impl Supervisor {
    /// `shutdown` is cancelled when a task fails.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            tasks: JoinSet::new(),
            shutdown,
        }
    }

    /// Runs a task that must live until it is told to end.
    pub fn essential<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.essential_on(&Handle::current(), name, task);
    }

    /// The same, on a runtime of its own.
    pub fn essential_on<F>(&mut self, runtime: &Handle, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let span = tracing::info_span!(parent: None, "task", name);
        let task = async move { (name, task.await) }.instrument(span);
        self.tasks.spawn_on(task, runtime);
    }

    /// Waits until a task ends that was not told to, or `until` is cancelled.
    pub async fn watch(&mut self, until: &CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = until.cancelled() => Ok(()),
            Some(ended) = self.tasks.join_next() => {
                self.shutdown.cancel();
                match ended {
                    Ok((name, Ok(()))) => Err(anyhow::anyhow!("task {name} ended by itself")),
                    Ok((name, Err(error))) => Err(error.context(format!("task {name} failed"))),
                    Err(error) => Err(anyhow::anyhow!("a task panicked: {error}")),
                }
            }
        }
    }

    /// Waits for every task to end.
    pub async fn join(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let failed = match ended {
                Ok((_, Ok(()))) => continue,
                Ok((name, Err(error))) => error.context(format!("task {name} failed")),
                Err(error) => anyhow::anyhow!("a task panicked: {error}"),
            };
            result = result.and(Err(failed));
        }
        result
    }
}

/// SIGTERM or SIGINT.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// # Errors
    /// The handlers cannot be installed.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
