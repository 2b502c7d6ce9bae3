//! Objects out of the API server's answers, each decoded by itself.
//!
//! What holds: an object that cannot be decoded is told apart from its neighbours, with
//! its name and resourceVersion; what is said of it names the field and what was expected
//! there, never what the object holds.
use std::borrow::Cow;

use kube::Resource;
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::convert;
use crate::domain::unread::Unread;

/// An object of a list or a watch.
#[derive(Debug)]
pub(super) enum Object<K> {
    Known(K),
    Unread(Unread),
}

/// Decodes an object; the second value is its resourceVersion, where it can be read.
pub(super) fn decode<K>(text: &str) -> (Object<K>, Option<String>)
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    if let Ok(object) = serde_json::from_str::<K>(text) {
        let version = object.meta().resource_version.clone();
        return (Object::Known(object), version);
    }
    let why = why::<K>(text);
    let meta = Metadata::of(text);
    let owner = meta.owner_references.into_iter().find(|o| o.is_task());
    let version = meta.resource_version;
    let unread = Unread {
        kind: K::kind(&()),
        name: meta.name.unwrap_or_default().into(),
        uid: meta.uid.unwrap_or_default(),
        version: version.as_deref().map_or(0, number),
        task: owner.map(|o| (o.name.into(), o.uid.into())),
        why,
    };
    (Object::Unread(unread), version)
}

/// Returns a resourceVersion as a number. Versions of one resource can be compared
/// (KEP-5504). A version that is no number counts as 0.
pub fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

/// Tells of an object that cannot be decoded in the log.
pub fn log(object: &Unread) {
    tracing::warn!(
        kind = &*object.kind,
        name = &*object.name,
        version = object.version,
        why = object.why,
        "an object cannot be decoded; it is left alone until it is mended or deleted"
    );
}

/// The resourceVersion of a bookmark, or of any other object.
pub(super) fn version(text: &str) -> Option<String> {
    Metadata::of(text).resource_version
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
    /// Each field by itself: what is wrong with one says nothing of the others.
    fn of(text: &str) -> Self {
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

/// The fields of a JSON object, each value as its text; ends where it is malformed.
pub(super) fn fields(text: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    let mut rest = open(text, '{');
    std::iter::from_fn(move || {
        let (key, after) = value(rest?)?;
        let key: Cow<'_, str> = serde_json::from_str::<&str>(key)
            .map(Cow::Borrowed)
            .or_else(|_| serde_json::from_str::<String>(key).map(Cow::Owned))
            .ok()?;
        let (value, after) = value(after.trim_start().strip_prefix(':')?)?;
        rest = after.trim_start().strip_prefix(',');
        Some((key, value))
    })
}

/// The items of a JSON array, each as its text; `None` where it is malformed or no array.
pub(super) fn items(text: &str) -> Option<Vec<&str>> {
    let mut rest = open(text, '[')?;
    let mut all = Vec::new();
    if rest.trim_start().starts_with(']') {
        return Some(all);
    }
    loop {
        let (item, after) = value(rest)?;
        all.push(item);
        let after = after.trim_start();
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return after.starts_with(']').then_some(all),
        }
    }
}

fn open(text: &str, bracket: char) -> Option<&str> {
    text.trim_start().strip_prefix(bracket)
}

/// The next JSON value, and what follows it. Any depth of it takes no stack.
fn value(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    Some(text.split_at(values.byte_offset()))
}

/// Why an object cannot be decoded, without what it holds.
fn why<K: DeserializeOwned>(text: &str) -> String {
    let mut from = serde_json::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, K>(&mut from) {
        // It was decoded after all.
        Ok(_) => String::new(),
        Err(error) => {
            let place = place(&error.path().to_string());
            let reason = reason(error.inner());
            if place == "." {
                reason
            } else {
                format!("{place}: {reason}")
            }
        }
    }
}

/// A path without the keys of maps that people fill.
fn place(path: &str) -> String {
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

/// What was expected, without what was found: serde quotes that.
pub(super) fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let (text, _) = text.rsplit_once(" at line ").unwrap_or((&text, ""));
    if text.starts_with("missing field") || error.is_eof() || error.is_syntax() {
        return text.to_owned();
    }
    // Of these forms the end is serde's own; others may quote to their end.
    let is_serdes = ["invalid type: ", "invalid value: ", "unknown variant "];
    let is_serdes = is_serdes.iter().any(|form| text.starts_with(form));
    match text.rsplit_once(", expected ").filter(|_| is_serdes) {
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
            (Object::Unread(unread), version) => {
                assert_eq!(version.as_deref(), Some("7"), "{text}");
                unread
            }
            (Object::Known(known), _) => unreachable!("{known:?}"),
        }
    }

    /// A field of each type, made into something else.
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
