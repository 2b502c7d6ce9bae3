//! A policy for tests: the program's defaults, with some settings changed.
use std::time::Duration;

use super::{Bounds, Patterns, Policy};
use crate::quantity::Quantity;

fn quantity(text: &str) -> Quantity {
    Quantity::parse(text).expect("a quantity")
}

fn bounds(request: &str, limit: &str, max: &str) -> Bounds {
    Bounds {
        request: quantity(request),
        limit: quantity(limit),
        max: quantity(max),
    }
}

/// Returns the default policy, in which each of `settings` (name, value) is changed.
///
/// # Panics
/// A name is none that tests change, or its value cannot be read.
pub(crate) fn policy_with(settings: &[(&'static str, &str)]) -> Policy {
    let nodes = "kubernetes.io/arch=*,kubernetes.io/os=*";
    let allowed = [
        ("ALLOWED_IMAGES", "*"),
        ("ALLOWED_COMMANDS", "*"),
        ("ALLOWED_NODE_LABELS", nodes),
    ];
    let mut policy = Policy {
        image: "busybox:latest".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        user_id: 65_532,
        cpu: bounds("10m", "500m", "4"),
        memory: bounds("16Mi", "128Mi", "8Gi"),
        allowed: allowed
            .map(|(name, text)| (name, Patterns::parse(text)))
            .into(),
        max_workspace: quantity("20Gi"),
        max_timeout: Duration::from_hours(24),
        max_retries: 10,
        max_priority: 100,
        allow_root: false,
        own_service_account: None,
        own_secrets: Vec::new(),
    };
    for &(name, value) in settings {
        match name {
            "OTTO_AGENT_IMAGE" => policy.image = value.to_owned(),
            "ALLOW_ROOT_WORKERS" => policy.allow_root = value == "true",
            _ if name.starts_with("ALLOWED_") => {
                policy.allowed.insert(name, Patterns::parse(value));
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
            "OWN_SECRETS" => policy.own_secrets = vec![value.to_owned()],
            "SERVICE_ACCOUNT" => policy.own_service_account = Some(value.to_owned()),
            other => unreachable!("no setting that tests change: {other}"),
        }
    }
    policy
}
