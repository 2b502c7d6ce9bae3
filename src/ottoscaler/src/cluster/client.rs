//! Clients of the API server: in-cluster credentials, else the kubeconfig.
use std::time::Duration;

use kube::Config;

/// Until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence on a connection before it counts as broken; above the longest
/// watch, which the API server ends by itself.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// Where the API server is and who we are there.
///
/// # Errors
/// Neither a ServiceAccount nor a usable kubeconfig was found.
pub async fn config() -> Result<Config, kube::config::InferConfigError> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(Duration::from_secs(30));
    Ok(config)
}
