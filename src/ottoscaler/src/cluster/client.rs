//! The configuration of clients of the API server.
use std::time::Duration;

use kube::Config;

/// The time within which a connection must be established. It allows for two lost SYNs, which are
/// sent again after one and three seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time without any data after which a connection counts as broken. It is longer than
/// the longest watch, which the API server ends by itself.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// The time without any progress of a write after which a connection counts as broken. A peer that
/// lives takes bytes within it even over a lossy network.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the address of the API server and the credentials for it: those of the pod's
/// ServiceAccount, else those of the kubeconfig.
///
/// # Errors
/// Returns an error if there is neither a ServiceAccount nor a usable kubeconfig.
pub async fn config() -> Result<Config, kube::config::InferConfigError> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    Ok(config)
}
