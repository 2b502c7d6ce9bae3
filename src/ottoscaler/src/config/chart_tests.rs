//! The chart takes exactly the settings that there are.
#![expect(clippy::unwrap_used)]
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{SETTINGS, Setting};

const SCHEMA: &str = include_str!("../../../../charts/ottoscaler/values.schema.json");
const DEPLOYMENT: &str = include_str!("../../../../charts/ottoscaler/templates/deployment.yaml");
const HELPERS: &str = include_str!("../../../../charts/ottoscaler/templates/_helpers.tpl");
const CHART: &str = include_str!("../../../../charts/ottoscaler/Chart.yaml");

/// Those that the chart sets itself: by values of their own, or from the pod.
fn set_by_the_chart() -> BTreeSet<&'static str> {
    let from_pod = DEPLOYMENT
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- name: "))
        .filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
    let settings = HELPERS
        .split_once("define \"ottoscaler.settings\" -}}")
        .and_then(|(_, rest)| rest.split_once("{{- end }}"))
        .unwrap()
        .0;
    let from_values = settings.lines().filter_map(|line| line.split_once(':'));
    from_pod.chain(from_values.map(|(name, _)| name)).collect()
}

/// What `config` takes for a setting.
fn schema_of(setting: &Setting) -> Value {
    let kind = match setting.takes {
        "a duration" | "whole seconds" => "duration",
        "a quantity" | "a quantity or none" => "quantity",
        "a port" | "a count" | "a number" | "a user id" => "number",
        "true or false" => "switch",
        "each or cumulative" | "json or text" => {
            let choices: Vec<&str> = setting.takes.split(" or ").collect();
            return json!({ "enum": choices });
        }
        _ => "text",
    };
    json!({ "$ref": format!("#/definitions/{kind}") })
}

#[test]
fn the_charts_schema_names_every_setting_once() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let config = &schema["properties"]["config"];
    assert_eq!(config["additionalProperties"], false);
    let taken = config["properties"].as_object().unwrap();
    let set = set_by_the_chart();
    assert!(set.len() > 10, "{set:?}");
    for setting in SETTINGS {
        let wanted = (!set.contains(setting.name)).then(|| schema_of(setting));
        assert_eq!(
            taken.get(setting.name),
            wanted.as_ref(),
            "values.schema.json, config, {}: has the first, should have the second \
             (none where templates/_helpers.tpl sets it)",
            setting.name
        );
    }
    let known: BTreeSet<&str> = SETTINGS.iter().map(|s| s.name).collect();
    let unknown = |name: &&str| !known.contains(*name);
    let unknown: Vec<&str> = set
        .iter()
        .copied()
        .chain(taken.keys().map(String::as_str))
        .filter(unknown)
        .collect();
    assert!(unknown.is_empty(), "no settings: {unknown:?}");
}

#[test]
fn the_charts_image_is_of_this_version() {
    let version = concat!("\nappVersion: ", env!("CARGO_PKG_VERSION"), "\n");
    assert!(CHART.contains(version), "{CHART}");
}
