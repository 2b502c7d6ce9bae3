//! Command line and environment → [`Options`].
//!
//! A setting is declared once, as a field of a group in this folder: the field's name gives
//! the flag and the environment variable, its documentation the text of `--help` and of the
//! README, `value_name` what it takes, and its type or `value_parser` the bounds.
//!
//! Invariants:
//! - A flag wins over the environment, and the last of equal flags over those before it.
//! - An empty value means the default.
//! - Values come from a look-up that the caller gives, never from the process itself.
//! - [`Options`] have passed every check, those across settings included.
mod callers;
mod environment;
#[cfg(test)]
mod generated_tests;
mod invalid;
mod lease;
mod limits;
mod logs;
mod parse;
mod replica;
mod serving;
mod setting;
mod telemetry;
#[cfg(test)]
mod tests;
mod tls;
mod values;
mod worker;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::domain::template::Policy;

pub use callers::{CallerMode, CallerOptions};
pub use invalid::Invalid;
pub use lease::LeaseOptions;
pub use limits::Limits;
pub use logs::{AckMode, HandlerOptions};
pub use parse::{Invocation, parse};
pub use replica::ReplicaOptions;
pub use serving::ServingOptions;
pub use telemetry::{LogFormat, OWN_TARGETS, TelemetryOptions};
pub use tls::{HandlerTlsOptions, TlsOptions};

/// Runs CI/CD workers as Kubernetes pods for otto-handler.
///
/// Each flag has an environment variable of its name; the flag wins.
#[derive(Debug, Parser)]
#[command(
    name = "ottoscaler",
    version,
    disable_help_subcommand = true,
    args_override_self = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Args,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
enum Command {
    /// Prints the CustomResourceDefinition of WorkerTasks.
    Crd,
}

/// Every setting, in the order of `--help` and of the README.
#[derive(Debug, clap::Args)]
struct Args {
    #[command(flatten)]
    serving: ServingOptions,
    #[command(flatten)]
    tls: tls::TlsArgs,
    #[command(flatten)]
    callers: callers::CallerArgs,
    #[command(flatten)]
    replica: replica::ReplicaArgs,
    #[command(flatten)]
    lease: lease::LeaseArgs,
    #[command(flatten)]
    limits: limits::LimitArgs,
    #[command(flatten)]
    worker: worker::WorkerArgs,
    #[command(flatten)]
    logs: logs::LogArgs,
    #[command(flatten)]
    telemetry: TelemetryOptions,
}

/// What the parts of a replica are given.
#[derive(Debug, Clone)]
pub struct Options {
    /// The namespace of the Lease, the WorkerTasks and the pods.
    pub namespace: String,
    pub serve: ServingOptions,
    /// None: the gRPC port takes no TLS.
    pub tls: Option<TlsOptions>,
    pub callers: CallerOptions,
    pub replica: ReplicaOptions,
    pub lease: LeaseOptions,
    /// What a request may say about its workers' pods.
    pub worker: Policy,
    pub limits: Limits,
    /// The replica takes work and starts no worker.
    pub paused: bool,
    pub handler: HandlerOptions,
    /// None: otto-handler is reached without TLS.
    pub handler_tls: Option<HandlerTlsOptions>,
    pub telemetry: TelemetryOptions,
    /// Settings that have no effect, each with the reason.
    pub warnings: Vec<String>,
}

/// Returns the declarations of all settings.
fn declared() -> clap::Command {
    CommandLine::command().mut_args(|arg| arg.hide_env_values(true).allow_hyphen_values(true))
}
