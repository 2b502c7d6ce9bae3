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
            get,
            cpu,
            ["WORKER_CPU_REQUEST", "WORKER_CPU_LIMIT", "MAX_WORKER_CPU"],
        )?,
        memory: bounds(
            get,
            bytes,
            [
                "WORKER_MEMORY_REQUEST",
                "WORKER_MEMORY_LIMIT",
                "MAX_WORKER_MEMORY",
            ],
        )?,
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

/// Little is asked for by default, so that many idle workers fit a node. The default gives way
/// to a lower limit; a request that somebody set does not.
fn bounds(
    get: &Reader<'_>,
    amount: fn(&Reader<'_>, &str) -> Result<Quantity, Invalid>,
    [request, limit, setting]: [&'static str; 3],
) -> Result<Bounds, Invalid> {
    let (least, most, max) = (
        amount(get, request)?,
        amount(get, limit)?,
        amount(get, setting)?,
    );
    if least > most && get.optional(request).is_some() {
        return Err(Invalid {
            takes: format!("at most {limit} ({most})"),
            ..get.invalid(request)
        });
    }
    Ok(Bounds {
        request: least.min(most.clone()),
        max: max.max(most.clone()),
        limit: most,
        setting,
    })
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
    fn a_request_that_was_set_is_at_most_the_limit() {
        let set = |cpu, memory| {
            with(&[
                ("WORKER_CPU_REQUEST", cpu),
                ("WORKER_MEMORY_REQUEST", memory),
            ])
        };
        let policy = set("100m", "128Mi").unwrap();
        let requests = (policy.cpu.request.as_str(), policy.memory.request.as_str());
        assert_eq!(requests, ("100m", "128Mi"));
        assert_eq!(
            set("501m", "1Mi").unwrap_err().to_string(),
            "WORKER_CPU_REQUEST: \"501m\" is not at most WORKER_CPU_LIMIT (500m)"
        );
        let refused = set("1m", "129Mi").unwrap_err();
        assert_eq!(refused.name, "WORKER_MEMORY_REQUEST");
        let defaults = with(&[]).unwrap();
        let requests = (
            defaults.cpu.request.as_str(),
            defaults.memory.request.as_str(),
        );
        assert_eq!(requests, ("10m", "16Mi"));
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
