//! What workers' pods are, and how far a request may change them → [`Policy`].
use std::time::Duration;

use clap::{ArgAction, ArgMatches, ValueEnum, builder::RangedI64ValueParser, parser::ValueSource};

use super::{Invalid, setting, values};
use crate::domain::{
    quantity::Quantity,
    template::{Bounds, Patterns, Policy},
};

/// The largest number of seconds, and user id, that Kubernetes takes.
const MAX_I32: u32 = i32::MAX.cast_unsigned();

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Workers")]
pub(super) struct WorkerArgs {
    /// Image that workers run.
    #[arg(long, env, default_value = "busybox:latest", value_name = "an image")]
    otto_agent_image: String,
    /// When the node pulls the image.
    #[arg(long, env, default_value = "IfNotPresent", value_enum)]
    worker_image_pull_policy: PullPolicy,
    /// CPU that a worker asks its node for; lowered to the limit where that is less.
    #[arg(long, env, default_value = "10m", value_name = "a quantity", value_parser = values::cpu)]
    worker_cpu_request: Quantity,
    /// Memory that a worker asks its node for; lowered to the limit where that is less.
    #[arg(long, env, default_value = "16Mi", value_name = "a quantity", value_parser = values::memory)]
    worker_memory_request: Quantity,
    /// CPU of a worker.
    #[arg(long, env, default_value = "500m", value_name = "a quantity", value_parser = values::cpu)]
    worker_cpu_limit: Quantity,
    /// Memory of a worker.
    #[arg(long, env, default_value = "128Mi", value_name = "a quantity", value_parser = values::memory)]
    worker_memory_limit: Quantity,
    /// User of the worker's container.
    #[arg(long, env, default_value = "65532", value_name = "a user id", value_parser = user_id())]
    worker_user_id: u32,
    /// Lets workers be user 0, for images that need root.
    #[arg(long, env, action = ArgAction::Set, default_value = "false")]
    allow_root_workers: bool,
    /// Images that requests may name.
    #[arg(long, env, default_value = "*", value_name = "patterns")]
    allowed_images: String,
    /// Secrets to pull images with.
    #[arg(long, env, default_value = "none", value_name = "patterns")]
    allowed_pull_secrets: String,
    /// Commands instead of the image's.
    #[arg(long, env, default_value = "*", value_name = "patterns")]
    allowed_commands: String,
    /// Secrets that workers may take as environment.
    #[arg(long, env, default_value = "none", value_name = "patterns")]
    allowed_secrets: String,
    /// ConfigMaps with certificates.
    #[arg(long, env, default_value = "none", value_name = "patterns")]
    allowed_ca_bundles: String,
    /// PersistentVolumeClaims for caches.
    #[arg(long, env, default_value = "none", value_name = "patterns")]
    allowed_cache_claims: String,
    /// ServiceAccounts that workers may act as.
    #[arg(long, env, default_value = "none", value_name = "patterns")]
    allowed_service_accounts: String,
    /// PriorityClasses of pods.
    #[arg(long, env, default_value = "none", value_name = "patterns")]
    allowed_priority_classes: String,
    /// Nodes to ask for, as label=value.
    #[arg(
        long,
        env,
        default_value = "kubernetes.io/arch=*,kubernetes.io/os=*",
        value_name = "patterns"
    )]
    allowed_node_labels: String,
    /// Taints to tolerate, as key=value:Effect or key:Effect.
    #[arg(long, env, default_value = "none", value_name = "patterns")]
    allowed_tolerations: String,
    /// CPU that a request may ask for.
    #[arg(long, env, default_value = "4", value_name = "a quantity", value_parser = values::cpu)]
    max_worker_cpu: Quantity,
    /// Memory that a request may ask for.
    #[arg(long, env, default_value = "8Gi", value_name = "a quantity", value_parser = values::memory)]
    max_worker_memory: Quantity,
    /// Size of a worker's /workspace.
    #[arg(long, env, default_value = "20Gi", value_name = "a quantity", value_parser = values::memory)]
    max_workspace: Quantity,
    /// Time for which a worker may run.
    #[arg(long, env, default_value = "24h", value_name = "a duration", value_parser = deadline)]
    max_worker_timeout: Duration,
    /// Tries after the first that a request may ask for.
    #[arg(long, env, default_value = "10", value_name = "a number")]
    max_worker_retries: u32,
    /// Priority that a request may ask for, either way from 0.
    #[arg(long, env, default_value = "100", value_name = "a number")]
    max_priority: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl WorkerArgs {
    /// `set` tells which settings are not at their default; `own_account` is the replica's
    /// ServiceAccount, and `own_secrets` are its Secrets.
    pub(super) fn policy(
        self,
        set: &ArgMatches,
        own_account: Option<String>,
        own_secrets: Vec<String>,
    ) -> Result<Policy, Invalid> {
        if self.worker_user_id == 0 && !self.allow_root_workers {
            return Err(Invalid::new(
                "WORKER_USER_ID",
                "0",
                "allowed without ALLOW_ROOT_WORKERS=true",
            ));
        }
        let cpu = Amounts {
            request: ("WORKER_CPU_REQUEST", self.worker_cpu_request),
            limit: ("WORKER_CPU_LIMIT", self.worker_cpu_limit),
            max: self.max_worker_cpu,
        };
        let memory = Amounts {
            request: ("WORKER_MEMORY_REQUEST", self.worker_memory_request),
            limit: ("WORKER_MEMORY_LIMIT", self.worker_memory_limit),
            max: self.max_worker_memory,
        };
        let allowed = [
            ("ALLOWED_IMAGES", &*self.allowed_images),
            ("ALLOWED_PULL_SECRETS", &self.allowed_pull_secrets),
            ("ALLOWED_COMMANDS", &self.allowed_commands),
            ("ALLOWED_SECRETS", &self.allowed_secrets),
            ("ALLOWED_CA_BUNDLES", &self.allowed_ca_bundles),
            ("ALLOWED_CACHE_CLAIMS", &self.allowed_cache_claims),
            ("ALLOWED_SERVICE_ACCOUNTS", &self.allowed_service_accounts),
            ("ALLOWED_PRIORITY_CLASSES", &self.allowed_priority_classes),
            ("ALLOWED_NODE_LABELS", &self.allowed_node_labels),
            ("ALLOWED_TOLERATIONS", &self.allowed_tolerations),
        ];
        Ok(Policy {
            image: self.otto_agent_image,
            pull_policy: format!("{:?}", self.worker_image_pull_policy),
            user_id: self.worker_user_id,
            cpu: cpu.bounds(set)?,
            memory: memory.bounds(set)?,
            allowed: allowed
                .map(|(name, text)| (name, Patterns::parse(text)))
                .into(),
            max_workspace: self.max_workspace,
            max_timeout: self.max_worker_timeout,
            max_retries: self.max_worker_retries,
            max_priority: self.max_priority,
            allow_root: self.allow_root_workers,
            own_service_account: own_account,
            own_secrets,
        })
    }
}

/// What a worker is given of one resource, with the settings that say so.
struct Amounts {
    request: (&'static str, Quantity),
    limit: (&'static str, Quantity),
    max: Quantity,
}

impl Amounts {
    /// Little is asked for by default, so that many idle workers fit a node. The default
    /// gives way to a lower limit; a request that somebody set does not.
    fn bounds(self, set: &ArgMatches) -> Result<Bounds, Invalid> {
        let ((request, least), (limit, most)) = (self.request, self.limit);
        let is_set = set.value_source(&setting::id(request)) == Some(ValueSource::CommandLine);
        if least > most && is_set {
            let takes = format!("at most {limit} ({most})");
            return Err(Invalid::new(request, least.as_str(), &takes));
        }
        Ok(Bounds {
            request: least.min(most.clone()),
            max: self.max.max(most.clone()),
            limit: most,
        })
    }
}

fn user_id() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(..=i64::from(MAX_I32))
}

/// As `activeDeadlineSeconds` takes it.
fn deadline(text: &str) -> Result<Duration, values::NotTaken> {
    let limit = values::duration(text)?;
    let is_deadline = (1..=u64::from(MAX_I32)).contains(&limit.as_secs());
    is_deadline.then_some(limit).ok_or(values::NotTaken)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;
    use crate::args::Options;

    fn with(pairs: &[(&str, &str)]) -> Result<Policy, Invalid> {
        let value = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        Options::from_lookup(&|name| value(name).map(str::to_owned)).map(|c| c.worker)
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
