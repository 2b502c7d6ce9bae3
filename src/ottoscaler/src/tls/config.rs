//! The TLS configuration of a replica at one time, and the one that is current.
use std::sync::Arc;

use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use tokio::sync::watch;

/// A `TlsConfig` is what the mounted files hold at one time.
#[derive(Debug)]
pub struct TlsConfig {
    /// For connections that are accepted. ALPN offers h2 alone.
    pub server: Arc<ServerConfig>,
    /// For connections to other replicas, with the replica's own certificate.
    pub client: Arc<ClientConfig>,
    /// Verifies the certificates of clients, which need not show one.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// The time at which the replica's own certificate expires, in Unix seconds.
    pub expiry: i64,
}

impl TlsConfig {
    /// Says whether the certificates that a client showed are still trusted. A client that showed
    /// none has nothing that could end.
    pub fn trusts_client(&self, certificates: &[CertificateDer<'_>]) -> bool {
        let Some((own, intermediates)) = certificates.split_first() else {
            return true;
        };
        let now = UnixTime::now();
        let verified = self.verifier.verify_client_cert(own, intermediates, now);
        verified.is_ok()
    }
}

/// A `Tls` gives the [`TlsConfig`] that is current. It is cheap to clone.
#[derive(Debug, Clone)]
pub struct Tls {
    current: watch::Receiver<Arc<TlsConfig>>,
}

impl Tls {
    /// Returns a source of the configurations that `current` brings.
    pub fn new(current: watch::Receiver<Arc<TlsConfig>>) -> Self {
        Self { current }
    }

    /// Returns the current configuration.
    pub fn current(&self) -> Arc<TlsConfig> {
        self.current.borrow().clone()
    }

    /// Waits for a configuration that this clone has not returned from here before. It does not end
    /// when there will be none.
    pub async fn changed(&mut self) -> Arc<TlsConfig> {
        if self.current.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.current.borrow_and_update().clone()
    }
}
