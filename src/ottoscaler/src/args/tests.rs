//! What is taken and what is refused.
#![expect(clippy::unwrap_used)]
use std::{ffi::OsString, time::Duration};

use super::{Invalid, Invocation, Options, parse};

fn with(pairs: &[(&str, &str)]) -> Result<Options, Invalid> {
    called(&[], pairs)
}

fn called(args: &[&str], environment: &[(&str, &str)]) -> Result<Options, Invalid> {
    match invoked(args, environment)? {
        Invocation::Serve(options) => Ok(*options),
        other => unreachable!("{other:?}"),
    }
}

fn invoked(args: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, Invalid> {
    let value = |name: &str| environment.iter().find(|(n, _)| *n == name);
    parse(args.iter().map(OsString::from), &|name| {
        value(name).map(|(_, v)| (*v).to_owned())
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
fn flags_carry_the_variables_names() {
    let options = called(&["--grpc-port", "1", "--namespace=ci"], &[]).unwrap();
    assert_eq!(
        (options.serve.grpc_port, options.namespace.as_str()),
        (1, "ci")
    );
    let unknown = called(&["--no-such", "x"], &[]).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "--no-such: \"--no-such\" is not a known flag (see --help)"
    );
    assert!(called(&["no-flag"], &[]).is_err());
    let without_value = called(&["--grpc-port"], &[]).unwrap_err();
    assert_eq!(without_value.name, "GRPC_PORT");
    assert_eq!(without_value.takes, "a port");
}

#[test]
fn a_link_to_a_service_is_no_port_of_ours() {
    for link in [
        "tcp://10.96.0.7:80",
        "tcp://[fd00::7]:80",
        "udp://10.96.0.7:53",
    ] {
        for name in ["GRPC_PORT", "HEALTH_PORT", "METRICS_PORT"] {
            let config = called(&[], &[(name, link)]).unwrap();
            let ports = (
                config.serve.grpc_port,
                config.serve.health_port,
                config.serve.metrics_port,
            );
            assert_eq!(ports, (9090, 9091, 9092), "{name}={link}");
            assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
            let warning = &config.warnings[0];
            assert!(
                warning.contains(name) && warning.contains("enableServiceLinks"),
                "{warning}"
            );
        }
    }
    let config = called(
        &["--grpc-port", "7000"],
        &[("GRPC_PORT", "tcp://10.96.0.7:80")],
    );
    let config = config.unwrap();
    assert_eq!((config.serve.grpc_port, config.warnings.len()), (7000, 0));
}

#[test]
fn what_is_no_link_is_still_a_wrong_port() {
    for value in ["tcp://", "tcp://host", "http://10.96.0.7:80", "many"] {
        let refused = called(&[], &[("GRPC_PORT", value)]).unwrap_err();
        assert_eq!(refused.name, "GRPC_PORT", "{value}");
    }
    let refused = called(&["--grpc-port", "tcp://10.96.0.7:80"], &[]);
    assert_eq!(refused.unwrap_err().name, "GRPC_PORT");
}

#[test]
fn a_flag_wins_over_the_environment() {
    let config = called(&["--namespace=flag"], &[("NAMESPACE", "environment")]).unwrap();
    assert_eq!(config.namespace, "flag");
    assert_eq!(called(&[], &[("NAMESPACE", "ci")]).unwrap().namespace, "ci");
}

#[test]
fn the_last_of_equal_flags_wins() {
    let options = called(&["--namespace=a", "--namespace", "b"], &[]).unwrap();
    assert_eq!(options.namespace, "b");
}

#[test]
fn an_empty_value_is_the_default() {
    let environment = [
        ("NAMESPACE", ""),
        ("POD_UID", ""),
        ("REPOSITORY_WEIGHTS", ""),
    ];
    let options = with(&environment).unwrap();
    assert_eq!(
        (options.namespace.as_str(), options.replica.pod_uid),
        ("default", None)
    );
    // An empty flag stands before the environment, too.
    let options = called(&["--namespace="], &[("NAMESPACE", "ci")]).unwrap();
    assert_eq!(options.namespace, "default");
}

#[test]
fn a_flag_may_have_a_value_that_begins_like_one() {
    let options = called(&["--pod-name", "--x"], &[]).unwrap();
    assert_eq!(options.replica.pod_name, "--x");
    assert_eq!(
        called(&["--max-priority", "-1"], &[]).unwrap_err().name,
        "MAX_PRIORITY"
    );
}

#[test]
fn help_version_and_definition_are_shown_whatever_is_set() {
    let wrong = [("GRPC_PORT", "many")];
    let shown = |args: &[&str]| match invoked(args, &wrong).unwrap() {
        Invocation::Show(text) => text,
        other => unreachable!("{other:?}"),
    };
    for help in ["--help", "-h"] {
        let text = shown(&[help]);
        for part in [
            "--grpc-port <a port>",
            "[env: GRPC_PORT]",
            "[default: 9090]",
            "crd",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("many"), "{text}");
    }
    let version = concat!("ottoscaler ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(shown(&["--version"]), version);
    assert_eq!(shown(&["-V"]), version);
    assert!(matches!(invoked(&["crd"], &wrong), Ok(Invocation::Crd)));
}

#[test]
fn a_refusal_shows_no_credentials() {
    let endpoint = (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "http://user:password@collector",
    );
    let refused = with(&[endpoint]).unwrap_err().to_string();
    assert!(!refused.contains("password"), "{refused}");
    assert!(refused.contains("http://…@collector"), "{refused}");
}

#[test]
fn the_declarations_are_sound() {
    super::declared().debug_assert();
}
