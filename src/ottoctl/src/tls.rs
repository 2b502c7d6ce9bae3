//! TLS to the server.
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// How the server is reached over TLS.
#[derive(Debug, Default, clap::Args)]
pub(super) struct TlsArgs {
    /// Connect with TLS. The options below and an address that begins with https:// do so too.
    #[arg(long, env = "OTTO_TLS", global = true)]
    tls: bool,
    /// The file with the CAs, in PEM, that the server is verified by. The system's by default.
    #[arg(long, env = "OTTO_CA_FILE", global = true, value_name = "PATH")]
    ca_file: Option<PathBuf>,
    /// The name in the server's certificate, where it is not the host of the address: through a
    /// port-forward, for example.
    #[arg(long, env = "OTTO_SERVER_NAME", global = true, value_name = "NAME")]
    server_name: Option<String>,
    /// The file with the certificate that is shown to the server, in PEM.
    #[arg(
        long,
        env = "OTTO_CERT_FILE",
        global = true,
        value_name = "PATH",
        requires = "key_file"
    )]
    cert_file: Option<PathBuf>,
    /// The file with the key of that certificate.
    #[arg(
        long,
        env = "OTTO_KEY_FILE",
        global = true,
        value_name = "PATH",
        requires = "cert_file"
    )]
    key_file: Option<PathBuf>,
}

impl TlsArgs {
    /// Returns the configuration, or none when the server is reached without TLS.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read.
    pub(super) fn config(&self, server: &str) -> anyhow::Result<Option<ClientTlsConfig>> {
        let is_wanted = self.tls
            || server.starts_with("https://")
            || self.ca_file.is_some()
            || self.server_name.is_some()
            || self.cert_file.is_some();
        if !is_wanted {
            return Ok(None);
        }
        let mut config = match &self.ca_file {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        if let (Some(certificate), Some(key)) = (&self.cert_file, &self.key_file) {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(Some(config))
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}
