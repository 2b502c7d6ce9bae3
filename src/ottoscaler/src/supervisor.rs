//! The owner of the long-lived tasks of the process.
//!
//! Invariants:
//! - Every task has a name, and no task is detached.
//! - A task that panics, or ends before the shutdown, starts the shutdown of the process.
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// A `Supervisor` owns the tasks of the process.
#[derive(Debug)]
pub struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    shutdown: CancellationToken,
}

impl Supervisor {
    /// Creates a supervisor that cancels `shutdown` when a task fails.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            tasks: JoinSet::new(),
            shutdown,
        }
    }

    /// Spawns a task that must run until the shutdown.
    pub fn essential<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.essential_on(&Handle::current(), name, task);
    }

    /// Spawns a task that must run until the shutdown and cannot fail.
    pub fn essential_loop<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.essential(name, async move {
            task.await;
            Ok(())
        });
    }

    /// Spawns a task that must run until the shutdown, on the given runtime.
    pub fn essential_on<F>(&mut self, runtime: &Handle, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let span = tracing::info_span!(parent: None, "task", name);
        let task = async move { (name, task.await) }.instrument(span);
        self.tasks.spawn_on(task, runtime);
    }

    /// Waits until `until` is cancelled or a task ends, and cancels `shutdown` in the
    /// second case.
    ///
    /// # Errors
    /// Returns the reason for which the task ended.
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
    ///
    /// # Errors
    /// Returns the first failure.
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

/// A `Signals` receives SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// Returns an error when they cannot be installed.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
