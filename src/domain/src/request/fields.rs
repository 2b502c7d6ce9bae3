//! Checks the fields of a request.
use std::{collections::BTreeMap, ops::RangeInclusive};

use crate::{
    names,
    violation::{TOLD_ENTRIES, Violations, entry},
};

/// The greatest size of a task id, repository, commit and the like, in bytes. The longest names in
/// use (paths of repositories, hashes) are below it.
const MAX_TEXT: usize = 256;
/// The greatest size of a value of a map, and of the reason, in bytes: below the 128 KiB that Linux
/// takes of one variable of an environment.
const MAX_VALUE: usize = 32 * 1024;
/// The greatest number of entries of a map. Each becomes a variable or a field of a worker.
const MAX_ENTRIES: usize = 128;
/// The greatest size of a map, in bytes. Both maps of a request fit into the stored task of a few
/// workers.
const MAX_MAP_BYTES: usize = 128 * 1024;

pub(super) fn task_id(found: &mut Violations, text: &str) {
    if text.trim().is_empty() {
        found.add("task_id", "must not be empty");
    }
    line(found, "task_id", text);
}

/// Checks a short text without control characters.
pub(super) fn line(found: &mut Violations, field: &str, text: &str) {
    bounded(found, field, text, MAX_TEXT);
    if text.chars().any(char::is_control) {
        found.add(field, "must have no control characters");
    }
}

/// Checks the length of a short text.
pub(super) fn short(found: &mut Violations, field: &str, text: &str) {
    if text.len() > MAX_TEXT {
        found.add(field, format!("must have at most {MAX_TEXT} bytes"));
    }
}

/// Checks a text of any characters.
pub(super) fn text(found: &mut Violations, field: &str, text: &str) {
    bounded(found, field, text, MAX_VALUE);
}

/// Checks a number of workers. Returns it, or 0 if it is wrong.
pub(super) fn worker_count(
    found: &mut Violations,
    count: i32,
    range: RangeInclusive<u32>,
    least: &str,
) -> u32 {
    match u32::try_from(count).ok().filter(|n| range.contains(n)) {
        Some(count) => count,
        None => {
            let most = range.end();
            found.add(
                "worker_count",
                format!("must be from {least} to {most}, not {count}"),
            );
            0
        }
    }
}

pub(super) fn map(found: &mut Violations, field: &str, map: &BTreeMap<String, String>) {
    if map.len() > MAX_ENTRIES {
        found.add(
            field,
            format!("must have at most {MAX_ENTRIES} entries, not {}", map.len()),
        );
    }
    let bytes: usize = map.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MAX_MAP_BYTES {
        found.add(
            field,
            format!("must have at most {MAX_MAP_BYTES} bytes in all, not {bytes}"),
        );
    }
    let too_long = map
        .iter()
        .filter(|(k, v)| k.len() > MAX_TEXT || v.len() > MAX_VALUE);
    for (key, value) in too_long.take(TOLD_ENTRIES) {
        let entry = entry(field, key);
        bounded(found, &entry, key, MAX_TEXT);
        bounded(found, &entry, value, MAX_VALUE);
    }
    if map.values().any(|v| v.contains('\0')) {
        found.add(field, "must have no NUL bytes");
    }
}

/// Checks that the keys of a map are names of environment variables.
pub(super) fn variables(found: &mut Violations, field: &str, map: &BTreeMap<String, String>) {
    let wrong = map.keys().filter(|key| !names::is_env_name(key));
    for key in wrong.take(TOLD_ENTRIES) {
        found.add_entry(
            field,
            key,
            "must be an environment variable name (letters, digits, underscore, no digit first)",
        );
    }
}

fn bounded(found: &mut Violations, field: &str, text: &str, max: usize) {
    if text.len() > max {
        found.add(
            field,
            format!("must have at most {max} bytes, not {}", text.len()),
        );
    }
}
