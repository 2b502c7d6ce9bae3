//! Settings of workers' pods → [`Policy`].
use super::{Invalid, Reader};
use crate::domain::{
    quantity::Quantity,
    template::{Bounds, Patterns, Policy},
};

/// The largest number of seconds, and user id, that Kubernetes takes.
const MAX_I32: u32 = i32::MAX.cast_unsigned();

pub(super) fn policy(get: &Reader<'_>) -> Result<Policy, Invalid> {
    let patterns = |name: &'static str| Patterns::parse(name, &get.text(name));
    let allow_root = get.one_of("ALLOW_ROOT_WORKERS", &["true", "false"])? == "true";
    Ok(Policy {
        image: get.text("OTTO_AGENT_IMAGE"),
        pull_policy: get.one_of(
            "WORKER_IMAGE_PULL_POLICY",
            &["Always", "IfNotPresent", "Never"],
        )?,
        user_id: user_id(get, allow_root)?,
        cpu: bounds(
            "10m",
            cpu(get, "WORKER_CPU_LIMIT")?,
            cpu(get, "MAX_WORKER_CPU")?,
            "MAX_WORKER_CPU",
        ),
        memory: bounds(
            "16Mi",
            bytes(get, "WORKER_MEMORY_LIMIT")?,
            bytes(get, "MAX_WORKER_MEMORY")?,
            "MAX_WORKER_MEMORY",
        ),
        images: patterns("ALLOWED_IMAGES"),
        pull_secrets: patterns("ALLOWED_PULL_SECRETS"),
        commands: patterns("ALLOWED_COMMANDS"),
        secrets: patterns("ALLOWED_SECRETS"),
        ca_bundles: patterns("ALLOWED_CA_BUNDLES"),
        cache_claims: patterns("ALLOWED_CACHE_CLAIMS"),
        service_accounts: patterns("ALLOWED_SERVICE_ACCOUNTS"),
        priority_classes: patterns("ALLOWED_PRIORITY_CLASSES"),
        node_labels: patterns("ALLOWED_NODE_LABELS"),
        tolerations: patterns("ALLOWED_TOLERATIONS"),
        max_workspace: bytes(get, "MAX_WORKSPACE")?,
        max_timeout: get
            .duration("MAX_WORKER_TIMEOUT")
            .and_then(|d| get.held("MAX_WORKER_TIMEOUT", d, |d| is_deadline(d.as_secs())))?,
        max_retries: get.parse("MAX_WORKER_RETRIES")?,
        max_priority: get.parse("MAX_PRIORITY")?,
        allow_root,
        own_service_account: get.optional("SERVICE_ACCOUNT"),
    })
}

fn user_id(get: &Reader<'_>, allow_root: bool) -> Result<u32, Invalid> {
    let id = get.parse("WORKER_USER_ID")?;
    if id == 0 && !allow_root {
        return Err(Invalid {
            takes: "allowed without ALLOW_ROOT_WORKERS=true".to_owned(),
            ..get.invalid("WORKER_USER_ID")
        });
    }
    get.held("WORKER_USER_ID", id, |id| *id <= MAX_I32)
}

fn cpu(get: &Reader<'_>, name: &str) -> Result<Quantity, Invalid> {
    get.held(name, get.quantity(name)?, Quantity::is_exact)
}

fn bytes(get: &Reader<'_>, name: &str) -> Result<Quantity, Invalid> {
    get.held(name, get.quantity(name)?, Quantity::is_a_byte)
}

fn is_deadline(seconds: u64) -> bool {
    (1..=u64::from(MAX_I32)).contains(&seconds)
}

/// Little is asked for by default, so that many idle workers fit a node.
fn bounds(request: &str, limit: Quantity, max: Quantity, setting: &'static str) -> Bounds {
    let request = Quantity::parse(request).map_or_else(|| limit.clone(), |r| r.min(limit.clone()));
    Bounds {
        request,
        max: max.max(limit.clone()),
        limit,
        setting,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;

    fn with(pairs: &[(&str, &str)]) -> Result<Policy, Invalid> {
        let value = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        Config::from_lookup(&|name| value(name).map(str::to_owned)).map(|c| c.worker)
    }

    #[test]
    fn root_takes_one_setting() {
        let refused = with(&[("WORKER_USER_ID", "0")]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "WORKER_USER_ID: \"0\" is not allowed without ALLOW_ROOT_WORKERS=true"
        );
        let allowed = with(&[("WORKER_USER_ID", "0"), ("ALLOW_ROOT_WORKERS", "true")]).unwrap();
        assert_eq!((allowed.user_id, allowed.allow_root), (0, true));
        assert_eq!(with(&[]).unwrap().user_id, 65_532);
    }

    #[test]
    fn the_installers_own_default_is_always_allowed() {
        let policy = with(&[("WORKER_CPU_LIMIT", "8"), ("MAX_WORKER_CPU", "2")]).unwrap();
        assert_eq!(policy.cpu.max.as_str(), "8");
        let policy = with(&[("WORKER_MEMORY_LIMIT", "8Mi")]).unwrap();
        assert_eq!(policy.memory.request.as_str(), "8Mi");
        assert_eq!(policy.memory.max.as_str(), "8Gi");
    }

    #[test]
    fn a_bound_that_cannot_be_is_named() {
        for (name, value) in [
            ("MAX_WORKER_CPU", "many"),
            ("MAX_WORKER_MEMORY", "0.5"),
            ("WORKER_MEMORY_LIMIT", "128m"),
            ("WORKER_CPU_LIMIT", "0.1m"),
            ("MAX_WORKSPACE", "0"),
            ("MAX_WORKER_TIMEOUT", "0s"),
            ("MAX_WORKER_TIMEOUT", "600000h"),
            ("MAX_WORKER_RETRIES", "-1"),
            ("MAX_PRIORITY", "high"),
            ("ALLOW_ROOT_WORKERS", "yes"),
            ("WORKER_USER_ID", "4294967295"),
        ] {
            assert_eq!(with(&[(name, value)]).unwrap_err().name, name, "{value}");
        }
    }
}
