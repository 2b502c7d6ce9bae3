//! What each key takes: text → value, or what is wrong with it.
use std::collections::BTreeMap;

use super::{CaBundle, Toleration, policy::Policy};
use crate::{
    names,
    quantity::{self, Quantity},
    violation::clip,
};

/// The greatest number of items of a list. A worker needs a few secrets, labels or tolerations, and
/// each becomes a part of its pod.
const MAX_ITEMS: usize = 16;
/// The largest number of seconds and user id that Kubernetes takes.
const MAX_I32: u32 = i32::MAX.cast_unsigned();
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// The value, or what is wrong with it.
pub(super) type Read<T> = Result<T, String>;

/// What bounds a key.
#[derive(Clone, Copy)]
pub(super) struct Bound<'a> {
    /// The setting that the key's row names.
    pub(super) setting: &'static str,
    pub(super) policy: &'a Policy,
}

impl Bound<'_> {
    /// Whether the setting's patterns allow it.
    fn check(self, text: &str) -> Read<()> {
        self.policy.allowed(self.setting).check(text, self.setting)
    }
}

fn not<T>(takes: &str, text: &str) -> Read<T> {
    Err(format!("must be {takes}, not {:?}", clip(text)))
}

pub(super) fn image(text: &str, bound: Bound<'_>) -> Read<String> {
    if !is_image(text) {
        return not("an image (registry/name:tag)", text);
    }
    if text != bound.policy.image {
        bound.check(text)?;
    }
    Ok(text.to_owned())
}

/// A JSON array, or a line for the shell.
pub(super) fn command(text: &str, bound: Bound<'_>) -> Read<Vec<String>> {
    let words = if text.starts_with('[') {
        serde_json::from_str(text)
            .map_err(|_| "must be a JSON array of strings, or a line for /bin/sh -c that does not start with [".to_owned())?
    } else {
        vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()]
    };
    if words.first().is_none_or(String::is_empty) || words.iter().any(|w| w.contains('\0')) {
        return Err("must name a program, and have no NUL bytes".to_owned());
    }
    bound.check(text)?;
    Ok(words)
}

pub(super) fn user_id(text: &str, bound: Bound<'_>) -> Read<u32> {
    match text.parse::<u32>() {
        Ok(0) if !bound.policy.allow_root => {
            Err(format!("must not be 0 (root): {} is false", bound.setting))
        }
        Ok(id) if id <= MAX_I32 => Ok(id),
        _ => not(&format!("a user id from 0 to {MAX_I32}"), text),
    }
}

pub(super) fn cpu(text: &str) -> Read<Quantity> {
    Quantity::parse(text)
        .filter(Quantity::is_exact)
        .map_or_else(|| not("a quantity (500m, 2)", text), Ok)
}

pub(super) fn bytes(text: &str) -> Read<Quantity> {
    Quantity::parse(text)
        .filter(Quantity::is_a_byte)
        .map_or_else(|| not("a quantity of bytes (512Mi, 2Gi)", text), Ok)
}

pub(super) fn at_most(amount: Quantity, max: &Quantity, setting: &str) -> Read<Quantity> {
    if amount <= *max {
        return Ok(amount);
    }
    Err(format!("must be at most {max} ({setting}), not {amount}"))
}

pub(super) fn workspace(text: &str, bound: Bound<'_>) -> Read<Quantity> {
    at_most(bytes(text)?, &bound.policy.max_workspace, bound.setting)
}

/// Names of Secrets, each once, in their order.
pub(super) fn secret_names(text: &str, bound: Bound<'_>) -> Read<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for item in items(text)? {
        if bound.policy.own_secrets.iter().any(|own| own == item) {
            return Err("must not be a Secret of Ottoscaler's own".to_owned());
        }
        let name = object_name(item, bound)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

pub(super) fn object_name(text: &str, bound: Bound<'_>) -> Read<String> {
    if !is_object_name(text) {
        return not("the name of a Kubernetes object", text);
    }
    bound.check(text)?;
    Ok(text.to_owned())
}

pub(super) fn service_account(text: &str, bound: Bound<'_>) -> Read<String> {
    if bound.policy.own_service_account.as_deref() == Some(text) {
        return Err("must not be Ottoscaler's own".to_owned());
    }
    object_name(text, bound)
}

pub(super) fn ca_bundle(text: &str, bound: Bound<'_>) -> Read<CaBundle> {
    let (config_map, key) = text.split_once('/').unwrap_or((text, "ca.crt"));
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if key.is_empty() || key.len() > 253 || !key.chars().all(legal) || key.starts_with("..") {
        return not("a ConfigMap, or ConfigMap/key", text);
    }
    Ok(CaBundle {
        config_map: object_name(config_map, bound)?,
        key: key.to_owned(),
    })
}

pub(super) fn node_selector(text: &str, bound: Bound<'_>) -> Read<BTreeMap<String, String>> {
    let mut selector = BTreeMap::new();
    for item in items(text)? {
        let Some((label, value)) = item
            .split_once('=')
            .filter(|(label, value)| is_label(label) && is_label_value(value))
        else {
            return not("label=value", item);
        };
        bound.check(item)?;
        if selector
            .insert(label.to_owned(), value.to_owned())
            .is_some()
        {
            return Err(format!("must have the label {label} once"));
        }
    }
    Ok(selector)
}

/// As `kubectl taint` writes taints. What tolerates everything cannot be said.
pub(super) fn tolerations(text: &str, bound: Bound<'_>) -> Read<Vec<Toleration>> {
    let read = |item: &str| -> Read<Toleration> {
        let parsed = item.split_once(':').and_then(|(taint, effect)| {
            let (key, value) = match taint.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (taint, None),
            };
            let legal = is_label(key)
                && value.as_deref().is_none_or(is_label_value)
                && EFFECTS.contains(&effect);
            legal.then(|| Toleration {
                key: key.to_owned(),
                value,
                effect: effect.to_owned(),
            })
        });
        let Some(toleration) = parsed else {
            let takes = format!("key=value:Effect or key:Effect ({})", EFFECTS.join(", "));
            return not(&takes, item);
        };
        bound.check(item)?;
        Ok(toleration)
    };
    items(text)?.into_iter().map(read).collect()
}

pub(super) fn priority(text: &str, bound: Bound<'_>) -> Read<i32> {
    let (max, setting) = (bound.policy.max_priority, bound.setting);
    match text.parse::<i32>() {
        Ok(n) if n.unsigned_abs() <= max => Ok(n),
        _ => not(&format!("from -{max} to {max} ({setting})"), text),
    }
}

pub(super) fn retry_limit(text: &str, bound: Bound<'_>) -> Read<u32> {
    let (max, setting) = (bound.policy.max_retries, bound.setting);
    match text.parse::<u32>() {
        Ok(n) if n <= max => Ok(n),
        _ => not(&format!("from 0 to {max} ({setting})"), text),
    }
}

/// Whole seconds.
pub(super) fn timeout(text: &str, bound: Bound<'_>) -> Read<u32> {
    let Some(asked) = quantity::duration(text).filter(|d| !d.is_zero()) else {
        return not("a duration (90s, 1h30m) above 0", text);
    };
    let (max, setting) = (bound.policy.max_timeout.as_secs(), bound.setting);
    let seconds = asked.as_secs() + u64::from(asked.subsec_nanos() > 0);
    match u32::try_from(seconds) {
        Ok(n) if seconds <= max => Ok(n),
        _ => not(&format!("at most {max} s ({setting})"), text),
    }
}

/// Said without the text: it may carry a password.
pub(super) fn proxy(text: &str, _: Bound<'_>) -> Read<String> {
    let host = ["http://", "https://", "socks5://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    if text.contains('@') {
        return Err(
            "must carry no credentials; take such a proxy from a Secret (OTTO_SECRETS)".to_owned(),
        );
    }
    if host.is_none_or(str::is_empty) || !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err("must be a URL (http://host:port)".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn hosts(text: &str, _: Bound<'_>) -> Read<String> {
    if text.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
        return Ok(text.to_owned());
    }
    not("hosts, separated by commas", text)
}

fn items(text: &str) -> Read<Vec<&str>> {
    let items: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|i| !i.is_empty())
        .collect();
    if items.len() > MAX_ITEMS {
        return Err(format!(
            "must have at most {MAX_ITEMS} items, not {}",
            items.len()
        ));
    }
    Ok(items)
}

/// A DNS subdomain, as most objects are named.
fn is_object_name(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|part| {
            part.starts_with(edge)
                && part.ends_with(edge)
                && part.chars().all(|c| edge(c) || c == '-')
        })
}

fn is_label_value(text: &str) -> bool {
    names::label_value(text) == text
}

/// A label's or a taint's key, with or without a domain.
fn is_label(text: &str) -> bool {
    let (domain, name) = match text.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, text),
    };
    domain.is_none_or(is_object_name) && !name.is_empty() && is_label_value(name)
}

/// The grammar of image references; a pattern is to be met by a name, not by
/// something that reads as one.
fn is_image(text: &str) -> bool {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (path, last) = match rest.rsplit_once('/') {
        Some((path, last)) => (Some(path), last),
        None => (None, rest),
    };
    let (last, tag) = match last.split_once(':') {
        Some((last, tag)) => (last, Some(tag)),
        None => (last, None),
    };
    let mut parts: Vec<&str> = path.map(|p| p.split('/').collect()).unwrap_or_default();
    if parts.first().is_some_and(|d| is_registry(d)) {
        parts.remove(0);
    }
    parts.push(last);
    rest.len() <= 255
        && parts.into_iter().all(is_path_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let label = |l: &str| {
        l.starts_with(|c: char| c.is_ascii_alphanumeric())
            && l.ends_with(|c: char| c.is_ascii_alphanumeric())
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    (host.contains('.') || port.is_some() || host == "localhost")
        && host.split('.').all(label)
        && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

/// Lower case and digits, between them `.`, `_`, `__` or dashes.
fn is_path_component(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(edge)
        && text.ends_with(edge)
        && text.split(edge).all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.chars().all(|c| c == '-')
        })
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128
        && text.starts_with(word)
        && text.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

fn is_digest(text: &str) -> bool {
    let hex = |t: &str| t.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    match text.split_once(':') {
        Some(("sha256", digits)) => digits.len() == 64 && hex(digits),
        Some(("sha512", digits)) => digits.len() == 128 && hex(digits),
        _ => false,
    }
}
