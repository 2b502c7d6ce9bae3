//! How many workers run, how long they may take, and what is kept of them.
use std::{collections::HashMap, time::Duration};

use clap::ArgAction;

use super::values::{self, Weights};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Tasks")]
pub(super) struct LimitArgs {
    /// The replica takes work and starts no worker, for maintenance (also: ottoctl pause).
    #[arg(long, env, action = ArgAction::Set, default_value = "false")]
    pub(super) paused: bool,
    /// Pods at a time.
    #[arg(long, env, default_value = "500", value_name = "a count", value_parser = values::count)]
    max_workers: usize,
    /// Shares of MAX_WORKERS; 1 where a repository is not named.
    #[arg(long, env, value_name = "repository=weight, …", value_parser = values::weights)]
    repository_weights: Option<Weights>,
    /// Finished tasks that are kept as history.
    #[arg(long, env, default_value = "10000", value_name = "a count", value_parser = values::count)]
    max_finished_tasks: usize,
    /// What all tasks may take in etcd; the oldest finished ones go first, then ScaleUp is refused.
    #[arg(long, env, default_value = "64Mi", value_name = "a quantity", value_parser = values::stored_bytes)]
    max_stored_task_bytes: usize,
    /// Time for which a finished task is kept; longer while logs of its pods wait.
    #[arg(long, env, default_value = "24h", value_name = "a duration", value_parser = values::duration)]
    task_ttl: Duration,
    /// Time for a pod to start.
    #[arg(long, env, default_value = "15m", value_name = "a duration", value_parser = values::duration)]
    pending_timeout: Duration,
    /// Time until a worker fails whose pod goes on being refused, other than by a quota.
    #[arg(long, env, default_value = "2m", value_name = "a duration", value_parser = values::duration)]
    refused_timeout: Duration,
    /// Time for a finished worker's logs to be acknowledged.
    #[arg(long, env, default_value = "15m", value_name = "a duration", value_parser = values::duration)]
    log_drain_timeout: Duration,
    /// Time until workers of a lost node fail.
    #[arg(long, env, default_value = "5m", value_name = "a duration", value_parser = values::duration)]
    node_lost_timeout: Duration,
}

/// How many workers run, how long they may take, and what is kept of them.
#[derive(Debug, Clone)]
pub struct Limits {
    pub max_workers: usize,
    /// Shares of the workers; 1 where a repository is not named.
    pub repository_weights: HashMap<String, u32>,
    pub max_finished_tasks: usize,
    /// Of all tasks, as etcd holds them.
    pub max_stored_bytes: usize,
    pub task_ttl: Duration,
    pub pending_timeout: Duration,
    pub refused_timeout: Duration,
    pub log_drain_timeout: Duration,
    pub node_lost_timeout: Duration,
    /// False: there is no otto-handler, and logs stay with their pods.
    pub logs_forwarded: bool,
}

impl LimitArgs {
    pub(super) fn options(self, logs_forwarded: bool) -> Limits {
        let Self {
            paused: _,
            max_workers,
            repository_weights,
            max_finished_tasks,
            max_stored_task_bytes,
            task_ttl,
            pending_timeout,
            refused_timeout,
            log_drain_timeout,
            node_lost_timeout,
        } = self;
        Limits {
            max_workers,
            repository_weights: repository_weights.unwrap_or_default(),
            max_finished_tasks,
            max_stored_bytes: max_stored_task_bytes,
            task_ttl,
            pending_timeout,
            refused_timeout,
            log_drain_timeout,
            node_lost_timeout,
            logs_forwarded,
        }
    }
}
