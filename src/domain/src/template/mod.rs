//! What a request may say about its workers' pods: the `OTTO_…` keys of its
//! build_config, each within what the installer allows.
//!
//! To add a key: its row in `keys!`, its field in [`Template`] and the line that reads it.
//!
//! Invariants:
//! - Every replica reads with the same [`Policy`].
//! - A request that does not pass is told of each key, and nothing of it is written.
//! - What passes is a [`Template`], complete, from which the pod follows. It is read again
//!   for each pod, so that a policy made stricter holds for tasks taken before.
mod own;
mod policy;
#[cfg(test)]
pub(crate) mod test_policy;
mod values;

use std::collections::BTreeMap;

use super::{
    quantity::Quantity,
    violation::{TOLD_ENTRIES, Violation, Violations},
};

pub use own::{OURS, Variable};
pub use policy::{Bounds, Patterns, Policy};
use values::{Bound, Read};

/// A key, what it takes, which setting bounds it and what it does: a row of the
/// README's table.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    pub takes: &'static str,
    pub bound: &'static str,
    pub about: &'static str,
}

macro_rules! keys {
    ($($key:ident $name:literal $takes:literal $bound:literal $about:literal;)*) => {
        $(const $key: Key = Key { name: $name, takes: $takes, bound: $bound, about: $about };)*
        /// All keys, in the order of the README's table.
        pub const KEYS: &[Key] = &[$($key),*];
    };
}

keys! {
    IMAGE "OTTO_IMAGE" "an image" "ALLOWED_IMAGES" "instead of OTTO_AGENT_IMAGE";
    IMAGE_PULL_SECRETS "OTTO_IMAGE_PULL_SECRETS" "names" "ALLOWED_PULL_SECRETS" "Secrets to pull it with";
    COMMAND "OTTO_COMMAND" "a JSON array, or a line for /bin/sh -c" "ALLOWED_COMMANDS" "instead of the image's; Kubernetes expands no `$(…)` in it";
    USER_ID "OTTO_USER_ID" "a number" "ALLOW_ROOT_WORKERS" "instead of WORKER_USER_ID; 0 is root";
    CPU_REQUEST "OTTO_CPU_REQUEST" "a quantity" "the limit" "WORKER_CPU_REQUEST if not given";
    CPU_LIMIT "OTTO_CPU_LIMIT" "a quantity" "MAX_WORKER_CPU" "instead of WORKER_CPU_LIMIT";
    MEMORY_REQUEST "OTTO_MEMORY_REQUEST" "a quantity" "the limit" "WORKER_MEMORY_REQUEST if not given";
    MEMORY_LIMIT "OTTO_MEMORY_LIMIT" "a quantity" "MAX_WORKER_MEMORY" "instead of WORKER_MEMORY_LIMIT";
    WORKSPACE_SIZE "OTTO_WORKSPACE_SIZE" "a quantity" "MAX_WORKSPACE" "of `/workspace`; the maximum if not given";
    CACHE_CLAIM "OTTO_CACHE_CLAIM" "a name" "ALLOWED_CACHE_CLAIMS" "PersistentVolumeClaim at `/cache`";
    SECRETS "OTTO_SECRETS" "names" "ALLOWED_SECRETS" "Secrets whose entries become environment";
    CA_BUNDLE "OTTO_CA_BUNDLE" "ConfigMap or ConfigMap/key" "ALLOWED_CA_BUNDLES" "certificates, instead of the image's; key `ca.crt` if not given";
    HTTP_PROXY "OTTO_HTTP_PROXY" "a URL" "–" "HTTP_PROXY and http_proxy; without credentials";
    HTTPS_PROXY "OTTO_HTTPS_PROXY" "a URL" "–" "HTTPS_PROXY and https_proxy; without credentials";
    NO_PROXY "OTTO_NO_PROXY" "hosts" "–" "NO_PROXY and no_proxy";
    SERVICE_ACCOUNT "OTTO_SERVICE_ACCOUNT" "a name" "ALLOWED_SERVICE_ACCOUNTS" "with a token, unless the ServiceAccount says otherwise";
    NODE_SELECTOR "OTTO_NODE_SELECTOR" "label=value, …" "ALLOWED_NODE_LABELS" "nodes to run on";
    TOLERATIONS "OTTO_TOLERATIONS" "key=value:Effect or key:Effect, …" "ALLOWED_TOLERATIONS" "taints to run beside";
    PRIORITY_CLASS "OTTO_PRIORITY_CLASS" "a name" "ALLOWED_PRIORITY_CLASSES" "PriorityClass of the pod";
    PRIORITY "OTTO_PRIORITY" "a number" "MAX_PRIORITY" "place in the queue: higher goes first, 0 if not given";
    TIMEOUT "OTTO_TIMEOUT" "a duration" "MAX_WORKER_TIMEOUT" "from the pod's start; the maximum if not given";
    RETRY_LIMIT "OTTO_RETRY_LIMIT" "a count" "MAX_WORKER_RETRIES" "tries after the first";
}

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
            policy,
            found: Violations::default(),
        };
        keys.unknown();
        // Read here for their bounds only; the planner asks for them by themselves.
        keys.read(PRIORITY, values::priority);
        keys.read(RETRY_LIMIT, values::retry_limit);
        let template = Self {
            image: keys
                .read(IMAGE, values::image)
                .unwrap_or_else(|| policy.image.clone()),
            pull_policy: policy.pull_policy.clone(),
            pull_secrets: keys
                .read(IMAGE_PULL_SECRETS, values::object_names)
                .unwrap_or_default(),
            command: keys.read(COMMAND, values::command),
            user_id: keys
                .read(USER_ID, values::user_id)
                .unwrap_or(policy.user_id),
            cpu: keys.resource(CPU_REQUEST, CPU_LIMIT, values::cpu, &policy.cpu),
            memory: keys.resource(MEMORY_REQUEST, MEMORY_LIMIT, values::bytes, &policy.memory),
            workspace: keys
                .read(WORKSPACE_SIZE, values::workspace)
                .unwrap_or_else(|| policy.max_workspace.clone()),
            cache_claim: keys.read(CACHE_CLAIM, values::object_name),
            secrets: keys.read(SECRETS, values::object_names).unwrap_or_default(),
            ca_bundle: keys.read(CA_BUNDLE, values::ca_bundle),
            proxies: keys.proxies(),
            service_account: keys.read(SERVICE_ACCOUNT, values::service_account),
            node_selector: keys
                .read(NODE_SELECTOR, values::node_selector)
                .unwrap_or_default(),
            tolerations: keys
                .read(TOLERATIONS, values::tolerations)
                .unwrap_or_default(),
            priority_class: keys.read(PRIORITY_CLASS, values::object_name),
            timeout_seconds: keys
                .read(TIMEOUT, values::timeout)
                .unwrap_or_else(|| u32::try_from(policy.max_timeout.as_secs()).unwrap_or(u32::MAX)),
            environment: build_config
                .iter()
                .filter(|(key, _)| !key.starts_with(PREFIX))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        };
        keys.found.none_or(template)
    }
}

/// Returns the place in the queue that a task was taken with: higher goes first.
pub fn priority(build_config: &BTreeMap<String, String>) -> i32 {
    number(build_config, PRIORITY).unwrap_or(0)
}

/// Returns the tries after the first that a task was taken with; None: not asked for.
pub fn retry_limit(build_config: &BTreeMap<String, String>) -> Option<u32> {
    number(build_config, RETRY_LIMIT)
}

fn number<T: std::str::FromStr>(build_config: &BTreeMap<String, String>, key: Key) -> Option<T> {
    build_config.get(key.name)?.trim().parse().ok()
}

/// Reads keys and keeps what is wrong with them.
struct Reader<'a> {
    build_config: &'a BTreeMap<String, String>,
    policy: &'a Policy,
    found: Violations,
}

impl Reader<'_> {
    fn add(&mut self, key: &str, description: String) {
        self.found.add_entry("build_config", key, description);
    }

    /// A key that is only nearly right would be passed over in silence.
    fn unknown(&mut self) {
        let known = |key: &str| {
            OURS.iter().any(|ours| ours.name == key) || KEYS.iter().any(|k| k.name == key)
        };
        let keys = self.build_config.keys();
        let unknown = keys.filter(|key| key.starts_with(PREFIX) && !known(key));
        for key in unknown.take(TOLD_ENTRIES) {
            let names: Vec<&str> = KEYS.iter().map(|k| k.name).collect();
            let description = format!("is no key of ours; there are {}", names.join(", "));
            self.found.add_entry("build_config", key, description);
        }
    }

    /// An empty value is no value.
    fn read<T>(&mut self, key: Key, read: impl FnOnce(&str, Bound<'_>) -> Read<T>) -> Option<T> {
        let text = self.build_config.get(key.name)?.trim();
        if text.is_empty() {
            return None;
        }
        let bound = Bound {
            setting: key.bound,
            policy: self.policy,
        };
        match read(text, bound) {
            Ok(value) => Some(value),
            Err(description) => {
                self.add(key.name, description);
                None
            }
        }
    }

    /// The default request gives way to a lower limit; one that was asked for
    /// does not.
    fn resource(
        &mut self,
        request: Key,
        limit: Key,
        amount: fn(&str) -> Read<Quantity>,
        bounds: &Bounds,
    ) -> Resource {
        let most = self
            .read(limit, |text, bound| {
                values::at_most(amount(text)?, &bounds.max, bound.setting)
            })
            .unwrap_or_else(|| bounds.limit.clone());
        let least = self
            .read(request, |text, _| {
                values::at_most(amount(text)?, &most, limit.name)
            })
            .unwrap_or_else(|| bounds.request.clone().min(most.clone()));
        Resource {
            request: least,
            limit: most,
        }
    }

    fn proxies(&mut self) -> BTreeMap<&'static str, String> {
        let http = self.read(HTTP_PROXY, values::proxy);
        let https = self.read(HTTPS_PROXY, values::proxy);
        let none = self.read(NO_PROXY, values::hosts);
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

#[cfg(test)]
mod tests;
