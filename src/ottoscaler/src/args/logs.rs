//! otto-handler, and how logs go there.
use std::{net::Ipv6Addr, path::PathBuf, time::Duration};

use clap::ValueEnum;

use super::values;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Logs and notifications")]
pub(super) struct LogArgs {
    /// Address of otto-handler, where logs and states go; none: logs stay on their pods for LOG_DRAIN_TIMEOUT.
    #[arg(
        long,
        env,
        default_value = "otto-handler:8080",
        value_name = "host:port or none",
        value_parser = host
    )]
    otto_handler_host: Host,
    /// How otto-handler acknowledges log entries.
    #[arg(long, env, default_value = "each", value_enum)]
    otto_handler_ack: AckMode,
    /// Time for otto-handler to answer a log entry.
    #[arg(long, env, default_value = "30s", value_name = "a duration", value_parser = values::duration)]
    log_ack_timeout: Duration,
    /// Log entries of a worker in flight.
    #[arg(long, env, default_value = "1024", value_name = "a count", value_parser = values::count)]
    log_window: usize,
    /// Directory of log entries that otto-handler has yet to take.
    #[arg(long, env, default_value = "/tmp", value_name = "a directory")]
    log_spool_dir: PathBuf,
    /// Size of that directory; beyond it lines wait on their nodes.
    #[arg(long, env, default_value = "1Gi", value_name = "a quantity or none", value_parser = values::bytes)]
    log_spool_size: u64,
}

/// otto-handler, and how logs go there.
#[derive(Debug, Clone)]
pub struct HandlerOptions {
    /// `host:port`; None: there is none.
    pub host: Option<String>,
    pub ack: AckMode,
    pub ack_timeout: Duration,
    pub window: usize,
    pub spool_dir: PathBuf,
    /// In bytes.
    pub spool_size: u64,
}

/// How otto-handler acknowledges log entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AckMode {
    #[value(help = "each entry by its own acknowledgement")]
    Each,
    #[value(help = "an acknowledgement stands for all entries before it, too")]
    Cumulative,
}

impl LogArgs {
    pub(super) fn options(self) -> HandlerOptions {
        let Self {
            otto_handler_host: Host(host),
            otto_handler_ack,
            log_ack_timeout,
            log_window,
            log_spool_dir,
            log_spool_size,
        } = self;
        HandlerOptions {
            host,
            ack: otto_handler_ack,
            ack_timeout: log_ack_timeout,
            window: log_window,
            spool_dir: log_spool_dir,
            spool_size: log_spool_size,
        }
    }
}

#[derive(Debug, Clone)]
struct Host(Option<String>);

fn host(text: &str) -> Result<Host, values::NotTaken> {
    // An IPv6 address stands in brackets: its last group is no port.
    let is_host = |h: &str| match h.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
        None => !h.is_empty() && !h.contains([':', '/', ' ']),
    };
    let is_address = text
        .rsplit_once(':')
        .is_some_and(|(h, p)| is_host(h) && p.parse::<u16>().is_ok());
    match text {
        "none" => Ok(Host(None)),
        _ if is_address => Ok(Host(Some(text.to_owned()))),
        _ => Err(values::NotTaken),
    }
}
