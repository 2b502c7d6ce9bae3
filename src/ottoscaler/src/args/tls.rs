//! The certificates of this replica, and how otto-handler is reached.
use std::path::PathBuf;

use clap::ArgAction;
use rustls::pki_types::{DnsName, ServerName};

use super::{Invalid, values::NotTaken};
use crate::mounted::MountedFile;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsArgs {
    /// File with the certificate of the replicas and its chain, in PEM; with it the gRPC port takes TLS only (docs/tls.md).
    #[arg(long, env, value_name = "a path")]
    tls_cert_file: Option<PathBuf>,
    /// File with the key of that certificate.
    #[arg(long, env, value_name = "a path")]
    tls_key_file: Option<PathBuf>,
    /// File with the CAs that other replicas and clients with certificates are verified by.
    #[arg(long, env, value_name = "a path")]
    tls_ca_file: Option<PathBuf>,
    /// Name in the certificates of the replicas: they verify each other by it, and believe each other's word about a caller.
    #[arg(long, env, value_name = "a DNS name", value_parser = dns_name)]
    replicas_name: Option<DnsName<'static>>,
    /// Reaches otto-handler over TLS, with the certificate of the replicas if there is one.
    #[arg(long, env, action = ArgAction::Set, default_value = "false")]
    otto_handler_tls: bool,
    /// File with the CAs that otto-handler is verified by; TLS_CA_FILE if not given, or else the system's.
    #[arg(long, env, value_name = "a path")]
    otto_handler_ca_file: Option<PathBuf>,
    /// Name in the certificate of otto-handler; the host of OTTO_HANDLER_HOST if not given.
    #[arg(long, env, value_name = "a DNS name", value_parser = dns_name)]
    otto_handler_server_name: Option<DnsName<'static>>,
}

/// The certificates of this replica.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// The certificate, its key and the CAs.
    pub files: [MountedFile; 3],
    /// The name in the certificates of all replicas.
    pub replicas_name: ServerName<'static>,
}

/// How otto-handler is reached over TLS.
#[derive(Debug, Clone)]
pub struct HandlerTlsOptions {
    /// The CAs that verify it; None: those of the system.
    pub ca: Option<MountedFile>,
    /// The certificate that this replica shows, with its key; both or neither.
    pub certificate: Option<MountedFile>,
    pub key: Option<MountedFile>,
    /// The name in its certificate.
    pub name: ServerName<'static>,
}

impl TlsArgs {
    /// Returns the name in the certificates of the replicas.
    pub(super) fn replicas_name(&self) -> Option<String> {
        let name = self.replicas_name.as_ref();
        name.map(|name| name.as_ref().to_owned())
    }

    /// Returns the certificates of this replica, if it serves TLS.
    pub(super) fn serving(&self) -> Result<Option<TlsOptions>, Invalid> {
        let files = [
            ("TLS_CERT_FILE", &self.tls_cert_file),
            ("TLS_KEY_FILE", &self.tls_key_file),
            ("TLS_CA_FILE", &self.tls_ca_file),
        ];
        let Some((given, path)) = files.iter().find_map(|(name, path)| {
            let path = path.as_ref()?;
            Some((*name, path.display().to_string()))
        }) else {
            return Ok(None);
        };
        if let Some((missing, _)) = files.iter().find(|(_, path)| path.is_none()) {
            let takes = format!("complete without {missing}: TLS takes all three files");
            return Err(Invalid::new(given, &path, &takes));
        }
        let [certificate, key, ca] = files.map(|(name, path)| mounted(name, path.as_ref()));
        let (Some(certificate), Some(key), Some(ca)) = (certificate, key, ca) else {
            return Ok(None);
        };
        let Some(name) = self.replicas_name.clone() else {
            let takes =
                "complete without REPLICAS_NAME, the DNS name in the certificates of all replicas";
            return Err(Invalid::new(given, &path, takes));
        };
        Ok(Some(TlsOptions {
            files: [certificate, key, ca],
            replicas_name: ServerName::DnsName(name),
        }))
    }

    /// Returns how otto-handler at `host` (`host:port`) is reached, if over TLS. `serving` is what
    /// this replica serves with.
    pub(super) fn handler(
        self,
        host: Option<&str>,
        serving: Option<&TlsOptions>,
    ) -> Result<Option<HandlerTlsOptions>, Invalid> {
        if !self.otto_handler_tls {
            let file = self.otto_handler_ca_file.map(|f| f.display().to_string());
            let name = self.otto_handler_server_name.as_ref();
            let name = name.map(|name| name.as_ref().to_owned());
            return match (file, name) {
                (Some(file), _) => Err(without_tls("OTTO_HANDLER_CA_FILE", &file)),
                (None, Some(name)) => Err(without_tls("OTTO_HANDLER_SERVER_NAME", &name)),
                (None, None) => Ok(None),
            };
        }
        let Some(host) = host else {
            let takes = "usable without an otto-handler: OTTO_HANDLER_HOST is none";
            return Err(Invalid::new("OTTO_HANDLER_TLS", "true", takes));
        };
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = match self.otto_handler_server_name {
            Some(name) => ServerName::DnsName(name),
            None => ServerName::try_from(host.to_owned()).map_err(|_| {
                let takes = "a name that a certificate can have; set OTTO_HANDLER_SERVER_NAME";
                Invalid::new("OTTO_HANDLER_HOST", host, takes)
            })?,
        };
        let own_ca = mounted("OTTO_HANDLER_CA_FILE", self.otto_handler_ca_file.as_ref());
        let [certificate, key, ca] = match serving {
            Some(TlsOptions { files, .. }) => files.clone().map(Some),
            None => [None, None, None],
        };
        Ok(Some(HandlerTlsOptions {
            ca: own_ca.or(ca),
            certificate,
            key,
            name,
        }))
    }
}

fn mounted(setting: &'static str, path: Option<&PathBuf>) -> Option<MountedFile> {
    let path = path?.clone();
    Some(MountedFile { setting, path })
}

fn without_tls(setting: &str, value: &str) -> Invalid {
    Invalid::new(setting, value, "of use without OTTO_HANDLER_TLS=true")
}

fn dns_name(text: &str) -> Result<DnsName<'static>, NotTaken> {
    DnsName::try_from(text.to_owned()).map_err(|_| NotTaken)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use crate::args::{Invalid, Options};

    const SERVING: [(&str, &str); 4] = [
        ("TLS_CERT_FILE", "/c"),
        ("TLS_KEY_FILE", "/k"),
        ("TLS_CA_FILE", "/a"),
        ("REPLICAS_NAME", "r.n.svc"),
    ];

    fn with(pairs: &[(&str, &str)]) -> Result<Options, Invalid> {
        let value = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        Options::from_lookup(&|name| value(name).map(str::to_owned))
    }

    #[test]
    fn tls_takes_all_of_its_settings_or_none() {
        assert!(with(&[]).unwrap().tls.is_none());
        assert!(with(&SERVING).unwrap().tls.is_some());
        // The name alone does no harm: the chart always gives it.
        assert!(with(&SERVING[3..]).unwrap().tls.is_none());
        for missing in 0..SERVING.len() {
            let mut some = SERVING.to_vec();
            let (name, _) = some.remove(missing);
            let refused = with(&some).unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
        let refused = with(&[("REPLICAS_NAME", "not a name")]).unwrap_err();
        assert_eq!(refused.takes, "a DNS name");
    }

    #[test]
    fn with_tls_tokens_are_taken_without_a_word_about_risk() {
        let mut all = SERVING.to_vec();
        all.extend([("CALLERS", "static"), ("CALLERS_FILE", "/f")]);
        let options = with(&all).unwrap();
        assert_eq!(options.callers.replicas_name.as_deref(), Some("r.n.svc"));
    }

    #[test]
    fn otto_handler_is_verified_by_what_is_nearest() {
        let on = ("OTTO_HANDLER_TLS", "true");
        let host = ("OTTO_HANDLER_HOST", "handler.ci:8080");
        let plain = with(&[host]).unwrap();
        assert!(plain.handler_tls.is_none());
        let system = with(&[host, on]).unwrap().handler_tls.unwrap();
        assert!(system.ca.is_none() && system.key.is_none());
        assert_eq!(system.name.to_str(), "handler.ci");
        let mut all = SERVING.to_vec();
        all.extend([host, on]);
        let ours = with(&all).unwrap().handler_tls.unwrap();
        assert_eq!(ours.ca.unwrap().setting, "TLS_CA_FILE");
        assert_eq!(ours.key.unwrap().setting, "TLS_KEY_FILE");
        all.push(("OTTO_HANDLER_CA_FILE", "/h"));
        all.push(("OTTO_HANDLER_SERVER_NAME", "other.example"));
        let own = with(&all).unwrap().handler_tls.unwrap();
        assert_eq!(own.ca.unwrap().setting, "OTTO_HANDLER_CA_FILE");
        assert_eq!(own.name.to_str(), "other.example");
        let by_address = with(&[("OTTO_HANDLER_HOST", "[::1]:8080"), on]).unwrap();
        assert_eq!(by_address.handler_tls.unwrap().name.to_str(), "::1");
    }

    #[test]
    fn settings_of_tls_that_is_off_are_refused() {
        for wrong in [
            ("OTTO_HANDLER_CA_FILE", "/h"),
            ("OTTO_HANDLER_SERVER_NAME", "other.example"),
        ] {
            let refused = with(&[wrong]).unwrap_err().to_string();
            assert!(refused.contains("OTTO_HANDLER_TLS=true"), "{refused}");
        }
        let nobody = [("OTTO_HANDLER_HOST", "none"), ("OTTO_HANDLER_TLS", "true")];
        let refused = with(&nobody).unwrap_err().to_string();
        assert!(refused.contains("OTTO_HANDLER_HOST is none"), "{refused}");
    }
}
