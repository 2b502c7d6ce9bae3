//! Where a replica listens.

/// The ports of a replica, each on all addresses of IPv4 and IPv6.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Serving")]
pub struct ServingOptions {
    /// gRPC, for otto-handler and ottoctl.
    #[arg(long, env, default_value = "9090", value_name = "a port")]
    pub grpc_port: u16,
    /// gRPC health checks, for the kubelet.
    #[arg(long, env, default_value = "9091", value_name = "a port")]
    pub health_port: u16,
    /// Metrics for Prometheus, at /metrics.
    #[arg(long, env, default_value = "9092", value_name = "a port")]
    pub metrics_port: u16,
}
