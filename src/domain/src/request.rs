//! Requests of otto-handler: what is legal, and what can come of them.
use std::collections::BTreeMap;

use super::{
    names,
    task::{MAX_TASK_BYTES, MAX_TASK_WORKERS, Task, TaskSpec, WORKER_BYTES},
    template::{Policy, Template},
    view::{ClientState, WorkerView},
};

/// Characters of a task id, repository, commit and the like.
const MAX_TEXT: usize = 256;
/// Entries of a map, characters of a value, bytes of a map in all.
const MAX_ENTRIES: usize = 128;
const MAX_VALUE: usize = 32 * 1024;
const MAX_MAP_BYTES: usize = 128 * 1024;
/// Of a stored task beside its workers and what the request carries.
const TASK_OVERHEAD: usize = 24 * 1024;

/// A request as it came: unchecked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScaleRequest {
    pub task_id: String,
    pub repository: String,
    pub commit_sha: String,
    pub worker_count: i32,
    pub build_config: BTreeMap<String, String>,
    pub triggered_by: String,
    pub reason: String,
    pub metadata: BTreeMap<String, String>,
    /// One per call of the client, the same on a repeat.
    pub request_id: String,
    pub traceparent: Option<String>,
}

/// One field that is wrong, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub description: String,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub kind: OutcomeKind,
    pub message: String,
    pub processed: u32,
    pub pod_names: Vec<String>,
    /// The newest object written or seen for this answer; a replica whose index
    /// has not reached it is behind.
    pub task_version: u64,
    pub pod_version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    Success,
    Partial,
    AlreadyProcessed,
}

/// Why nothing was done. The message tells the client what it can do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the request has {} invalid field(s)", .0.len())]
    Invalid(Vec<Violation>),
    #[error("task {task_id:?} exists with another {}; use a new task id", fields.join(", "))]
    Conflict {
        task_id: String,
        fields: Vec<&'static str>,
    },
    #[error("no task {0:?}")]
    NoSuchTask(String),
    /// Leadership is gone or the API server is away; try again.
    #[error("{0}")]
    Unavailable(String),
    #[error("this replica no longer leads")]
    NotLeader,
    /// All tasks together hold as much as they may.
    #[error("{0}")]
    Exhausted(String),
    /// The API server refused for good.
    #[error("{0}")]
    Failed(String),
}

impl ScaleRequest {
    /// # Errors
    /// [`Refusal::Invalid`] with every wrong field.
    pub fn check_scale_up(&self, policy: &Policy) -> Result<(), Refusal> {
        let mut found = Violations::default();
        found.task_id(&self.task_id);
        found.text("repository", &self.repository);
        found.text("commit_sha", &self.commit_sha);
        found.text("triggered_by", &self.triggered_by);
        found.value("reason", &self.reason, MAX_VALUE);
        if !(1..=MAX_TASK_WORKERS.cast_signed()).contains(&self.worker_count) {
            found.add(
                "worker_count",
                format!(
                    "must be from 1 to {MAX_TASK_WORKERS}, not {}",
                    self.worker_count
                ),
            );
        }
        found.map("build_config", &self.build_config);
        for key in self
            .build_config
            .keys()
            .filter(|k| !names::is_env_name(k))
            .take(8)
        {
            found.add(
                &format!("build_config[{}]", clip(key)),
                "must be an environment variable name (letters, digits, underscore, no digit first)".to_owned(),
            );
        }
        if let Err(keys) = Template::parse(&self.build_config, policy) {
            found.0.extend(keys);
        }
        found.map("metadata", &self.metadata);
        if found.0.is_empty() {
            found.size(self);
        }
        found.done()
    }

    /// What the task that it asks for may come to in etcd, about.
    pub fn stored_bytes(&self) -> usize {
        let spec = TaskSpec {
            task_id: self.task_id.clone(),
            repository: self.repository.clone(),
            commit_sha: self.commit_sha.clone(),
            triggered_by: self.triggered_by.clone(),
            reason: self.reason.clone(),
            build_config: self.build_config.clone(),
            metadata: self.metadata.clone(),
            ..TaskSpec::default()
        };
        spec.bytes() + self.worker_count.unsigned_abs() as usize * WORKER_BYTES
    }

    /// # Errors
    /// [`Refusal::Invalid`] with every wrong field.
    pub fn check_scale_down(&self) -> Result<(), Refusal> {
        let mut found = Violations::default();
        found.task_id(&self.task_id);
        if !(0..=MAX_TASK_WORKERS.cast_signed()).contains(&self.worker_count) {
            found.add(
                "worker_count",
                format!(
                    "must be from 0 (end the task) to {MAX_TASK_WORKERS}, not {}",
                    self.worker_count
                ),
            );
        }
        found.done()
    }
}

/// Bytes of build_config, metadata and reason that a task of so many workers may
/// carry: in JSON, as they are stored.
pub fn room_for_maps(workers: u32) -> usize {
    let workers = WORKER_BYTES * workers.min(MAX_TASK_WORKERS) as usize;
    MAX_TASK_BYTES.saturating_sub(TASK_OVERHEAD + workers)
}

/// Which workers a status request selects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    pub task_id: Option<String>,
    pub pod_name: Option<String>,
    pub state: Option<ClientState>,
}

impl Selection {
    /// Whether it selects a worker of a task. The id itself decides: two ids may
    /// have one name.
    pub fn selects(&self, task: &Task, worker: &WorkerView) -> bool {
        let Self {
            task_id,
            pod_name,
            state,
        } = self;
        task_id.as_ref().is_none_or(|id| *id == task.spec.task_id)
            && pod_name.as_ref().is_none_or(|n| *n == worker.pod_name)
            && state.is_none_or(|state| state == worker.state())
    }

    /// # Errors
    /// [`Refusal::Invalid`] for a filter that names no state.
    pub fn parse(task_id: &str, pod_name: &str, status_filter: &str) -> Result<Self, Refusal> {
        let set = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut found = Violations::default();
        let state = match status_filter {
            "" => None,
            text => {
                let state = ClientState::parse(text);
                if state.is_none() {
                    found.add(
                        "status_filter",
                        format!(
                            "must be running, pending, succeeded or failed, not {:?}",
                            clip(text)
                        ),
                    );
                }
                state
            }
        };
        if task_id.len() > MAX_TEXT {
            found.add("task_id", format!("must have at most {MAX_TEXT} bytes"));
        }
        found.done()?;
        Ok(Self {
            task_id: set(task_id),
            pod_name: set(pod_name),
            state,
        })
    }
}

#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, field: &str, description: String) {
        self.0.push(Violation {
            field: field.to_owned(),
            description,
        });
    }

    fn task_id(&mut self, text: &str) {
        if text.trim().is_empty() {
            self.add("task_id", "must not be empty".to_owned());
        }
        self.text("task_id", text);
    }

    fn size(&mut self, request: &ScaleRequest) {
        let carried = (&request.build_config, &request.metadata, &request.reason);
        let bytes = serde_json::to_string(&carried).map_or(usize::MAX, |json| json.len());
        let workers = request.worker_count.unsigned_abs();
        let room = room_for_maps(workers);
        if bytes > room {
            self.add(
                "build_config",
                format!(
                    "with metadata and reason a task of {workers} workers may carry {room} bytes, not {bytes}; take fewer workers a task, or less"
                ),
            );
        }
    }

    fn text(&mut self, field: &str, text: &str) {
        self.value(field, text, MAX_TEXT);
        if text.chars().any(char::is_control) {
            self.add(field, "must have no control characters".to_owned());
        }
    }

    fn value(&mut self, field: &str, text: &str, max: usize) {
        if text.len() > max {
            self.add(
                field,
                format!("must have at most {max} bytes, not {}", text.len()),
            );
        }
    }

    fn map(&mut self, field: &str, map: &BTreeMap<String, String>) {
        if map.len() > MAX_ENTRIES {
            self.add(
                field,
                format!("must have at most {MAX_ENTRIES} entries, not {}", map.len()),
            );
        }
        let bytes: usize = map.iter().map(|(k, v)| k.len() + v.len()).sum();
        if bytes > MAX_MAP_BYTES {
            self.add(
                field,
                format!("must have at most {MAX_MAP_BYTES} bytes in all, not {bytes}"),
            );
        }
        for (key, value) in map
            .iter()
            .filter(|(k, v)| k.len() > MAX_TEXT || v.len() > MAX_VALUE)
            .take(8)
        {
            let entry = format!("{field}[{}]", clip(key));
            self.value(&entry, key, MAX_TEXT);
            self.value(&entry, value, MAX_VALUE);
        }
        if map.values().any(|v| v.contains('\0')) {
            self.add(field, "must have no NUL bytes".to_owned());
        }
    }

    fn done(self) -> Result<(), Refusal> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Refusal::Invalid(self.0))
        }
    }
}

/// What is wrong, in one line.
pub fn in_words(violations: &[Violation]) -> String {
    let each = violations
        .iter()
        .map(|v| format!("{} {}", v.field, v.description));
    each.collect::<Vec<_>>().join("; ")
}

fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::test_policy::policy_with;

    fn policy() -> Policy {
        policy_with(&[])
    }

    fn legal() -> ScaleRequest {
        ScaleRequest {
            task_id: "build-42".into(),
            repository: "org/repo".into(),
            commit_sha: "abc".into(),
            worker_count: 3,
            ..Default::default()
        }
    }

    fn fields(request: &ScaleRequest) -> Vec<String> {
        match request.check_scale_up(&policy()) {
            Err(Refusal::Invalid(v)) => v.into_iter().map(|v| v.field).collect(),
            _ => vec![],
        }
    }

    #[test]
    fn a_legal_request_passes() {
        assert_eq!(legal().check_scale_up(&policy()), Ok(()));
    }

    #[test]
    fn every_wrong_field_is_named() {
        let mut r = legal();
        r.task_id = String::new();
        r.worker_count = 0;
        r.build_config.insert("1X".into(), String::new());
        r.build_config.insert("A=B".into(), String::new());
        r.build_config.insert("OTTO_CPU_LIMIT".into(), "64".into());
        assert_eq!(
            fields(&r),
            [
                "task_id",
                "worker_count",
                "build_config[1X]",
                "build_config[A=B]",
                "build_config[OTTO_CPU_LIMIT]"
            ]
        );
    }

    #[test]
    fn sizes_are_bounded() {
        let mut r = legal();
        r.task_id = "x".repeat(257);
        r.worker_count = 1_001;
        r.build_config = (0..129).map(|i| (format!("K{i}"), String::new())).collect();
        r.metadata = (0..8)
            .map(|i| (format!("k{i}"), "v".repeat(20_000)))
            .collect();
        assert_eq!(
            fields(&r),
            ["task_id", "worker_count", "build_config", "metadata"]
        );
        // What many workers share must be small.
        let mut r = legal();
        r.build_config = [("K".into(), "v".repeat(20_000))].into();
        r.worker_count = 900;
        assert!(fields(&r).is_empty());
        r.worker_count = 1_000;
        assert_eq!(fields(&r), ["build_config"]);
    }

    #[test]
    fn zero_workers_end_a_task_but_do_not_start_one() {
        let r = ScaleRequest {
            worker_count: 0,
            ..legal()
        };
        assert!(r.check_scale_down().is_ok());
        assert!(r.check_scale_up(&policy()).is_err());
    }

    #[test]
    fn a_filter_is_a_state_in_any_case() {
        assert!(Selection::parse("", "", "Running").is_ok());
        assert!(matches!(
            Selection::parse("", "", "done"),
            Err(Refusal::Invalid(_))
        ));
    }
}
