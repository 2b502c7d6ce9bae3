//! Environment and flags → [`Config`]. Pure: values come from a lookup, so that
//! tests need no process environment.
//!
//! Every setting is one row of [`SETTINGS`]; `--grpc-port 1` is the flag of
//! `GRPC_PORT`. A flag wins over the environment; an empty value is no value.
#[cfg(test)]
mod chart_tests;
mod lease;
mod load;
mod telemetry;
mod worker;

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::domain::{
    quantity::{self, Quantity},
    template::Policy,
};

pub use telemetry::OWN_TARGET;

/// A setting: its variable, its default, what it takes and what it is for.
#[derive(Debug)]
pub struct Setting {
    pub name: &'static str,
    pub default: &'static str,
    pub takes: &'static str,
    pub about: &'static str,
}

macro_rules! settings {
    ($($name:literal $default:literal $takes:literal $about:literal;)*) => {
        /// All settings, in the order of the README's table.
        pub const SETTINGS: &[Setting] = &[$(Setting { name: $name, default: $default, takes: $takes, about: $about }),*];
    };
}

settings! {
    "GRPC_PORT" "9090" "a port" "where otto-handler asks";
    "HEALTH_PORT" "9091" "a port" "gRPC health checks, for the kubelet";
    "METRICS_PORT" "9092" "a port" "metrics for Prometheus, at /metrics";
    "OTTO_HANDLER_HOST" "otto-handler:8080" "host:port or none" "where logs and states go; none: logs stay on their pods for LOG_DRAIN_TIMEOUT";
    "OTTO_HANDLER_ACK" "each" "each or cumulative" "how otto-handler acknowledges log entries";
    "NAMESPACE" "default" "a namespace" "where the Lease, WorkerTasks and pods live";
    "OTTO_AGENT_IMAGE" "busybox:latest" "an image" "what workers run";
    "WORKER_IMAGE_PULL_POLICY" "IfNotPresent" "Always, IfNotPresent or Never" "when the node pulls the image";
    "WORKER_CPU_REQUEST" "10m" "a quantity" "CPU that a worker asks its node for; lowered to the limit where that is less";
    "WORKER_MEMORY_REQUEST" "16Mi" "a quantity" "memory that a worker asks its node for; lowered to the limit where that is less";
    "WORKER_CPU_LIMIT" "500m" "a quantity" "CPU of a worker";
    "WORKER_MEMORY_LIMIT" "128Mi" "a quantity" "memory of a worker";
    "WORKER_USER_ID" "65532" "a user id" "user of the worker's container";
    "ALLOW_ROOT_WORKERS" "false" "true or false" "lets workers be user 0, for images that need root";
    "ALLOWED_IMAGES" "*" "patterns" "images that requests may name";
    "ALLOWED_PULL_SECRETS" "none" "patterns" "Secrets to pull images with";
    "ALLOWED_COMMANDS" "*" "patterns" "commands instead of the image's";
    "ALLOWED_SECRETS" "none" "patterns" "Secrets that workers may take as environment";
    "ALLOWED_CA_BUNDLES" "none" "patterns" "ConfigMaps with certificates";
    "ALLOWED_CACHE_CLAIMS" "none" "patterns" "PersistentVolumeClaims for caches";
    "ALLOWED_SERVICE_ACCOUNTS" "none" "patterns" "ServiceAccounts that workers may act as";
    "ALLOWED_PRIORITY_CLASSES" "none" "patterns" "PriorityClasses of pods";
    "ALLOWED_NODE_LABELS" "kubernetes.io/arch=*,kubernetes.io/os=*" "patterns" "label=value of nodes to ask for";
    "ALLOWED_TOLERATIONS" "none" "patterns" "key=value:Effect or key:Effect of taints";
    "MAX_WORKER_CPU" "4" "a quantity" "CPU that a request may ask for";
    "MAX_WORKER_MEMORY" "8Gi" "a quantity" "memory that a request may ask for";
    "MAX_WORKSPACE" "20Gi" "a quantity" "size of a worker's /workspace";
    "MAX_WORKER_TIMEOUT" "24h" "a duration" "how long a worker may run";
    "MAX_WORKER_RETRIES" "10" "a number" "tries after the first that a request may ask for";
    "MAX_PRIORITY" "100" "a number" "priority that a request may ask for, either way from 0";
    "LOG_LEVEL" "info" "off, error, warn, info, debug, trace, or a list with target=level" "what is logged, as info,ottoscaler::logs=debug; of libraries nothing is";
    "LOG_FORMAT" "json" "json or text" "how it is logged";
    "POD_NAME" "" "a name" "this replica; default: the host name";
    "POD_UID" "" "a uid" "this replica's pod, for its proof of death";
    "POD_IP" "127.0.0.1" "an IP address" "where other replicas reach this one";
    "SERVICE_ACCOUNT" "" "a name" "this replica's own, which no worker gets";
    "LEASE_NAME" "ottoscaler-leader" "a name" "the Lease the replicas compete for";
    "LEASE_DURATION" "6s" "whole seconds, up to 1h" "how long a silent leader keeps the Lease";
    "LEASE_RENEW_DEADLINE" "4s" "a duration" "how long a leader acts after its last renewal";
    "LEASE_RETRY_PERIOD" "1s" "a duration" "between renewals and between attempts";
    "HANDOVER_TIMEOUT" "20s" "a duration" "for draining before the Lease is released";
    "PAUSED" "false" "true or false" "takes work and starts none, for maintenance (also: ottoctl pause)";
    "MAX_WORKERS" "500" "a count" "pods at a time";
    "REPOSITORY_WEIGHTS" "" "repository=weight, …" "shares of MAX_WORKERS; 1 where not named";
    "MAX_FINISHED_TASKS" "10000" "a count" "finished tasks kept as history";
    "MAX_STORED_TASK_BYTES" "64Mi" "a quantity" "what all tasks may take in etcd; the oldest finished ones go first, then ScaleUp is refused";
    "TASK_TTL" "24h" "a duration" "how long a finished task is kept; longer while logs of its pods wait";
    "PENDING_TIMEOUT" "15m" "a duration" "for a pod to start";
    "REFUSED_TIMEOUT" "2m" "a duration" "until a worker fails whose pod goes on being refused, other than by a quota";
    "LOG_DRAIN_TIMEOUT" "15m" "a duration" "for a finished worker's logs to be acknowledged";
    "NODE_LOST_TIMEOUT" "5m" "a duration" "until workers of a lost node fail";
    "LOG_ACK_TIMEOUT" "30s" "a duration" "for otto-handler to answer a log entry";
    "LOG_WINDOW" "1024" "a count" "log entries of a worker under way";
    "LOG_SPOOL_DIR" "/tmp" "a directory" "where log entries wait that otto-handler has yet to take";
    "LOG_SPOOL_SIZE" "1Gi" "a quantity or none" "of them; beyond it lines wait on their nodes";
    "OTEL_EXPORTER_OTLP_ENDPOINT" "" "a URL that begins with http:// or https://" "where traces go, by gRPC; empty: nowhere";
}

/// A value that a setting does not take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name}: {value:?} is not {takes}")]
pub struct Invalid {
    pub name: String,
    pub value: String,
    pub takes: String,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub namespace: String,
    pub serve: Serve,
    pub replica: Replica,
    pub lease: Lease,
    /// Of workers' pods.
    pub worker: Policy,
    pub limits: Limits,
    /// Work is taken, no worker is started.
    pub paused: bool,
    pub handler: Handler,
    pub telemetry: Telemetry,
    /// What is set and has no effect, for whoever set it.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Serve {
    pub grpc_port: u16,
    pub health_port: u16,
    pub metrics_port: u16,
}

/// This process among the replicas.
#[derive(Debug, Clone)]
pub struct Replica {
    pub pod_name: String,
    /// None outside a pod: no proof of death is published then.
    pub pod_uid: Option<String>,
    /// `host:port` at which the other replicas reach it.
    pub address: String,
}

#[derive(Debug, Clone)]
pub struct Lease {
    pub name: String,
    /// Whole seconds.
    pub duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
    pub handover_timeout: Duration,
}

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

#[derive(Debug, Clone)]
pub struct Handler {
    /// None: there is none.
    pub host: Option<String>,
    pub ack: AckMode,
    pub ack_timeout: Duration,
    pub window: usize,
    pub spool_dir: PathBuf,
    /// In bytes.
    pub spool_size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckMode {
    Each,
    Cumulative,
}

#[derive(Debug, Clone)]
pub struct Telemetry {
    /// A filter that `EnvFilter` takes.
    pub log_level: String,
    pub log_format: LogFormat,
    pub otlp_endpoint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

impl Config {
    /// Reads every setting through `lookup` (variable name → value).
    ///
    /// # Errors
    /// The first value that its setting does not take, and lease timings that
    /// cannot be safe.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, Invalid> {
        let get = Reader { lookup };
        let grpc_port = get.parse("GRPC_PORT")?;
        let lease = Lease {
            name: get.text("LEASE_NAME"),
            duration: get.duration("LEASE_DURATION")?,
            renew_deadline: get.duration("LEASE_RENEW_DEADLINE")?,
            retry_period: get.duration("LEASE_RETRY_PERIOD")?,
            handover_timeout: get.duration("HANDOVER_TIMEOUT")?,
        };
        lease.validate()?;
        let host = Some(get.text("OTTO_HANDLER_HOST")).filter(|h| h != "none");
        // An IPv6 address stands in brackets: its last group is no port.
        let is_host = |h: &str| match h.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
            None => !h.is_empty() && !h.contains([':', '/', ' ']),
        };
        let is_address = |host: &String| {
            host.rsplit_once(':')
                .is_some_and(|(h, p)| is_host(h) && p.parse::<u16>().is_ok())
        };
        if !host.as_ref().is_none_or(is_address) {
            return Err(get.invalid("OTTO_HANDLER_HOST"));
        }
        let pod_name = match get.text("POD_NAME") {
            name if name.is_empty() => {
                (get.lookup)("HOSTNAME").unwrap_or_else(|| "ottoscaler".to_owned())
            }
            name => name,
        };
        let ip: IpAddr = get.parse("POD_IP")?;
        let telemetry = telemetry::telemetry(&get)?;
        let foreign = telemetry::foreign_targets(&telemetry.log_level);
        let foreign = (!foreign.is_empty()).then(|| {
            let foreign = foreign.join(", ");
            format!("LOG_LEVEL: nothing is logged of libraries ({foreign})")
        });
        Ok(Self {
            namespace: get.text("NAMESPACE"),
            serve: Serve {
                grpc_port,
                health_port: get.parse("HEALTH_PORT")?,
                metrics_port: get.parse("METRICS_PORT")?,
            },
            replica: Replica {
                pod_name,
                pod_uid: get.optional("POD_UID"),
                // An IPv6 address gets its brackets.
                address: SocketAddr::new(ip, grpc_port).to_string(),
            },
            lease,
            worker: worker::policy(&get)?,
            limits: Limits {
                max_workers: get.count("MAX_WORKERS")?,
                repository_weights: get.weights("REPOSITORY_WEIGHTS")?,
                max_finished_tasks: get.count("MAX_FINISHED_TASKS")?,
                max_stored_bytes: get.held(
                    "MAX_STORED_TASK_BYTES",
                    usize::try_from(get.bytes("MAX_STORED_TASK_BYTES")?).unwrap_or(usize::MAX),
                    |bytes| *bytes > 0,
                )?,
                task_ttl: get.duration("TASK_TTL")?,
                pending_timeout: get.duration("PENDING_TIMEOUT")?,
                refused_timeout: get.duration("REFUSED_TIMEOUT")?,
                log_drain_timeout: get.duration("LOG_DRAIN_TIMEOUT")?,
                node_lost_timeout: get.duration("NODE_LOST_TIMEOUT")?,
                logs_forwarded: host.is_some(),
            },
            paused: get.one_of("PAUSED", &["true", "false"])? == "true",
            handler: Handler {
                host,
                ack: match get
                    .one_of("OTTO_HANDLER_ACK", &["each", "cumulative"])?
                    .as_str()
                {
                    "each" => AckMode::Each,
                    _ => AckMode::Cumulative,
                },
                ack_timeout: get.duration("LOG_ACK_TIMEOUT")?,
                window: get.count("LOG_WINDOW")?,
                spool_dir: get.text("LOG_SPOOL_DIR").into(),
                spool_size: get.bytes("LOG_SPOOL_SIZE")?,
            },
            warnings: foreign.into_iter().collect(),
            telemetry,
        })
    }
}

/// Splits `--name value` and `--name=value` into settings by variable name.
///
/// # Errors
/// A flag that no setting has, or one without a value.
pub fn parse_flags(
    args: impl IntoIterator<Item = String>,
) -> Result<Vec<(&'static str, String)>, Invalid> {
    let mut flags = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let invalid = |takes: &str| Invalid {
            name: arg.clone(),
            value: arg.clone(),
            takes: takes.to_owned(),
        };
        let Some(flag) = arg.strip_prefix("--") else {
            return Err(invalid("a flag (see --help)"));
        };
        let (flag, inline) = match flag.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (flag, None),
        };
        let variable = flag.replace('-', "_").to_uppercase();
        let Some(setting) = SETTINGS.iter().find(|s| s.name == variable) else {
            return Err(invalid("a known flag (see --help)"));
        };
        let Some(value) = inline.or_else(|| args.next()) else {
            return Err(Invalid {
                name: arg,
                value: String::new(),
                takes: setting.takes.to_owned(),
            });
        };
        flags.push((setting.name, value));
    }
    Ok(flags)
}

/// The text of `--help`.
#[derive(Debug)]
pub struct Help;

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Usage: ottoscaler [--FLAG VALUE]…\n       ottoscaler crd | --version | --help\n"
        )?;
        writeln!(f, "Each variable has a flag: GRPC_PORT is --grpc-port.\n")?;
        for s in SETTINGS {
            let default = if s.default.is_empty() {
                "none"
            } else {
                s.default
            };
            writeln!(
                f,
                "  {:<28} {} ({}; default {default})",
                s.name, s.about, s.takes
            )?;
        }
        Ok(())
    }
}

struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn setting(name: &str) -> (&'static str, &'static str) {
        SETTINGS
            .iter()
            .find(|s| s.name == name)
            .map_or(("", "known"), |s| (s.default, s.takes))
    }

    fn text(&self, name: &str) -> String {
        self.optional(name)
            .unwrap_or_else(|| Self::setting(name).0.to_owned())
    }

    fn optional(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|v| !v.is_empty())
    }

    fn invalid(&self, name: &str) -> Invalid {
        Invalid {
            name: name.to_owned(),
            value: self.text(name),
            takes: Self::setting(name).1.to_owned(),
        }
    }

    fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<T, Invalid> {
        self.text(name).parse().map_err(|_| self.invalid(name))
    }

    fn count(&self, name: &str) -> Result<usize, Invalid> {
        self.held(name, self.parse(name)?, |n| *n > 0)
    }

    fn held<T>(&self, name: &str, value: T, holds: impl FnOnce(&T) -> bool) -> Result<T, Invalid> {
        if holds(&value) {
            Ok(value)
        } else {
            Err(self.invalid(name))
        }
    }

    /// `a=1, b=2`: whole numbers from 1.
    fn weights(&self, name: &str) -> Result<HashMap<String, u32>, Invalid> {
        let text = self.text(name);
        let pairs = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        pairs
            .map(|pair| {
                let (key, weight) = pair.split_once('=')?;
                let weight = weight.trim().parse().ok().filter(|w| *w > 0)?;
                Some((key.trim().to_owned(), weight))
            })
            .collect::<Option<_>>()
            .ok_or_else(|| self.invalid(name))
    }

    fn one_of(&self, name: &str, choices: &[&str]) -> Result<String, Invalid> {
        let value = self.text(name);
        if choices.contains(&value.as_str()) {
            Ok(value)
        } else {
            Err(self.invalid(name))
        }
    }

    fn duration(&self, name: &str) -> Result<Duration, Invalid> {
        quantity::duration(&self.text(name)).ok_or_else(|| self.invalid(name))
    }

    /// `none` is 0.
    fn bytes(&self, name: &str) -> Result<u64, Invalid> {
        if self.text(name) == "none" {
            return Ok(0);
        }
        let milli = self.quantity(name)?.milli();
        u64::try_from(milli / 1_000).map_err(|_| self.invalid(name))
    }

    fn quantity(&self, name: &str) -> Result<Quantity, Invalid> {
        Quantity::parse(&self.text(name)).ok_or_else(|| self.invalid(name))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Config, Invalid> {
        Config::from_lookup(&|name| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn the_originals_defaults_are_kept() {
        let c = with(&[]).unwrap();
        assert_eq!(c.serve.grpc_port, 9090);
        assert_eq!(c.handler.host.as_deref(), Some("otto-handler:8080"));
        assert_eq!(c.namespace, "default");
        assert_eq!(c.worker.image, "busybox:latest");
        assert_eq!(
            (c.worker.cpu.limit.as_str(), c.worker.memory.limit.as_str()),
            ("500m", "128Mi")
        );
        assert_eq!(c.telemetry.log_level, "info");
        assert_eq!(c.limits.task_ttl, Duration::from_secs(86_400));
    }

    #[test]
    fn a_bad_value_names_the_variable_and_what_it_takes() {
        let e = with(&[("GRPC_PORT", "ninety")]).unwrap_err();
        assert_eq!(e.to_string(), "GRPC_PORT: \"ninety\" is not a port");
        for (name, value) in [
            ("WORKER_CPU_LIMIT", "lots"),
            ("TASK_TTL", "soon"),
            ("MAX_WORKERS", "0"),
            ("REPOSITORY_WEIGHTS", "org/app=0"),
            ("OTTO_HANDLER_HOST", "handler"),
            ("OTTO_HANDLER_ACK", "maybe"),
            ("LOG_SPOOL_SIZE", "much"),
        ] {
            assert_eq!(with(&[(name, value)]).unwrap_err().name, name);
        }
    }

    #[test]
    fn lease_timings_that_let_two_lead_are_refused() {
        assert_eq!(
            with(&[("LEASE_RENEW_DEADLINE", "6s")]).unwrap_err().name,
            "LEASE_RENEW_DEADLINE"
        );
        assert_eq!(
            with(&[("LEASE_RETRY_PERIOD", "3s")]).unwrap_err().name,
            "LEASE_RETRY_PERIOD"
        );
        for duration in ["1500ms", "0s", "3601s", "99999999h"] {
            assert_eq!(
                with(&[("LEASE_DURATION", duration)]).unwrap_err().name,
                "LEASE_DURATION"
            );
        }
        for (renew, retry, name, takes) in [
            (
                "60s",
                "10s",
                "LEASE_RENEW_DEADLINE",
                "less than LEASE_DURATION (60 s)",
            ),
            (
                "40s",
                "21s",
                "LEASE_RETRY_PERIOD",
                "half of LEASE_RENEW_DEADLINE (40000 ms)",
            ),
            ("40s", "1ns", "LEASE_RETRY_PERIOD", "from 100 ms"),
        ] {
            let refused = with(&[
                ("LEASE_DURATION", "60s"),
                ("LEASE_RENEW_DEADLINE", renew),
                ("LEASE_RETRY_PERIOD", retry),
            ])
            .unwrap_err();
            assert_eq!(refused.name, name);
            assert!(refused.takes.contains(takes), "{refused}");
        }
    }

    #[test]
    fn an_ipv6_address_is_written_in_brackets() {
        for (ip, address) in [("10.0.0.1", "10.0.0.1:9090"), ("fd00::1", "[fd00::1]:9090")] {
            assert_eq!(with(&[("POD_IP", ip)]).unwrap().replica.address, address);
        }
        for ip in ["[fd00::1]", "fd00::1:9090:x", "10.0.0", "a host"] {
            assert_eq!(with(&[("POD_IP", ip)]).unwrap_err().name, "POD_IP");
        }
        let handler = |host| with(&[("OTTO_HANDLER_HOST", host)]).map(|c| c.handler.host);
        assert_eq!(
            handler("[fd00::1]:8080"),
            Ok(Some("[fd00::1]:8080".to_owned()))
        );
        for host in [
            "fd00::1:8080",
            "fd00::1",
            "[fd00::1]",
            "[x]:8080",
            "http://h:8080",
        ] {
            assert_eq!(
                handler(host).unwrap_err().name,
                "OTTO_HANDLER_HOST",
                "{host}"
            );
        }
    }

    #[test]
    fn the_readme_lists_every_setting() {
        let readme = include_str!("../../../README.md");
        for s in SETTINGS {
            let default = if s.default.is_empty() {
                "–".to_owned()
            } else {
                format!("`{}`", s.default)
            };
            let row = format!("| `{}` | {default} | {} | {} |", s.name, s.takes, s.about);
            assert!(readme.contains(&row), "README.md lacks: {row}");
        }
    }

    #[test]
    fn the_bound_of_each_key_is_a_setting() {
        let named = crate::domain::template::KEYS.iter().map(|key| key.bound);
        let named: Vec<_> = named.filter(|b| !["the limit", "–"].contains(b)).collect();
        assert!(!named.is_empty());
        for bound in named {
            assert!(SETTINGS.iter().any(|s| s.name == bound), "{bound}");
        }
    }

    #[test]
    fn flags_carry_the_variables_names() {
        let args = ["--grpc-port", "1", "--namespace=ci"].map(String::from);
        assert_eq!(
            parse_flags(args).unwrap(),
            [
                ("GRPC_PORT", "1".to_owned()),
                ("NAMESPACE", "ci".to_owned())
            ]
        );
        assert!(parse_flags(["--no-such".to_owned(), "x".to_owned()]).is_err());
    }
}
