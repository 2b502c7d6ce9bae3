//! The desired state of a task.
use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

use super::{MAX_TASK_WORKERS, OVERHEAD_BYTES, schema};

/// The desired state of a task. The leader writes it on behalf of a request; all fields but
/// `workers`, `ended` and `requestIds` stay as first written.
// The bounds of the schema hold for what this version writes. What an older version or
// somebody else stored is read and brought within them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct TaskSpec {
    /// The id of the task, as the request gave it.
    #[schemars(length(min = 1, max = schema::TEXT))]
    pub task_id: String,
    /// The repository that the workers build.
    #[schemars(length(max = schema::TEXT))]
    pub repository: String,
    /// The commit that the workers build.
    #[schemars(length(max = schema::TEXT))]
    pub commit_sha: String,
    /// The number of workers that are wanted; 0 ends the task for good.
    #[serde(deserialize_with = "at_most_all")]
    #[schemars(range(max = MAX_TASK_WORKERS))]
    pub workers: u32,
    /// The indices of workers that ScaleDown ended. The `workers` lowest other indices are
    /// wanted.
    #[serde(
        default,
        deserialize_with = "indices",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    #[schemars(schema_with = "schema::indices")]
    pub ended: BTreeSet<u32>,
    /// The build configuration of the request: environment variables of the workers and
    /// `OTTO_` keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::texts")]
    pub build_config: BTreeMap<String, String>,
    /// Who or what triggered the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = schema::TEXT))]
    pub triggered_by: String,
    /// The reason of the request, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = schema::VALUE))]
    pub reason: String,
    /// The metadata of the request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::texts")]
    pub metadata: BTreeMap<String, String>,
    /// The digest of repository, commit and build config. A request with another digest under
    /// the same task id is refused.
    #[schemars(length(max = schema::TEXT))]
    pub digest: String,
    /// The requests that were applied lately, newest last. They are in the spec because one
    /// write must change them together with `workers`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::request_ids")]
    pub request_ids: Vec<String>,
    /// The W3C trace context of the request that created the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = schema::TEXT))]
    pub traceparent: Option<String>,
}

/// Reads a number of workers and limits it to [`MAX_TASK_WORKERS`].
fn at_most_all<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    Ok(u32::deserialize(from)?.min(MAX_TASK_WORKERS))
}

/// Reads indices and drops those that no worker can have.
fn indices<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<u32>, D::Error> {
    let mut all = BTreeSet::<u32>::deserialize(from)?;
    all.retain(|index| (1..=MAX_TASK_WORKERS).contains(index));
    Ok(all)
}

impl TaskSpec {
    /// Returns about how many bytes the spec takes in etcd.
    pub(crate) fn bytes(&self) -> usize {
        let map = |map: &BTreeMap<String, String>| {
            let entries = map.iter();
            entries.map(|(k, v)| k.len() + v.len() + 8).sum::<usize>()
        };
        let texts = [
            &self.task_id,
            &self.repository,
            &self.commit_sha,
            &self.triggered_by,
            &self.reason,
        ];
        let texts = texts.iter().map(|text| text.len()).sum::<usize>();
        OVERHEAD_BYTES + texts + map(&self.build_config) + map(&self.metadata)
    }

    /// Returns the highest index that is or was wanted.
    pub fn top(&self) -> u32 {
        let ended = u32::try_from(self.ended.len()).unwrap_or(u32::MAX);
        self.workers.saturating_add(ended).min(MAX_TASK_WORKERS)
    }

    /// Reports whether the worker of this index is wanted.
    pub fn wants(&self, index: u32) -> bool {
        self.workers > 0 && (1..=self.top()).contains(&index) && !self.ended.contains(&index)
    }

    /// Returns the indices that stay ended when the number of wanted workers grows to
    /// `workers`: growth takes back the lowest ended indices, as new attempts, before it goes
    /// on with new indices.
    pub fn ended_after_growth(&self, workers: u32) -> BTreeSet<u32> {
        let more = workers.saturating_sub(self.workers);
        self.ended.iter().copied().skip(more as usize).collect()
    }

    /// Returns the digest that identifies a request under its task id, as 32 hex digits.
    pub fn digest_of(
        repository: &str,
        commit_sha: &str,
        build_config: &BTreeMap<String, String>,
    ) -> String {
        let mut hash = Sha256::new();
        let mut field = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        field(repository);
        field(commit_sha);
        for (key, value) in build_config {
            field(key);
            field(value);
        }
        hash.finalize()
            .iter()
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_takes_back_what_scale_down_took_before_it_goes_on() {
        let mut spec = TaskSpec {
            workers: 3,
            ended: [2, 4].into(),
            ..TaskSpec::default()
        };
        let wanted = |s: &TaskSpec| (0..9).filter(|i| s.wants(*i)).collect::<Vec<_>>();
        assert_eq!(wanted(&spec), [1, 3, 5]);
        spec.ended = spec.ended_after_growth(4);
        spec.workers = 4;
        assert_eq!(wanted(&spec), [1, 2, 3, 5]);
        spec.ended = spec.ended_after_growth(7);
        spec.workers = 7;
        assert_eq!(wanted(&spec), [1, 2, 3, 4, 5, 6, 7]);
        spec.workers = 0;
        assert!(wanted(&spec).is_empty());
    }

    #[test]
    fn fields_cannot_trade_text_in_a_digest() {
        let none = BTreeMap::new();
        assert_ne!(
            TaskSpec::digest_of("ab", "c", &none),
            TaskSpec::digest_of("a", "bc", &none)
        );
    }
}
