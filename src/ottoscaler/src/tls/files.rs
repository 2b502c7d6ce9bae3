//! Mounted files → TLS configurations.
use std::{fmt::Write as _, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_util::sync::CancellationToken;

use super::{Tls, TlsConfig, TlsPeer};
use crate::{
    args::{HandlerTlsOptions, TlsOptions},
    mounted::{Contents, MountedFiles, MountedFilesError},
};

/// The protocol that is negotiated: gRPC takes HTTP/2 and nothing else.
const ALPN: &[u8] = b"h2";

/// The `ServingFiles` are the certificate, the key and the CAs of this replica.
#[derive(Debug)]
pub struct ServingFiles {
    files: Arc<MountedFiles<TlsConfig>>,
    replicas_name: ServerName<'static>,
}

impl ServingFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or if they do not belong together.
    pub fn open(options: &TlsOptions) -> Result<Self, MountedFilesError> {
        let files = MountedFiles::open(options.files.clone().into(), |contents| {
            let [certificate, key, authorities] = &contents[..] else {
                return Err("three files make a set".to_owned());
            };
            serving(certificate, key, authorities)
        })?;
        Ok(Self {
            files: Arc::new(files),
            replicas_name: options.replicas_name.clone(),
        })
    }

    /// Returns what the port serves with.
    pub fn tls(&self) -> Tls {
        Tls::new(self.files.subscribe())
    }

    /// Returns what the connections to other replicas are made with.
    pub fn replicas(&self) -> TlsPeer {
        let files = self.files.clone();
        TlsPeer::new(self.replicas_name.clone(), move || {
            files.current().client.clone()
        })
    }

    /// Registers whether the files are valid and when the certificate expires.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ottoscaler_tls_files_invalid",
            "1 while the files of the certificate are not valid and the last valid ones are in use",
            self.files.invalid(),
        );
        registry.register_collector(Box::new(Expiry(self.files.clone())));
    }

    /// Takes changes of the files until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        self.files.run(&stop).await;
    }
}

/// Reports when the certificate in use expires.
#[derive(Debug)]
struct Expiry(Arc<MountedFiles<TlsConfig>>);

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let expiry = ConstGauge::new(self.0.current().expiry);
        let encoder = encoder.encode_descriptor(
            "ottoscaler_tls_certificate_expiry_timestamp",
            "Unix time at which the certificate in use expires",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        expiry.encode(encoder)
    }
}

/// A `HandlerTls` is what the connections to otto-handler are made with.
#[derive(Debug)]
pub struct HandlerTls {
    files: Arc<MountedFiles<Arc<ClientConfig>>>,
    name: ServerName<'static>,
}

impl HandlerTls {
    /// Reads the files. Without a CA file the system's certificates are trusted.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or if they do not belong together.
    pub fn open(options: &HandlerTlsOptions) -> Result<Self, MountedFilesError> {
        let files = [
            options.ca.clone(),
            options.certificate.clone(),
            options.key.clone(),
        ];
        let has_ca = options.ca.is_some();
        let parse = move |contents: &Contents| {
            let (authorities, identity) = contents.split_at(usize::from(has_ca));
            let roots = match authorities {
                [pem] => roots(pem)?,
                _ => system_roots()?,
            };
            let identity = match identity {
                [certificate, key] => Some((chain(certificate)?, private_key(key)?)),
                _ => None,
            };
            client(roots, identity)
        };
        let files = MountedFiles::open(files.into_iter().flatten().collect(), parse)?;
        Ok(Self {
            files: Arc::new(files),
            name: options.name.clone(),
        })
    }

    /// Returns what the connections are made with.
    pub fn peer(&self) -> TlsPeer {
        let files = self.files.clone();
        TlsPeer::new(self.name.clone(), move || (*files.current()).clone())
    }

    /// Registers whether the files are valid.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ottoscaler_handler_tls_files_invalid",
            "1 while the files for otto-handler's TLS are not valid and the last valid ones are in use",
            self.files.invalid(),
        );
    }

    /// Takes changes of the files until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        self.files.run(&stop).await;
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Makes the configuration of a replica from PEM texts.
fn serving(certificate: &[u8], key: &[u8], authorities: &[u8]) -> Result<TlsConfig, String> {
    let roots = Arc::new(roots(authorities)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| format!("the CA file: {error}"))?;
    let (chain, key) = (chain(certificate)?, private_key(key)?);
    let expiry = expiry(chain.first())?;
    let identity = (chain.clone(), key.clone_key());
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)
        .map_err(|error| format!("the certificate and the key: {error}"))?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsConfig {
        server: Arc::new(server),
        client: client(Arc::unwrap_or_clone(roots), Some(identity))?,
        verifier,
        expiry,
    })
}

/// A certificate with its chain, and its key.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Makes the configuration of a client, which may show a certificate.
fn client(roots: RootCertStore, identity: Option<Identity>) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut client = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| format!("the certificate and the key: {error}"))?,
    };
    client.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(client))
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err("the certificate file has no certificate in PEM".to_owned()),
        Err(_) => Err("the certificate file is not valid PEM".to_owned()),
    }
}

/// Parses a key. The error quotes nothing of it.
fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| "the key file has no key in PEM".to_owned())
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "the CA file is not valid PEM".to_owned())?;
        let added = roots.add(certificate);
        added.map_err(|error| format!("the CA file: {error}"))?;
    }
    if roots.is_empty() {
        return Err("the CA file has no certificate in PEM".to_owned());
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added > 0 {
        return Ok(roots);
    }
    let mut told = "the system has no certificates".to_owned();
    if let Some(error) = found.errors.first() {
        // A write to a String does not fail.
        let _ = write!(told, " ({error})");
    }
    Err(told)
}

/// Returns when a certificate expires, in Unix seconds.
fn expiry(certificate: Option<&CertificateDer<'_>>) -> Result<i64, String> {
    let parsed = certificate.and_then(|der| x509_parser::parse_x509_certificate(der).ok());
    let (_, certificate) = parsed.ok_or("the certificate cannot be parsed")?;
    Ok(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
