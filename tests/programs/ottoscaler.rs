//! `ottoscaler` as it is called: what it prints, how it ends. No cluster.
mod run;

use run::{errors, run, unread};

const OTTOSCALER: &str = env!("CARGO_BIN_EXE_ottoscaler");

#[test]
fn a_reader_that_has_gone_ends_the_program_quietly() {
    for args in [&["--help"][..], &["--version"], &["crd"]] {
        let ended = unread(OTTOSCALER, args, false);
        assert_eq!(errors(&ended), "", "{args:?}");
        assert_eq!(ended.status.code(), Some(141), "{args:?}");
    }
    let wrong = unread(OTTOSCALER, &["--no-such"], true);
    assert_eq!(wrong.status.code(), Some(64));
}

#[test]
fn a_setting_that_is_none_ends_the_program_with_64() {
    for (name, value, takes) in [
        ("LOG_LEVEL", "warning", "trace"),
        ("LOG_LEVEL", "kube=debug", "trace"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "https://"),
        ("GRPC_PORT", "many", "a port"),
    ] {
        let (ended, _) = run(OTTOSCALER, &[], &[(name, value)]);
        let said = errors(&ended);
        assert_eq!(ended.status.code(), Some(64), "{name}={value}: {said}");
        assert!(said.contains(name) && said.contains(takes), "{said}");
    }
    // It is the API server that is missing then.
    let (ended, _) = run(
        OTTOSCALER,
        &[],
        &[
            ("GRPC_PORT", "tcp://10.96.0.7:80"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1"),
            ("LOG_LEVEL", "Warn"),
        ],
    );
    let said = errors(&ended);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("GRPC_PORT is ignored"), "{said}");
}
