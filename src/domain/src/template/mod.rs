//! Parses what a request may say about its workers' pods: the `OTTO_…` keys of its
//! build_config, each within what the installer allows.
//!
//! A new key needs its row in `keys!`, its field in [`Template`] and the line that reads it.
//!
//! Invariants:
//! - Every replica parses with the same [`Policy`].
//! - A request that does not pass gets a violation for each wrong key, and nothing of it is
//!   stored.
//! - A [`Template`] is complete: the pod follows from it. It is parsed again for each pod, so
//!   that a policy made stricter holds for tasks that were accepted before.
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

/// A `Key` is a key of build_config: a row of the README's table.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The name of the key.
    pub name: &'static str,
    /// What the key takes, for people.
    pub takes: &'static str,
    /// The setting that bounds the key; `–` without one.
    pub bound: &'static str,
    /// What the key does, for people.
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

/// A `Template` is a worker's pod without its names: nothing else is left to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The image of the worker.
    pub image: String,
    /// The pull policy of the image.
    pub pull_policy: String,
    /// The names of the Secrets to pull the image with.
    pub pull_secrets: Vec<String>,
    /// The command; None runs that of the image.
    pub command: Option<Vec<String>>,
    /// The user id that the worker runs as.
    pub user_id: u32,
    /// The CPU of the worker.
    pub cpu: Resource,
    /// The memory of the worker.
    pub memory: Resource,
    /// The size limit of the workspace.
    pub workspace: Quantity,
    /// The name of the PersistentVolumeClaim for the cache, if there is one.
    pub cache_claim: Option<String>,
    /// The names of the Secrets whose entries become environment variables.
    pub secrets: Vec<String>,
    /// The certificates to trust; None trusts those of the image.
    pub ca_bundle: Option<CaBundle>,
    /// The proxy settings by the name of their variable, in capitals.
    pub proxies: BTreeMap<&'static str, String>,
    /// The name of the ServiceAccount; None gives the pod no token.
    pub service_account: Option<String>,
    /// The labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// The tolerations of the pod.
    pub tolerations: Vec<Toleration>,
    /// The name of the PriorityClass, if there is one.
    pub priority_class: Option<String>,
    /// The time after which the pod fails, in seconds since its start.
    pub timeout_seconds: u32,
    /// The entries of build_config that are no template keys.
    pub environment: BTreeMap<String, String>,
}

/// A `Resource` is the request and the limit of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// The request.
    pub request: Quantity,
    /// The limit, which is at least the request.
    pub limit: Quantity,
}

/// A `CaBundle` names certificates to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaBundle {
    /// The name of the ConfigMap.
    pub config_map: String,
    /// The key in the ConfigMap.
    pub key: String,
}

/// A `Toleration` tolerates a taint of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toleration {
    /// The key of the taint.
    pub key: String,
    /// The value of the taint; None tolerates any.
    pub value: Option<String>,
    /// The effect of the taint.
    pub effect: String,
}

impl Template {
    /// Parses the template of a task, within what the policy allows.
    ///
    /// # Errors
    /// Returns a violation for every key that is unknown, malformed or out of bounds.
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
        // These are read for their bounds only; the planner asks for them by themselves.
        keys.read(PRIORITY, values::priority);
        keys.read(RETRY_LIMIT, values::retry_limit);
        let template = Self {
            image: keys
                .read(IMAGE, values::image)
                .unwrap_or_else(|| policy.image.clone()),
            pull_policy: policy.pull_policy.clone(),
            pull_secrets: keys
                .read(IMAGE_PULL_SECRETS, values::secret_names)
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
            secrets: keys.read(SECRETS, values::secret_names).unwrap_or_default(),
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

/// Returns the priority of an accepted task in the queue; higher ones go first.
pub fn priority(build_config: &BTreeMap<String, String>) -> i32 {
    number(build_config, PRIORITY).unwrap_or(0)
}

/// Returns how many retries an accepted task asked for, or None if it did not.
pub fn retry_limit(build_config: &BTreeMap<String, String>) -> Option<u32> {
    number(build_config, RETRY_LIMIT)
}

fn number<T: std::str::FromStr>(build_config: &BTreeMap<String, String>, key: Key) -> Option<T> {
    build_config.get(key.name)?.trim().parse().ok()
}

/// A `Reader` reads keys and collects what is wrong with them.
struct Reader<'a> {
    build_config: &'a BTreeMap<String, String>,
    policy: &'a Policy,
    found: Violations,
}

impl Reader<'_> {
    fn add(&mut self, key: &str, description: String) {
        self.found.add_entry("build_config", key, description);
    }

    /// Reports unknown keys, because a misspelt one would be ignored silently.
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

    /// Reads a key. An empty value counts as none.
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

    /// Reads the request and the limit of a resource. The default request gives way to a lower
    /// limit; one that the request names does not.
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
