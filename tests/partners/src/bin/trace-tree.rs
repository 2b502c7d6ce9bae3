//! Prints a trace of Jaeger's query API (JSON on stdin) as a tree.
use std::{collections::BTreeMap, io::Read as _};

use serde_json::Value;

fn main() -> anyhow::Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let answer: Value = serde_json::from_str(&text)?;
    let trace = &answer["data"][0];
    let spans = trace["spans"].as_array().cloned().unwrap_or_default();
    anyhow::ensure!(!spans.is_empty(), "the trace has no spans");
    let id = |s: &Value| s["spanID"].as_str().unwrap_or_default().to_owned();
    let known: std::collections::HashSet<String> = spans.iter().map(id).collect();
    let mut children: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for span in &spans {
        let parent = span["references"][0]["spanID"].as_str().unwrap_or_default();
        // The client's own span is not exported: its children are the roots.
        let parent = if known.contains(parent) { parent } else { "" };
        children.entry(parent.to_owned()).or_default().push(span);
    }
    for of in children.values_mut() {
        of.sort_by_key(|s| s["startTime"].as_i64());
    }
    let start = spans
        .iter()
        .filter_map(|s| s["startTime"].as_i64())
        .min()
        .unwrap_or(0);
    print(&children, &trace["processes"], "", "", start);
    Ok(())
}

fn print(
    children: &BTreeMap<String, Vec<&Value>>,
    processes: &Value,
    of: &str,
    indent: &str,
    start: i64,
) {
    let Some(spans) = children.get(of) else {
        return;
    };
    for (n, span) in spans.iter().enumerate() {
        let last = n + 1 == spans.len();
        let process = &processes[span["processID"].as_str().unwrap_or_default()];
        let tag = |tags: &Value, key: &str| {
            let tags = tags.as_array().cloned().unwrap_or_default();
            tags.iter()
                .find(|t| t["key"] == key)
                .and_then(|t| t["value"].as_str().map(str::to_owned))
                .unwrap_or_default()
        };
        let replica = tag(&process["tags"], "k8s.pod.name");
        let pod = tag(&span["tags"], "pod");
        let at = span["startTime"].as_i64().unwrap_or(start) - start;
        println!(
            "{indent}{}{} {pod} [{replica}] +{} ms, {} ms",
            if last { "└ " } else { "├ " },
            span["operationName"].as_str().unwrap_or_default(),
            at / 1000,
            span["duration"].as_i64().unwrap_or(0) / 1000,
        );
        let deeper = format!("{indent}{}", if last { "  " } else { "│ " });
        print(
            children,
            processes,
            span["spanID"].as_str().unwrap_or_default(),
            &deeper,
            start,
        );
    }
}
