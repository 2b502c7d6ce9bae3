//! Texts outside the source that follow from the declarations: a test fails where one
//! differs, and `make tables` writes them.
#![expect(clippy::unwrap_used)]
use std::{collections::BTreeSet, path::Path, sync::Mutex};

use clap::Arg;
use serde_json::{Value, json};

use super::{Options, declared, setting};
use crate::domain::template::{KEYS, OURS};

const DEPLOYMENT: &str = include_str!("../../../../charts/ottoscaler/templates/deployment.yaml");
const HELPERS: &str = include_str!("../../../../charts/ottoscaler/templates/_helpers.tpl");
const CHART: &str = include_str!("../../../../charts/ottoscaler/Chart.yaml");

/// Compares what stands between the lines `begin` and `end` of a file with `wanted`.
fn stands(file: &str, [begin, end]: [&str; 2], wanted: &str) {
    /// Several tests write one file.
    static WRITES: Mutex<()> = Mutex::new(());
    let _writes = WRITES.lock();
    let path = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("run by `cargo test`"))
        .join("../..")
        .join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(begin).unwrap();
    let (found, after) = rest.split_once(end).unwrap();
    if found == wanted {
        return;
    }
    assert!(
        std::env::var_os("UPDATE").is_some(),
        "{file} differs from the declarations (`make tables` writes it); it should have:\n{wanted}"
    );
    std::fs::write(&path, format!("{before}{begin}{wanted}{end}{after}")).unwrap();
}

/// Returns each setting that is declared, with its name.
fn all() -> Vec<(String, Arg)> {
    let declared = declared();
    let all = setting::all(&declared);
    all.map(|arg| (setting::name(arg), arg.clone())).collect()
}

#[test]
fn the_readme_lists_every_setting() {
    let rows = all().into_iter().map(|(name, arg)| {
        let default = match arg.get_default_values() {
            [value] => format!("`{}`", value.to_str().unwrap()),
            _ => "–".to_owned(),
        };
        let about = arg.get_help().unwrap();
        format!(
            "| `{name}` | {default} | {} | {about} |\n",
            setting::takes(&arg)
        )
    });
    let table = format!(
        "\n| variable | default | takes | for |\n|---|---|---|---|\n{}",
        rows.collect::<String>()
    );
    stands(
        "README.md",
        ["<!-- settings -->", "<!-- /settings -->"],
        &table,
    );
}

#[test]
fn the_readme_lists_every_key() {
    let settings = all();
    let rows = KEYS.iter().map(|key| {
        let bound = match key.bound {
            "the limit" | "–" => key.bound.to_owned(),
            setting => {
                assert!(
                    settings.iter().any(|(name, _)| name == setting),
                    "{setting}"
                );
                format!("`{setting}`")
            }
        };
        format!(
            "| `{}` | {} | {bound} | {} |\n",
            key.name, key.takes, key.about
        )
    });
    let table = format!(
        "\n| key | takes | bound by | for |\n|---|---|---|---|\n{}",
        rows.collect::<String>()
    );
    stands("README.md", ["<!-- keys -->", "<!-- /keys -->"], &table);
}

#[test]
fn the_policy_has_the_patterns_of_every_key() {
    let policy = Options::from_lookup(&|_| None).unwrap().worker;
    let settings = all();
    let named = settings.iter().map(|(name, _)| name.as_str());
    let named: BTreeSet<&str> = named.filter(|name| name.starts_with("ALLOWED_")).collect();
    assert_eq!(
        policy.allowed.keys().copied().collect::<BTreeSet<_>>(),
        named
    );
    let bounds = KEYS.iter().map(|key| key.bound);
    let bounds: BTreeSet<&str> = bounds.filter(|name| name.starts_with("ALLOWED_")).collect();
    assert_eq!(bounds, named);
}

#[test]
fn the_readme_lists_every_variable() {
    let rows = OURS
        .iter()
        .map(|ours| format!("| `{}` | {} |\n", ours.name, ours.about));
    let table = format!(
        "\n| variable | value |\n|---|---|\n{}",
        rows.collect::<String>()
    );
    stands(
        "README.md",
        ["<!-- variables -->", "<!-- /variables -->"],
        &table,
    );
}

/// The settings that the chart sets itself: by values of their own, or from the pod.
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

/// What the chart's schema says of a value of `config`.
fn schema_of(arg: &Arg) -> Value {
    let kind = match setting::takes(arg).as_str() {
        "a duration" => "duration",
        "a quantity" => "quantity",
        "a port" | "a count" | "a number" | "a user id" => "number",
        "true or false" => "switch",
        _ if !arg.get_possible_values().is_empty() => {
            let choices = arg.get_possible_values();
            let choices: Vec<&str> = choices.iter().map(|choice| choice.get_name()).collect();
            return json!({ "enum": choices });
        }
        _ => "text",
    };
    json!({ "$ref": format!("#/definitions/{kind}") })
}

#[test]
fn the_charts_schema_names_every_setting_once() {
    let set = set_by_the_chart();
    assert!(set.len() > 10, "{set:?}");
    let settings = all();
    let declared: BTreeSet<&str> = settings.iter().map(|(name, _)| name.as_str()).collect();
    let unknown: Vec<_> = set.difference(&declared).collect();
    assert!(
        unknown.is_empty(),
        "the chart sets what is no setting: {unknown:?}"
    );
    let others = settings
        .iter()
        .filter(|(name, _)| !set.contains(name.as_str()));
    let rows: Vec<String> = others
        .map(|(name, arg)| {
            let schema = schema_of(arg)
                .to_string()
                .replace(':', ": ")
                .replace(',', ", ");
            format!("        \"{name}\": {schema}")
        })
        .collect();
    let begin = "compares the names with its list.\",\n      \"type\": \"object\",\n      \
                 \"additionalProperties\": false,\n      \"properties\": {\n";
    stands(
        "charts/ottoscaler/values.schema.json",
        [begin, "\n      }\n"],
        &rows.join(",\n"),
    );
}

#[test]
fn the_charts_image_is_of_this_version() {
    let version = concat!("\nappVersion: ", env!("CARGO_PKG_VERSION"), "\n");
    assert!(CHART.contains(version), "{CHART}");
}
