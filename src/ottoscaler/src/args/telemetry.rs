//! Settings of the log and of traces.
use clap::ValueEnum;
use http::Uri;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::values::NotTaken;

/// The targets of our own events and spans begin with one of these: the program's, and
/// those of its crates that log.
pub const OWN_TARGETS: [&str; 2] = ["ottoscaler", "fenced_lease"];

/// The log and traces.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Telemetry")]
pub struct TelemetryOptions {
    /// What is logged, as info,ottoscaler::logs=debug; of libraries nothing is.
    #[arg(
        long,
        env,
        default_value = "info",
        value_name = "off, error, warn, info, debug, trace, or a list with target=level",
        value_parser = log_filter
    )]
    pub log_level: String,
    /// Format of the log.
    #[arg(long, env, default_value = "json", value_enum)]
    pub log_format: LogFormat,
    /// Collector that traces go to, by gRPC; nowhere if not given.
    #[arg(
        long,
        env,
        value_name = "a URL that begins with http:// or https://",
        value_parser = collector
    )]
    pub otel_exporter_otlp_endpoint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Json,
    Text,
}

impl TelemetryOptions {
    /// Warns of parts of the filter that name other programs' parts: nothing of those is
    /// logged.
    pub(super) fn warning(&self) -> Option<String> {
        let targets = self.log_level.split(',').filter_map(target);
        let foreign: Vec<&str> = targets.filter(|t| !t.is_empty() && !is_own(t)).collect();
        (!foreign.is_empty()).then(|| {
            let foreign = foreign.join(", ");
            format!("LOG_LEVEL: nothing is logged of libraries ({foreign})")
        })
    }
}

/// A filter that says what is logged of this program, without spaces.
///
/// `EnvFilter` takes a word that is no level for a target and then logs nothing else. So each
/// part must end in a level, and one of them must be a level alone or that of our own target.
fn log_filter(text: &str) -> Result<String, NotTaken> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let targets: Option<Vec<&str>> = parts.iter().map(|part| target(part)).collect();
    let is_ours = |target: &&str| target.is_empty() || is_own(target);
    targets
        .is_some_and(|targets| targets.iter().any(is_ours))
        .then(|| parts.join(","))
        .filter(|filter| EnvFilter::try_new(filter).is_ok())
        .ok_or(NotTaken)
}

/// The target of `target=level`, `target[span]=level` or `level`, which has none (empty).
fn target(part: &str) -> Option<&str> {
    let (target, level) = part.rsplit_once('=').unwrap_or(("", part));
    let is_level = !level.is_empty()
        && level.parse::<LevelFilter>().is_ok()
        && level.chars().all(|c| c.is_ascii_alphabetic());
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-:".contains(c);
    let (name, span) = target.split_once('[').unwrap_or((target, "]"));
    let is_target = part.len() == level.len()
        || (name.chars().all(is_name) && span.ends_with(']') && !target.is_empty());
    (is_level && is_target).then_some(name)
}

fn is_own(target: &str) -> bool {
    OWN_TARGETS.iter().any(|own| {
        target
            .strip_prefix(own)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    })
}

/// A URL with a scheme that gRPC has, and a host.
fn collector(text: &str) -> Result<String, NotTaken> {
    let is_collector = text.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            // A port that is none is no part of the host, and neither are credentials.
            && uri.authority().is_some_and(|authority| {
                authority.as_str() == authority.host() || authority.port_u16().is_some()
            })
            && !text.contains('@')
    });
    is_collector.then(|| text.to_owned()).ok_or(NotTaken)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use crate::args::{Invalid, Options};

    fn with(name: &str, value: &str) -> Result<Options, Invalid> {
        Options::from_lookup(&|n| (n == name).then(|| value.to_owned()))
    }

    #[test]
    fn a_log_level_that_would_log_nothing_is_refused() {
        for value in [
            "warning",
            "verbose",
            "2",
            "ottoscaler",
            "info,",
            ",",
            "info warn",
            "info,kube",
            "kube=debug",
            "ottoscale=debug",
            "ottoscaler=",
            "ottoscaler=loud",
            "=debug",
            "info,otto scaler=debug",
            "info,ottoscaler[worker=debug",
        ] {
            let refused = with("LOG_LEVEL", value).unwrap_err();
            assert_eq!(refused.name, "LOG_LEVEL", "{value}");
            for level in [
                "off",
                "error",
                "warn",
                "info",
                "debug",
                "trace",
                "target=level",
            ] {
                assert!(refused.takes.contains(level), "{refused}");
            }
        }
    }

    #[test]
    fn levels_are_taken_in_any_case_and_for_parts() {
        for (value, filter) in [
            ("info", "info"),
            ("WARN", "WARN"),
            ("Debug", "Debug"),
            ("off", "off"),
            (
                "warn, ottoscaler::logs=TRACE",
                "warn,ottoscaler::logs=TRACE",
            ),
            ("ottoscaler=debug", "ottoscaler=debug"),
            (
                "info,ottoscaler[worker]=trace",
                "info,ottoscaler[worker]=trace",
            ),
        ] {
            let config = with("LOG_LEVEL", value).unwrap();
            assert_eq!(config.telemetry.log_level, filter, "{value}");
            assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        }
    }

    #[test]
    fn a_level_for_a_library_is_told_to_have_no_effect() {
        let config = with("LOG_LEVEL", "info,kube_client=debug,hyper::proto=off").unwrap();
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
        let warning = &config.warnings[0];
        assert!(warning.contains("kube_client, hyper::proto"), "{warning}");
    }

    #[test]
    fn a_collector_that_is_no_url_is_refused() {
        for value in [
            "collector:4317",
            "collector",
            "grpc://collector:4317",
            "http://",
            "https://:4317",
            "http:/collector",
            "http://collector:port",
            "http://colle ctor",
            "http://user:password@collector",
        ] {
            let refused = with("OTEL_EXPORTER_OTLP_ENDPOINT", value).unwrap_err();
            assert_eq!(refused.name, "OTEL_EXPORTER_OTLP_ENDPOINT", "{value}");
            assert!(refused.takes.contains("http:// or https://"), "{refused}");
        }
        for value in [
            "http://collector:4317",
            "https://collector",
            "https://[::1]:4317",
        ] {
            let config = with("OTEL_EXPORTER_OTLP_ENDPOINT", value).unwrap();
            assert_eq!(
                config.telemetry.otel_exporter_otlp_endpoint.as_deref(),
                Some(value)
            );
        }
        let config = with("OTEL_EXPORTER_OTLP_ENDPOINT", "").unwrap();
        assert_eq!(config.telemetry.otel_exporter_otlp_endpoint, None);
    }
}
