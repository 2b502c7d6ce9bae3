//! Settings of logs and traces → [`Telemetry`].
use http::Uri;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{Invalid, LogFormat, Reader, Telemetry};

/// The targets of our own events and spans begin with it.
pub const OWN_TARGET: &str = "ottoscaler";

pub(super) fn telemetry(get: &Reader<'_>) -> Result<Telemetry, Invalid> {
    let log_level = log_filter(&get.text("LOG_LEVEL"))
        .filter(|filter| EnvFilter::try_new(filter).is_ok())
        .ok_or_else(|| get.invalid("LOG_LEVEL"))?;
    let otlp_endpoint = get.optional("OTEL_EXPORTER_OTLP_ENDPOINT");
    if !otlp_endpoint.as_deref().is_none_or(is_collector) {
        return Err(get.invalid("OTEL_EXPORTER_OTLP_ENDPOINT"));
    }
    Ok(Telemetry {
        log_level,
        log_format: match get.one_of("LOG_FORMAT", &["json", "text"])?.as_str() {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        },
        otlp_endpoint,
    })
}

/// A filter that says what is logged of this program, without spaces; None for any other.
///
/// `EnvFilter` takes a word that is no level for a target and then logs nothing else. So each
/// part must end in a level, and one of them must be a level alone or that of our own target.
fn log_filter(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let targets: Option<Vec<&str>> = parts.iter().map(|part| target(part)).collect();
    let is_ours = |target: &&str| target.is_empty() || is_own(target);
    targets?.iter().any(is_ours).then(|| parts.join(","))
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
    target
        .strip_prefix(OWN_TARGET)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Targets of a filter that name other programs' parts: nothing of those is logged.
pub(super) fn foreign_targets(filter: &str) -> Vec<&str> {
    let targets = filter.split(',').filter_map(target);
    targets.filter(|t| !t.is_empty() && !is_own(t)).collect()
}

/// A URL with a scheme that gRPC has, and a host.
fn is_collector(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            // A port that is none is no part of the host, and neither are credentials.
            && uri.authority().is_some_and(|authority| {
                authority.as_str() == authority.host() || authority.port_u16().is_some()
            })
            && !text.contains('@')
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;

    fn with(name: &str, value: &str) -> Result<Config, Invalid> {
        Config::from_lookup(&|n| (n == name).then(|| value.to_owned()))
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
            assert_eq!(config.telemetry.otlp_endpoint.as_deref(), Some(value));
        }
        let config = with("OTEL_EXPORTER_OTLP_ENDPOINT", "").unwrap();
        assert_eq!(config.telemetry.otlp_endpoint, None);
    }
}
