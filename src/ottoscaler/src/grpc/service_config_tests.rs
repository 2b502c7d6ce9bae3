//! The published service config is what stock clients accept, and covers what is served.
#![expect(clippy::unwrap_used)]
use std::{collections::BTreeSet, path::Path};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use serde_json::Value;

/// The service that otto-handler serves.
const NOT_OURS: &str = "OttoHandlerLogService";

fn config() -> Value {
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let file = Path::new(&package).join("../../proto/ottoscaler/v1/service_config.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// Returns the served methods by full name, and whether each of them streams.
fn methods() -> Vec<(String, bool)> {
    let files = FileDescriptorSet::decode(crate::proto::DESCRIPTORS).unwrap();
    let services = files.file.iter().flat_map(|file| {
        let named = |service| (file.package().to_owned(), service);
        file.service.iter().map(named)
    });
    services
        .filter(|(_, service)| service.name() != NOT_OURS)
        .flat_map(|(package, service)| {
            service.method.iter().map(move |method| {
                let name = format!("{package}.{}/{}", service.name(), method.name());
                (name, method.server_streaming() || method.client_streaming())
            })
        })
        .collect()
}

/// Returns the entry of a method, of which there must be one.
fn entry(config: &Value, method: &str) -> Value {
    let entries = config["methodConfig"].as_array().unwrap();
    let names = |entry: &Value| -> Vec<String> {
        let names = entry["name"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        names
            .map(|n| format!("{}/{}", text(&n["service"]), text(&n["method"])))
            .collect()
    };
    let with: Vec<&Value> = entries
        .iter()
        .filter(|entry| names(entry).iter().any(|name| name == method))
        .collect();
    assert_eq!(with.len(), 1, "{method} has one entry");
    with[0].clone()
}

/// Reads a duration of the JSON mapping of protobuf: seconds with at most nine decimals, and `s`.
fn seconds(value: &Value) -> f64 {
    let text = value.as_str().unwrap().strip_suffix('s').unwrap();
    let decimals = text.split_once('.').map_or("", |(_, decimals)| decimals);
    assert!(decimals.len() <= 9, "{value}");
    assert!(text.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    text.parse().unwrap()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn the_service_config_names_every_served_method_once_and_nothing_else() {
    let config = config();
    let served = methods();
    assert!(served.len() >= 9, "{served:?}");
    for (method, _) in &served {
        entry(&config, method);
    }
    let named: usize = config["methodConfig"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_array().unwrap().len())
        .sum();
    assert_eq!(named, served.len());
}

#[test]
fn the_service_config_is_within_what_stock_clients_accept() {
    let config = config();
    // Clients ignore what they do not know: a misspelt key would do nothing.
    assert_eq!(
        keys(&config),
        BTreeSet::from(["loadBalancingConfig", "methodConfig"])
    );
    assert_eq!(
        config["loadBalancingConfig"],
        serde_json::json!([{"round_robin": {}}])
    );
    for (method, streams) in methods() {
        let entry = entry(&config, &method);
        let mut expected = BTreeSet::from(["name", "waitForReady", "retryPolicy"]);
        // A timeout would end a stream.
        if !streams {
            expected.insert("timeout");
            assert!(seconds(&entry["timeout"]) > 0.0, "{method}");
        }
        assert_eq!(keys(&entry), expected, "{method}");
        assert_eq!(entry["waitForReady"], true, "{method}");
        let retry = &entry["retryPolicy"];
        // grpc-js, grpc-go and gRPC core make no more than five attempts.
        let attempts = retry["maxAttempts"].as_u64().unwrap();
        assert!((2..=5).contains(&attempts), "{method}: {attempts}");
        let first = seconds(&retry["initialBackoff"]);
        assert!(first > 0.0 && first <= seconds(&retry["maxBackoff"]));
        assert!(retry["backoffMultiplier"].as_f64().unwrap() >= 1.0);
        // The server says with both of them whether and when to retry.
        let codes = serde_json::json!(["UNAVAILABLE", "RESOURCE_EXHAUSTED"]);
        assert_eq!(retry["retryableStatusCodes"], codes, "{method}");
        assert_eq!(keys(retry).len(), 5, "{method}");
    }
}
