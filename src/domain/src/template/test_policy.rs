//! A policy for tests: the program's defaults, with some settings changed.
use std::time::Duration;

use super::{Bounds, Patterns, Policy};
use crate::quantity::Quantity;

fn quantity(text: &str) -> Quantity {
    Quantity::parse(text).expect("a quantity")
}

fn bounds(request: &str, limit: &str, max: &str, setting: &'static str) -> Bounds {
    Bounds {
        request: quantity(request),
        limit: quantity(limit),
        max: quantity(max),
        setting,
    }
}

/// Returns the default policy, in which each of `settings` (name, value) is changed.
///
/// # Panics
/// A name is none that tests change, or its value cannot be read.
pub(crate) fn policy_with(settings: &[(&str, &str)]) -> Policy {
    let none = |setting| Patterns::parse(setting, "none");
    let mut policy = Policy {
        image: "busybox:latest".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        user_id: 65_532,
        cpu: bounds("10m", "500m", "4", "MAX_WORKER_CPU"),
        memory: bounds("16Mi", "128Mi", "8Gi", "MAX_WORKER_MEMORY"),
        images: Patterns::parse("ALLOWED_IMAGES", "*"),
        pull_secrets: none("ALLOWED_PULL_SECRETS"),
        commands: Patterns::parse("ALLOWED_COMMANDS", "*"),
        secrets: none("ALLOWED_SECRETS"),
        ca_bundles: none("ALLOWED_CA_BUNDLES"),
        cache_claims: none("ALLOWED_CACHE_CLAIMS"),
        service_accounts: none("ALLOWED_SERVICE_ACCOUNTS"),
        priority_classes: none("ALLOWED_PRIORITY_CLASSES"),
        node_labels: Patterns::parse(
            "ALLOWED_NODE_LABELS",
            "kubernetes.io/arch=*,kubernetes.io/os=*",
        ),
        tolerations: none("ALLOWED_TOLERATIONS"),
        max_workspace: quantity("20Gi"),
        max_timeout: Duration::from_hours(24),
        max_retries: 10,
        max_priority: 100,
        allow_root: false,
        own_service_account: None,
    };
    for &(name, value) in settings {
        match name {
            "OTTO_AGENT_IMAGE" => policy.image = value.to_owned(),
            "ALLOW_ROOT_WORKERS" => policy.allow_root = value == "true",
            "ALLOWED_IMAGES" => policy.images = Patterns::parse("ALLOWED_IMAGES", value),
            "ALLOWED_PULL_SECRETS" => {
                policy.pull_secrets = Patterns::parse("ALLOWED_PULL_SECRETS", value);
            }
            "ALLOWED_COMMANDS" => policy.commands = Patterns::parse("ALLOWED_COMMANDS", value),
            "ALLOWED_SECRETS" => policy.secrets = Patterns::parse("ALLOWED_SECRETS", value),
            "ALLOWED_CA_BUNDLES" => {
                policy.ca_bundles = Patterns::parse("ALLOWED_CA_BUNDLES", value);
            }
            "ALLOWED_CACHE_CLAIMS" => {
                policy.cache_claims = Patterns::parse("ALLOWED_CACHE_CLAIMS", value);
            }
            "ALLOWED_SERVICE_ACCOUNTS" => {
                policy.service_accounts = Patterns::parse("ALLOWED_SERVICE_ACCOUNTS", value);
            }
            "ALLOWED_PRIORITY_CLASSES" => {
                policy.priority_classes = Patterns::parse("ALLOWED_PRIORITY_CLASSES", value);
            }
            "ALLOWED_NODE_LABELS" => {
                policy.node_labels = Patterns::parse("ALLOWED_NODE_LABELS", value);
            }
            "ALLOWED_TOLERATIONS" => {
                policy.tolerations = Patterns::parse("ALLOWED_TOLERATIONS", value);
            }
            "MAX_WORKER_CPU" => policy.cpu.max = quantity(value),
            "MAX_WORKER_MEMORY" => policy.memory.max = quantity(value),
            "MAX_WORKSPACE" => policy.max_workspace = quantity(value),
            "MAX_WORKER_TIMEOUT" => {
                assert_eq!(value, "1h", "the only timeout that tests set");
                policy.max_timeout = Duration::from_hours(1);
            }
            "MAX_WORKER_RETRIES" => policy.max_retries = value.parse().expect("a number"),
            "MAX_PRIORITY" => policy.max_priority = value.parse().expect("a number"),
            "SERVICE_ACCOUNT" => policy.own_service_account = Some(value.to_owned()),
            other => unreachable!("no setting that tests change: {other}"),
        }
    }
    policy
}
