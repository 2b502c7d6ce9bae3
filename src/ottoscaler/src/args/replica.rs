//! This process among the replicas.
use std::net::{IpAddr, SocketAddr};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Replica")]
pub(super) struct ReplicaArgs {
    /// Namespace of the Lease, the WorkerTasks and the pods.
    #[arg(long, env, default_value = "default", value_name = "a namespace")]
    pub(super) namespace: String,
    /// Name of this replica; the host name if not given.
    #[arg(long, env, value_name = "a name")]
    pub(super) pod_name: Option<String>,
    /// UID of this replica's pod, for its proof of death.
    #[arg(long, env, value_name = "a uid")]
    pub(super) pod_uid: Option<String>,
    /// Address at which other replicas reach this one.
    #[arg(long, env, default_value = "127.0.0.1", value_name = "an IP address")]
    pub(super) pod_ip: IpAddr,
    /// ServiceAccount of this replica, which no worker gets.
    #[arg(long, env, value_name = "a name")]
    pub(super) service_account: Option<String>,
    /// Secrets of this replica, which no worker gets.
    #[arg(long, env, value_name = "names")]
    pub(super) own_secrets: Option<String>,
}

/// This process among the replicas.
#[derive(Debug, Clone)]
pub struct ReplicaOptions {
    pub pod_name: String,
    /// None outside a pod: no proof of death is published then.
    pub pod_uid: Option<String>,
    /// `host:port` at which the other replicas reach this one.
    pub address: String,
}

impl ReplicaArgs {
    /// Returns the names of the Secrets that are Ottoscaler's own.
    pub(super) fn own_secrets(&self) -> Vec<String> {
        let names = self.own_secrets.as_deref().unwrap_or_default().split(',');
        let names = names.map(str::trim).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    }

    /// Without POD_NAME the replica is named after `host`.
    pub(super) fn options(self, host: Option<String>, grpc_port: u16) -> ReplicaOptions {
        let unnamed = || "ottoscaler".to_owned();
        ReplicaOptions {
            pod_name: self.pod_name.or(host).unwrap_or_else(unnamed),
            pod_uid: self.pod_uid,
            // An IPv6 address gets its brackets.
            address: SocketAddr::new(self.pod_ip, grpc_port).to_string(),
        }
    }
}
