//! What a request may say about its workers' pods: the `OTTO_…` keys of its
//! build_config, each within what the installer allows.
//!
//! What holds: every replica reads with the same [`Policy`]; a request that does
//! not pass is told of each key and nothing of it is written; what passes is a
//! [`Template`], complete, from which the pod follows. It is read again for each
//! pod, so that a policy made stricter holds for tasks taken before.
mod policy;
mod values;

use std::collections::BTreeMap;

pub use policy::{Bounds, Patterns, Policy};

use super::{quantity::Quantity, request::Violation, task::TaskSpec};

/// A key, what it takes, which setting bounds it and what it does: a row of the
/// README's table.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub takes: &'static str,
    pub bound: &'static str,
    pub about: &'static str,
}

macro_rules! keys {
    ($($name:literal $takes:literal $bound:literal $about:literal;)*) => {
        /// All keys, in the order of the README's table.
        pub const KEYS: &[Key] = &[$(Key { name: $name, takes: $takes, bound: $bound, about: $about }),*];
    };
}

keys! {
    "OTTO_IMAGE" "an image" "ALLOWED_IMAGES" "instead of OTTO_AGENT_IMAGE";
    "OTTO_IMAGE_PULL_SECRETS" "names" "ALLOWED_PULL_SECRETS" "Secrets to pull it with";
    "OTTO_COMMAND" "a JSON array, or a line for /bin/sh -c" "ALLOWED_COMMANDS" "instead of the image's; Kubernetes expands no `$(…)` in it";
    "OTTO_USER_ID" "a number" "ALLOW_ROOT_WORKERS" "instead of WORKER_USER_ID; 0 is root";
    "OTTO_CPU_REQUEST" "a quantity" "the limit" "WORKER_CPU_REQUEST if not given";
    "OTTO_CPU_LIMIT" "a quantity" "MAX_WORKER_CPU" "instead of WORKER_CPU_LIMIT";
    "OTTO_MEMORY_REQUEST" "a quantity" "the limit" "WORKER_MEMORY_REQUEST if not given";
    "OTTO_MEMORY_LIMIT" "a quantity" "MAX_WORKER_MEMORY" "instead of WORKER_MEMORY_LIMIT";
    "OTTO_WORKSPACE_SIZE" "a quantity" "MAX_WORKSPACE" "of `/workspace`; the maximum if not given";
    "OTTO_CACHE_CLAIM" "a name" "ALLOWED_CACHE_CLAIMS" "PersistentVolumeClaim at `/cache`";
    "OTTO_SECRETS" "names" "ALLOWED_SECRETS" "Secrets whose entries become environment";
    "OTTO_CA_BUNDLE" "ConfigMap or ConfigMap/key" "ALLOWED_CA_BUNDLES" "certificates, instead of the image's; key `ca.crt` if not given";
    "OTTO_HTTP_PROXY" "a URL" "–" "HTTP_PROXY and http_proxy; without credentials";
    "OTTO_HTTPS_PROXY" "a URL" "–" "HTTPS_PROXY and https_proxy; without credentials";
    "OTTO_NO_PROXY" "hosts" "–" "NO_PROXY and no_proxy";
    "OTTO_SERVICE_ACCOUNT" "a name" "ALLOWED_SERVICE_ACCOUNTS" "with a token, unless the ServiceAccount says otherwise";
    "OTTO_NODE_SELECTOR" "label=value, …" "ALLOWED_NODE_LABELS" "nodes to run on";
    "OTTO_TOLERATIONS" "key=value:Effect or key:Effect, …" "ALLOWED_TOLERATIONS" "taints to run beside";
    "OTTO_PRIORITY_CLASS" "a name" "ALLOWED_PRIORITY_CLASSES" "PriorityClass of the pod";
    "OTTO_PRIORITY" "a number" "MAX_PRIORITY" "place in the queue: higher goes first, 0 if not given";
    "OTTO_TIMEOUT" "a duration" "MAX_WORKER_TIMEOUT" "from the pod's start; the maximum if not given";
    "OTTO_RETRY_LIMIT" "a count" "MAX_WORKER_RETRIES" "tries after the first";
}

/// Set by us in every worker; whatever a request gives them is passed over.
pub const OURS: [&str; 6] = [
    "OTTO_TASK_ID",
    "OTTO_REPOSITORY",
    "OTTO_COMMIT_SHA",
    "OTTO_WORKER_INDEX",
    "OTTO_WORKER_COUNT",
    "OTTO_ATTEMPT",
];
const PREFIX: &str = "OTTO_";

/// A worker's pod but for its names; nothing is left to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub image: String,
    pub pull_policy: String,
    pub pull_secrets: Vec<String>,
    /// None: the image's.
    pub command: Option<Vec<String>>,
    pub user_id: u32,
    pub cpu: Resource,
    pub memory: Resource,
    pub workspace: Quantity,
    pub cache_claim: Option<String>,
    /// Secrets that become environment.
    pub secrets: Vec<String>,
    pub ca_bundle: Option<CaBundle>,
    /// By variable, in capitals.
    pub proxies: BTreeMap<&'static str, String>,
    pub service_account: Option<String>,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    pub priority_class: Option<String>,
    pub timeout_seconds: u32,
    /// The build_config without template keys.
    pub environment: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub request: Quantity,
    pub limit: Quantity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaBundle {
    pub config_map: String,
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toleration {
    pub key: String,
    /// None: any.
    pub value: Option<String>,
    pub effect: String,
}

impl Template {
    /// # Errors
    /// Every key that is unknown, malformed or out of bounds.
    pub fn parse(
        build_config: &BTreeMap<String, String>,
        policy: &Policy,
    ) -> Result<Self, Vec<Violation>> {
        let mut keys = Reader {
            build_config,
            found: Vec::new(),
        };
        keys.unknown();
        // Read here for their bounds only; the planner asks the TaskSpec.
        keys.read("OTTO_PRIORITY", |t| values::priority(t, policy));
        keys.read("OTTO_RETRY_LIMIT", |t| values::retry_limit(t, policy));
        let template = Self {
            image: keys
                .read("OTTO_IMAGE", |t| values::image(t, policy))
                .unwrap_or_else(|| policy.image.clone()),
            pull_policy: policy.pull_policy.clone(),
            pull_secrets: keys.names("OTTO_IMAGE_PULL_SECRETS", &policy.pull_secrets),
            command: keys.read("OTTO_COMMAND", |t| values::command(t, &policy.commands)),
            user_id: keys
                .read("OTTO_USER_ID", |t| values::user_id(t, policy.allow_root))
                .unwrap_or(policy.user_id),
            cpu: keys.resource(
                ("OTTO_CPU_REQUEST", "OTTO_CPU_LIMIT"),
                values::cpu,
                &policy.cpu,
            ),
            memory: keys.resource(
                ("OTTO_MEMORY_REQUEST", "OTTO_MEMORY_LIMIT"),
                values::bytes,
                &policy.memory,
            ),
            workspace: keys
                .read("OTTO_WORKSPACE_SIZE", |t| {
                    values::at_most(values::bytes(t)?, &policy.max_workspace, "MAX_WORKSPACE")
                })
                .unwrap_or_else(|| policy.max_workspace.clone()),
            cache_claim: keys.read("OTTO_CACHE_CLAIM", |t| {
                values::object_name(t, &policy.cache_claims)
            }),
            secrets: keys.names("OTTO_SECRETS", &policy.secrets),
            ca_bundle: keys.read("OTTO_CA_BUNDLE", |t| {
                values::ca_bundle(t, &policy.ca_bundles)
            }),
            proxies: keys.proxies(),
            service_account: keys.read("OTTO_SERVICE_ACCOUNT", |t| {
                values::service_account(t, policy)
            }),
            node_selector: keys
                .read("OTTO_NODE_SELECTOR", |t| {
                    values::node_selector(t, &policy.node_labels)
                })
                .unwrap_or_default(),
            tolerations: keys
                .read("OTTO_TOLERATIONS", |t| {
                    values::tolerations(t, &policy.tolerations)
                })
                .unwrap_or_default(),
            priority_class: keys.read("OTTO_PRIORITY_CLASS", |t| {
                values::object_name(t, &policy.priority_classes)
            }),
            timeout_seconds: keys
                .read("OTTO_TIMEOUT", |t| values::timeout(t, policy))
                .unwrap_or_else(|| u32::try_from(policy.max_timeout.as_secs()).unwrap_or(u32::MAX)),
            environment: build_config
                .iter()
                .filter(|(key, _)| !key.starts_with(PREFIX))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        };
        if keys.found.is_empty() {
            Ok(template)
        } else {
            Err(keys.found)
        }
    }
}

/// What the planner asks of a task, whose keys were read when it was taken.
impl TaskSpec {
    /// Higher goes first.
    pub fn priority(&self) -> i32 {
        self.number("OTTO_PRIORITY").unwrap_or(0)
    }

    /// Tries after the first; None: not asked for.
    pub fn retry_limit(&self) -> Option<u32> {
        self.number("OTTO_RETRY_LIMIT")
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.build_config.get(key)?.trim().parse().ok()
    }
}

/// Reads keys and keeps what is wrong with them.
struct Reader<'a> {
    build_config: &'a BTreeMap<String, String>,
    found: Vec<Violation>,
}

impl Reader<'_> {
    fn add(&mut self, key: &str, description: String) {
        self.found.push(Violation {
            field: format!("build_config[{}]", clip(key)),
            description,
        });
    }

    /// A key that is only nearly right would be passed over in silence.
    fn unknown(&mut self) {
        let known = |key: &str| OURS.contains(&key) || KEYS.iter().any(|k| k.name == key);
        let unknown: Vec<&String> = self
            .build_config
            .keys()
            .filter(|key| key.starts_with(PREFIX) && !known(key))
            .take(8)
            .collect();
        for key in unknown {
            let names: Vec<&str> = KEYS.iter().map(|k| k.name).collect();
            self.add(
                key,
                format!("is no key of ours; there are {}", names.join(", ")),
            );
        }
    }

    /// An empty value is no value.
    fn read<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> values::Read<T>,
    ) -> Option<T> {
        let text = self.build_config.get(key)?.trim();
        if text.is_empty() {
            return None;
        }
        match read(text) {
            Ok(value) => Some(value),
            Err(description) => {
                self.add(key, description);
                None
            }
        }
    }

    fn names(&mut self, key: &'static str, allowed: &Patterns) -> Vec<String> {
        self.read(key, |t| values::object_names(t, allowed))
            .unwrap_or_default()
    }

    /// The default request gives way to a lower limit; one that was asked for
    /// does not.
    fn resource(
        &mut self,
        (request, limit): (&'static str, &'static str),
        amount: fn(&str) -> values::Read<Quantity>,
        bounds: &Bounds,
    ) -> Resource {
        let most = self
            .read(limit, |t| values::limit(amount(t)?, bounds))
            .unwrap_or_else(|| bounds.limit.clone());
        let least = self
            .read(request, |t| values::at_most(amount(t)?, &most, limit))
            .unwrap_or_else(|| bounds.request.clone().min(most.clone()));
        Resource {
            request: least,
            limit: most,
        }
    }

    fn proxies(&mut self) -> BTreeMap<&'static str, String> {
        let http = self.read("OTTO_HTTP_PROXY", values::proxy);
        let https = self.read("OTTO_HTTPS_PROXY", values::proxy);
        let none = self.read("OTTO_NO_PROXY", values::hosts);
        [
            ("HTTP_PROXY", http),
            ("HTTPS_PROXY", https),
            ("NO_PROXY", none),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
pub(crate) mod test_policy;
#[cfg(test)]
#[path = "tests.rs"]
mod tests;
