//! Derives the names and labels of WorkerTasks and worker pods from task ids.
//!
//! Invariants: every name is legal in Kubernetes; two task ids never share a name; a pod's
//! name follows from its task, index and attempt.
use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::limits::{MAX_ATTEMPT, MAX_TASK_WORKERS};

/// The name of the container that runs the worker's program.
pub const WORKER: &str = "worker";

/// The greatest length of a name, in bytes. A pod's name is its hostname too (RFC 1123
/// label).
const MAX_NAME: usize = 63;
/// The greatest length of a task's part of a name, in bytes: it leaves room for
/// `otto-agent-` and for `-<index>-r<attempt>` with 1,000 workers.
const MAX_TASK_PART: usize = MAX_NAME - "otto-agent-".len() - "-1000-r99".len();
const PREFIX: &str = "otto-agent-";

/// Returns a task id as a part of a name: the id itself where it is a legal DNS label that
/// fits, else its sanitised beginning and 8 hex digits of its SHA-256.
pub(crate) fn task_part(task_id: &str) -> String {
    let clean = sanitise(task_id);
    // An id that ends like a hash suffix is hashed as well, so that it cannot equal the
    // hashed name of another id.
    if clean == task_id && clean.len() <= MAX_TASK_PART && !ends_like_a_hash(&clean) {
        return clean;
    }
    let hash = hex8(task_id);
    let head: String = clean.chars().take(MAX_TASK_PART - 9).collect();
    match head.trim_matches('-') {
        "" => format!("t-{hash}"),
        head => format!("{head}-{hash}"),
    }
}

/// Returns the name of the WorkerTask of a task id.
pub fn task_name(task_id: &str) -> String {
    task_part(task_id)
}

/// Returns the name of the pod of a worker's attempt: `otto-agent-<task>-<index>`, followed
/// by `-r<attempt - 1>` from the second attempt on. Indices and attempts count from 1.
pub fn pod_name(task_id: &str, index: u32, attempt: u32) -> String {
    pod_name_of(&task_part(task_id), index, attempt)
}

/// Returns the name of the pod of a worker's attempt, given the name of its WorkerTask
/// ([`task_name`]).
pub fn pod_name_of(task: &str, index: u32, attempt: u32) -> String {
    match attempt {
        0 | 1 => format!("{PREFIX}{task}-{index}"),
        n => format!("{PREFIX}{task}-{index}-r{}", n - 1),
    }
}

/// Parses the index and the attempt of a worker from the name of its pod. `task` is the name
/// of the WorkerTask. Returns None for a name that no worker's pod of this task gets.
pub fn parse_pod_name(task: &str, pod: &str) -> Option<(u32, u32)> {
    let rest = pod.strip_prefix(PREFIX)?.strip_prefix(task)?;
    let (index, attempt) = match rest.strip_prefix('-')?.split_once("-r") {
        Some((index, retry)) => (index, retry.parse::<u32>().ok()?.checked_add(1)?),
        None => (rest.strip_prefix('-')?, 1),
    };
    let index = index.parse().ok()?;
    let is_legal = (1..=MAX_TASK_WORKERS).contains(&index) && (1..=MAX_ATTEMPT).contains(&attempt);
    (is_legal && pod_name_of(task, index, attempt) == pod).then_some((index, attempt))
}

/// Returns the name of the WorkerTask whose worker's pod may have this name. Returns None for a
/// name that no worker's pod gets.
pub fn task_of_pod(pod: &str) -> Option<&str> {
    let rest = pod.strip_prefix(PREFIX)?;
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let worker = match rest.rsplit_once("-r") {
        Some((worker, retry)) if is_number(retry) => worker,
        _ => rest,
    };
    let (task, _) = worker.rsplit_once('-')?;
    parse_pod_name(task, pod).map(|_| task)
}

/// Returns the key of the pod of a worker's attempt, which no other pod ever has, because an
/// attempt gets at most one pod. It is a legal label value (a uid has 36 characters), so that
/// a label selector can select exactly this pod.
pub fn pod_key(task_uid: &str, index: u32, attempt: u32) -> String {
    format!("{task_uid}-{index}-{attempt}")
}

/// Returns the labels of a worker's pod that the gRPC contract exposes to clients. Values
/// are sanitised by [`label_value`].
pub fn worker_labels(
    task_id: &str,
    repository: &str,
    commit_sha: &str,
    index: u32,
) -> BTreeMap<String, String> {
    let labels = [
        ("managed-by", "ottoscaler".to_owned()),
        ("app", "otto-agent".to_owned()),
        ("task-id", label_value(task_id)),
        ("repository", label_value(repository)),
        ("commit-sha", label_value(commit_sha)),
        ("worker-index", index.to_string()),
    ];
    let labels = labels.into_iter();
    labels.map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Returns a text as a legal label value: at most 63 characters of `[A-Za-z0-9._-]` that
/// begin and end with an alphanumeric one. An annotation keeps the original text.
pub(crate) fn label_value(text: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mapped: String = text
        .chars()
        .map(|c| if legal(c) { c } else { '-' })
        .take(63)
        .collect();
    mapped
        .trim_matches(|c: char| !c.is_ascii_alphanumeric())
        .to_owned()
}

/// Reports whether a text may be the name of an environment variable (POSIX: letters,
/// digits and underscores, no digit first).
pub(crate) fn is_env_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn sanitise(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.ends_with('-') {
            out.push('-');
        }
    }
    out.trim_matches('-').to_owned()
}

fn ends_like_a_hash(text: &str) -> bool {
    text.rsplit_once('-').is_some_and(|(_, tail)| {
        tail.len() == 8 && tail.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    })
}

fn hex8(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .take(4)
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_legal_task_id_is_kept() {
        assert_eq!(pod_name("build-42", 1, 1), "otto-agent-build-42-1");
        assert_eq!(pod_name("build-42", 12, 3), "otto-agent-build-42-12-r2");
    }

    #[test]
    fn a_changed_task_id_carries_its_hash() {
        assert_eq!(
            task_part("Build_42"),
            format!("build-42-{}", hex8("Build_42"))
        );
        assert_ne!(task_part("Build_42"), task_part("build-42"));
        assert_eq!(task_part("한국어"), format!("t-{}", hex8("한국어")));
    }

    #[test]
    fn an_id_that_ends_like_a_hash_cannot_take_a_hashed_name() {
        let taken = task_part("Build_42");
        assert_ne!(task_part(&taken), taken);
    }

    /// `a-1` with index 2 and `a` with index `1-2` must not meet: an index has
    /// no dash, so the last part decides.
    #[test]
    fn task_and_index_cannot_be_confused() {
        assert_ne!(pod_name("a-1", 2, 1), pod_name("a", 12, 1));
        assert_ne!(pod_name("a-1", 1, 2), pod_name("a", 1, 1));
    }

    #[test]
    fn a_name_that_no_worker_gets_is_nobodys() {
        for name in [
            "otto-agent-t-0",
            "otto-agent-t-01",
            "otto-agent-t-+1",
            "otto-agent-t-1001",
            "otto-agent-t-4000000000",
            "otto-agent-t-99999999999999999999",
            "otto-agent-t-1-r0",
            "otto-agent-t-1-r01",
            "otto-agent-t-1-r4294967295",
            "otto-agent-t-1-r1-r1",
            "otto-agent-t-",
            "otto-agent-t",
            "otto-agent-other-1",
            "t-1",
            "",
        ] {
            assert_eq!(parse_pod_name("t", name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_pods_name_says_whose_it_is(id in "\\PC{1,80}", index in 1u32..=1000, attempt in 1u32..=2000) {
            let (task, name) = (task_name(&id), pod_name(&id, index, attempt));
            prop_assert_eq!(parse_pod_name(&task, &name), Some((index, attempt)));
            prop_assert_eq!(task_of_pod(&name), Some(task.as_str()));
        }

        #[test]
        fn names_are_legal(id in "\\PC{1,200}", index in 1u32..=1000, attempt in 1u32..=99) {
            let name = pod_name(&id, index, attempt);
            prop_assert!(name.len() <= MAX_NAME, "{name}");
            prop_assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
            prop_assert!(!name.contains("--") && !name.ends_with('-'), "{name}");
        }

        #[test]
        fn two_ids_never_share_a_name(a in "[a-cA-C_-]{1,6}", b in "[a-cA-C_-]{1,6}") {
            prop_assume!(a != b);
            prop_assert_ne!(task_part(&a), task_part(&b));
        }

        #[test]
        fn label_values_are_legal(text in "\\PC{0,100}") {
            let v = label_value(&text);
            prop_assert!(v.len() <= 63);
            prop_assert!(v.is_empty() || v.ends_with(|c: char| c.is_ascii_alphanumeric()));
        }
    }
}
