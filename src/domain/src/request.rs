//! Checks the requests of otto-handler, and defines their outcomes.
//!
//! Invariants: a [`ScaleUp`] or a [`ScaleDown`] has passed every check. Only its `parse`
//! creates one, so that what takes one need not check again.
mod fields;
mod outcome;
mod selection;
mod task_filter;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    names,
    task::{MAX_TASK_BYTES, MAX_TASK_WORKERS, TaskSpec, Verb, WORKER_BYTES},
    template::{Policy, Template},
    violation::Violations,
};

pub use outcome::{Outcome, OutcomeKind, Refusal};
pub use selection::Selection;
pub use task_filter::TaskFilter;

/// The greatest size of a stored task without its workers and what the request carries, in bytes:
/// conditions, tables of reasons and messages, and the metadata of the object.
const TASK_OVERHEAD: usize = 24 * 1024;

/// A `ScaleRequest` is a request as it came, before any check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScaleRequest {
    /// The id of the task.
    pub task_id: String,
    /// The repository that the workers build.
    pub repository: String,
    /// The commit that the workers build.
    pub commit_sha: String,
    /// The number of workers that are wanted.
    pub worker_count: i32,
    /// The environment variables of the workers, and `OTTO_` keys.
    pub build_config: BTreeMap<String, String>,
    /// Who or what triggered the request.
    pub triggered_by: String,
    /// The reason of the request, for people.
    pub reason: String,
    /// The metadata of the request.
    pub metadata: BTreeMap<String, String>,
    /// The id of the client's call, the same when the call is repeated.
    pub request_id: String,
    /// The W3C trace context of the call.
    pub traceparent: Option<String>,
    /// The proven name of the caller; None where callers prove nothing.
    pub caller: Option<String>,
}

/// A `ScaleUp` is a ScaleUp request that has passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleUp {
    /// The spec of the task if it does not exist yet.
    spec: TaskSpec,
    request_id: String,
    caller: Option<String>,
}

/// A `ScaleDown` is a ScaleDown request that has passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleDown {
    task_id: String,
    workers: u32,
    request_id: String,
    caller: Option<String>,
}

impl ScaleUp {
    /// Checks a request against the bounds of this version and the installer's policy.
    ///
    /// # Errors
    /// Returns [`Refusal::Invalid`] with every wrong field.
    pub fn parse(request: ScaleRequest, policy: &Policy) -> Result<Self, Refusal> {
        let ScaleRequest {
            task_id,
            repository,
            commit_sha,
            worker_count,
            build_config,
            triggered_by,
            reason,
            metadata,
            request_id,
            traceparent,
            caller,
        } = request;
        let mut found = Violations::default();
        fields::task_id(&mut found, &task_id);
        fields::line(&mut found, "repository", &repository);
        fields::line(&mut found, "commit_sha", &commit_sha);
        fields::line(&mut found, "triggered_by", &triggered_by);
        fields::text(&mut found, "reason", &reason);
        let workers = fields::worker_count(&mut found, worker_count, 1..=MAX_TASK_WORKERS, "1");
        fields::map(&mut found, "build_config", &build_config);
        fields::variables(&mut found, "build_config", &build_config);
        if let Err(keys) = Template::parse(&build_config, policy) {
            found.extend(keys);
        }
        fields::map(&mut found, "metadata", &metadata);
        let spec = TaskSpec {
            digest: TaskSpec::digest_of(&repository, &commit_sha, &build_config),
            request_ids: TaskSpec::default().with_applied(&request_id, Verb::Up, workers),
            task_id,
            repository,
            commit_sha,
            workers,
            ended: BTreeSet::new(),
            build_config,
            triggered_by,
            reason,
            metadata,
            traceparent,
        };
        if found.is_empty() {
            size(&mut found, &spec);
        }
        found
            .none_or(Self {
                spec,
                request_id,
                caller,
            })
            .map_err(Refusal::Invalid)
    }

    /// Returns the spec of the task if it does not exist yet.
    pub fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    /// Returns the id of the client's call.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Returns who called, as proven.
    pub fn caller(&self) -> Option<&str> {
        self.caller.as_deref()
    }

    /// Returns the name of its WorkerTask.
    pub fn task_name(&self) -> String {
        names::task_name(&self.spec.task_id)
    }

    /// Returns about how many bytes the task may come to take in etcd.
    pub fn stored_bytes(&self) -> usize {
        self.spec.bytes() + self.spec.workers as usize * WORKER_BYTES
    }

    /// Checks that `known`, a task of the same name, was created by such a request.
    ///
    /// # Errors
    /// Returns [`Refusal::Conflict`] with every field that differs.
    pub fn check_same(&self, known: &TaskSpec) -> Result<(), Refusal> {
        let asked = &self.spec;
        if asked.digest == known.digest && asked.task_id == known.task_id {
            return Ok(());
        }
        let differs = [
            ("task_id", asked.task_id != known.task_id),
            ("repository", asked.repository != known.repository),
            ("commit_sha", asked.commit_sha != known.commit_sha),
            ("build_config", asked.build_config != known.build_config),
        ];
        let differs = differs.into_iter().filter(|(_, differs)| *differs);
        Err(Refusal::Conflict {
            task_id: asked.task_id.clone(),
            fields: differs.map(|(field, _)| field).collect(),
        })
    }
}

impl ScaleDown {
    /// Checks a request against the bounds of this version.
    ///
    /// # Errors
    /// Returns [`Refusal::Invalid`] with every wrong field.
    pub fn parse(request: ScaleRequest) -> Result<Self, Refusal> {
        let mut found = Violations::default();
        fields::task_id(&mut found, &request.task_id);
        let (count, range) = (request.worker_count, 0..=MAX_TASK_WORKERS);
        let workers = fields::worker_count(&mut found, count, range, "0 (end the task)");
        let parsed = Self {
            task_id: request.task_id,
            workers,
            request_id: request.request_id,
            caller: request.caller,
        };
        found.none_or(parsed).map_err(Refusal::Invalid)
    }

    /// Returns the id of the task.
    pub fn task_id(&self) -> &str {
        &self.task_id
    }

    /// Returns how many workers go on; 0 ends the task for good.
    pub fn workers(&self) -> u32 {
        self.workers
    }

    /// Returns the id of the client's call.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Returns who called, as proven.
    pub fn caller(&self) -> Option<&str> {
        self.caller.as_deref()
    }

    /// Returns the name of its WorkerTask.
    pub fn task_name(&self) -> String {
        names::task_name(&self.task_id)
    }
}

/// Returns how many bytes of build_config, metadata and reason a task of so many workers may
/// carry, in JSON, as they are stored.
pub fn room_for_maps(workers: u32) -> usize {
    let workers = WORKER_BYTES * workers.min(MAX_TASK_WORKERS) as usize;
    MAX_TASK_BYTES.saturating_sub(TASK_OVERHEAD + workers)
}

/// Checks that the spec and its workers fit into one object.
fn size(found: &mut Violations, spec: &TaskSpec) {
    let carried = (&spec.build_config, &spec.metadata, &spec.reason);
    let bytes = serde_json::to_string(&carried).map_or(usize::MAX, |json| json.len());
    let (workers, room) = (spec.workers, room_for_maps(spec.workers));
    if bytes > room {
        found.add(
            "build_config",
            format!(
                "with metadata and reason a task of {workers} workers may carry {room} bytes, not {bytes}; take fewer workers a task, or less"
            ),
        );
    }
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
        match ScaleUp::parse(request.clone(), &policy()) {
            Err(Refusal::Invalid(v)) => v.into_iter().map(|v| v.field).collect(),
            _ => vec![],
        }
    }

    #[test]
    fn a_legal_request_passes() {
        let up = ScaleUp::parse(legal(), &policy());
        let spec = up.map(|up| up.spec().clone()).unwrap_or_default();
        assert_eq!((spec.task_id.as_str(), spec.workers), ("build-42", 3));
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
        assert!(ScaleDown::parse(r.clone()).is_ok());
        assert!(ScaleUp::parse(r, &policy()).is_err());
    }
}
