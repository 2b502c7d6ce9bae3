//! Decoding of the objects in the API server's answers.
//!
//! Invariants:
//! - Each object is decoded by itself: one that cannot be decoded does not affect its
//!   neighbours, and is reported with its name and resourceVersion.
//! - The report names the field and what was expected there, never the value of a field.
use std::borrow::Cow;

use kube::Resource;
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::convert;
use crate::domain::unread::Unread;

/// The result of decoding an object of a list or a watch.
#[derive(Debug)]
pub(super) enum Decoded<K> {
    Object(K),
    Unread(Unread),
}

/// Decodes an object. Also returns its resourceVersion, where that can be decoded.
pub(super) fn decode<K>(text: &str) -> (Decoded<K>, Option<String>)
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    if let Ok(object) = serde_json::from_str::<K>(text) {
        let version = object.meta().resource_version.clone();
        return (Decoded::Object(object), version);
    }
    let why = decode_failure::<K>(text);
    let meta = Metadata::decode(text);
    let owner = meta.owner_references.into_iter().find(|o| o.is_task());
    let version = meta.resource_version;
    let unread = Unread {
        kind: K::kind(&()),
        name: meta.name.unwrap_or_default().into(),
        uid: meta.uid.unwrap_or_default(),
        version: version.as_deref().map_or(0, parse_version),
        task: owner.map(|o| (o.name.into(), o.uid.into())),
        why,
    };
    (Decoded::Unread(unread), version)
}

/// Returns a resourceVersion as a number; one that is no number counts as 0. Versions of one
/// resource can be compared (KEP-5504).
pub fn parse_version(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

/// Logs an object that cannot be decoded.
pub fn log_unread(object: &Unread) {
    tracing::warn!(
        kind = &*object.kind,
        name = &*object.name,
        version = object.version,
        why = object.why,
        "an object cannot be decoded; it is left alone until it is mended or deleted"
    );
}

/// Returns the resourceVersion of a bookmark, or of any other object.
pub(super) fn resource_version(text: &str) -> Option<String> {
    Metadata::decode(text).resource_version
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    #[serde(default)]
    owner_references: Vec<Owner>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Owner {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
}

impl Owner {
    fn is_task(&self) -> bool {
        convert::is_task(&self.api_version, &self.kind)
    }
}

impl Metadata {
    /// Decodes each field of the metadata by itself, so that a malformed one does not affect
    /// the others.
    fn decode(text: &str) -> Self {
        fn read<T: DeserializeOwned>(text: &str) -> Option<T> {
            serde_json::from_str(text).ok()
        }
        let mut meta = Self::default();
        let metadata = fields(text).find(|(key, _)| key == "metadata");
        for (key, value) in metadata.into_iter().flat_map(|(_, text)| fields(text)) {
            match &*key {
                "name" => meta.name = read(value),
                "uid" => meta.uid = read(value),
                "resourceVersion" => meta.resource_version = read(value),
                "ownerReferences" => meta.owner_references = read(value).unwrap_or_default(),
                _ => {}
            }
        }
        meta
    }
}

/// Returns the fields of a JSON object, each value as its text. The iterator ends where the
/// text is malformed.
pub(super) fn fields(text: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    let mut rest = strip_bracket(text, '{');
    std::iter::from_fn(move || {
        let (key, after) = split_value(rest?)?;
        let key: Cow<'_, str> = serde_json::from_str::<&str>(key)
            .map(Cow::Borrowed)
            .or_else(|_| serde_json::from_str::<String>(key).map(Cow::Owned))
            .ok()?;
        let (value, after) = split_value(after.trim_start().strip_prefix(':')?)?;
        rest = after.trim_start().strip_prefix(',');
        Some((key, value))
    })
}

/// Returns the items of a JSON array, each as its text; returns `None` if the text is malformed
/// or no array.
pub(super) fn items(text: &str) -> Option<Vec<&str>> {
    let mut rest = strip_bracket(text, '[')?;
    let mut all = Vec::new();
    if rest.trim_start().starts_with(']') {
        return Some(all);
    }
    loop {
        let (item, after) = split_value(rest)?;
        all.push(item);
        let after = after.trim_start();
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return after.starts_with(']').then_some(all),
        }
    }
}

fn strip_bracket(text: &str, bracket: char) -> Option<&str> {
    text.trim_start().strip_prefix(bracket)
}

/// Splits the text after its first JSON value. The stack that this takes does not grow with the
/// depth of the value.
fn split_value(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    Some(text.split_at(values.byte_offset()))
}

/// Returns the field at which decoding fails and what was expected there.
fn decode_failure<K: DeserializeOwned>(text: &str) -> String {
    let mut from = serde_json::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, K>(&mut from) {
        // The caller only asks about text that could not be decoded.
        Ok(_) => String::new(),
        Err(error) => {
            let field = field_path(&error.path().to_string());
            let expected = expectation(error.inner());
            if field == "." {
                expected
            } else {
                format!("{field}: {expected}")
            }
        }
    }
}

/// Shortens a path to leave out the keys of maps, which users choose.
fn field_path(path: &str) -> String {
    let depth = match path.split(['.', '[']).next() {
        Some("spec" | "metadata") => 2,
        _ => 4,
    };
    let parts: Vec<&str> = path.split('.').take(depth).collect();
    if path == "." {
        ".".to_owned()
    } else {
        parts.join(".")
    }
}

/// Returns what serde expected, without the value that it found and quotes.
pub(super) fn expectation(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let (text, _) = text.rsplit_once(" at line ").unwrap_or((&text, ""));
    if text.starts_with("missing field") || error.is_eof() || error.is_syntax() {
        return text.to_owned();
    }
    // The texts of these forms end with words of serde; others may end with a quotation.
    let is_known_form = ["invalid type: ", "invalid value: ", "unknown variant "];
    let is_known_form = is_known_form.iter().any(|form| text.starts_with(form));
    match text.rsplit_once(", expected ").filter(|_| is_known_form) {
        Some((_, expected)) => format!("expected {expected}"),
        None => "a value that this version does not understand".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::{convert::PodView, crd::WorkerTask};

    fn task(change: impl FnOnce(&mut Value)) -> String {
        let mut task = json!({
            "apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask",
            "metadata": {"name": "t", "uid": "u", "resourceVersion": "7"},
            "spec": {"taskId": "t", "repository": "r", "commitSha": "c", "digest": "d", "workers": 1},
            "status": {"phase": "Running", "counts": {"total": 1, "pending": 0, "running": 1, "succeeded": 0, "failed": 0}},
        });
        change(&mut task);
        task.to_string()
    }

    fn unread<K>(text: &str) -> Unread
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + std::fmt::Debug,
    {
        match decode::<K>(text) {
            (Decoded::Unread(unread), version) => {
                assert_eq!(version.as_deref(), Some("7"), "{text}");
                unread
            }
            (Decoded::Object(known), _) => unreachable!("{known:?}"),
        }
    }

    /// Replaces a field of each type by a value of another type.
    #[test]
    fn what_cannot_be_decoded_is_named_with_its_field_and_without_what_it_holds() {
        let secret = "hunter2, expected no";
        for (path, value) in [
            ("/spec/workers", json!(-1)),
            ("/spec/workers", json!(5_000_000_000_u64)),
            ("/spec/workers", json!(secret)),
            ("/spec/workers", json!(null)),
            ("/spec/taskId", json!(null)),
            ("/spec/taskId", json!({secret: secret})),
            ("/spec/buildConfig", json!({"TOKEN": {secret: 1}})),
            ("/spec/buildConfig", json!([secret])),
            ("/spec/ended", json!([-1])),
            ("/spec/ended", json!(secret)),
            ("/spec/requestIds", json!([1])),
            ("/spec", json!(secret)),
            ("/spec", json!(null)),
            ("/status/workers", json!([1])),
            ("/status/finishedAt", json!(secret)),
            ("/status/counts/total", json!(-1)),
            ("/metadata/labels", json!({"a": 1})),
            ("/metadata/creationTimestamp", json!(secret)),
        ] {
            let text = task(|task| {
                let (of, key) = path.rsplit_once('/').unwrap();
                task.pointer_mut(of).unwrap()[key] = value.clone();
            });
            let unread = unread::<WorkerTask>(&text);
            assert_eq!(
                (
                    &*unread.kind,
                    &*unread.name,
                    unread.uid.as_str(),
                    unread.version
                ),
                ("WorkerTask", "t", "u", 7)
            );
            let field = path.trim_start_matches('/').replace('/', ".");
            let place = field.rsplit_once('.').map_or(&*field, |(_, last)| last);
            assert!(
                unread.why.contains(place) || unread.why.contains("missing field"),
                "{path}: {}",
                unread.why
            );
            for told in ["hunter2", "TOKEN"] {
                assert!(!unread.why.contains(told), "{path}: {}", unread.why);
            }
        }
    }

    #[test]
    fn a_missing_field_is_named() {
        let without = |field: &str| {
            let text = task(|task| drop(task["spec"].as_object_mut().unwrap().remove(field)));
            unread::<WorkerTask>(&text).why
        };
        assert_eq!(without("workers"), "spec: missing field `workers`");
        let none = task(|task| drop(task.as_object_mut().unwrap().remove("spec")));
        assert_eq!(unread::<WorkerTask>(&none).why, "missing field `spec`");
    }

    #[test]
    fn a_pod_that_cannot_be_decoded_is_known_to_be_its_tasks() {
        let owner = json!([{"apiVersion": "ottoscaler.io/v1alpha1", "kind": "WorkerTask", "name": "t", "uid": "tu"}]);
        let pod = json!({
            "metadata": {"name": "otto-agent-t-1", "uid": "u", "resourceVersion": "7", "ownerReferences": owner},
            "status": {"containerStatuses": [{"name": "worker", "restartCount": "many"}]},
        });
        let unread = unread::<PodView>(&pod.to_string());
        assert_eq!(unread.task, Some(("t".into(), "tu".into())));
        assert_eq!(
            unread.why,
            "status.containerStatuses[0].restartCount: expected i32"
        );
    }

    #[test]
    fn values_are_cut_out_of_any_json() {
        let text = r#" {"a" : [1, {"b":"]}"} , "x\\\"",null],"a\nb": -1.5e3 , "c":{} } "#;
        let all: Vec<_> = fields(text).collect();
        assert_eq!(
            all,
            [
                ("a".into(), r#"[1, {"b":"]}"} , "x\\\"",null]"#),
                ("a\nb".into(), "-1.5e3"),
                ("c".into(), "{}")
            ]
        );
        assert_eq!(
            items(all[0].1).unwrap(),
            ["1", r#"{"b":"]}"}"#, r#""x\\\"""#, "null"]
        );
        assert_eq!(items(" [ ] "), Some(vec![]));
        for wrong in ["", "{", "null", "[1", "[1,", "[1 2]", "x"] {
            assert_eq!(items(wrong), None, "{wrong}");
        }
        let deep = format!("[{}]", "[".repeat(100_000) + &"]".repeat(100_000));
        assert_eq!(items(&deep).unwrap().len(), 1);
    }
}
