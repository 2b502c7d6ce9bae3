//! Arguments and environment → [`Config`].
use super::{Config, Invalid, parse_flags};

impl Config {
    /// Reads the settings from flags and, where there is no flag, from `environment`.
    ///
    /// Kubernetes gives each container variables for the Services of its namespace: one
    /// named `grpc` becomes `GRPC_PORT=tcp://10.96.0.7:80`. Such a value is no setting and
    /// is ignored, which [`Config::warnings`] tells.
    ///
    /// # Errors
    /// The first flag or value that no setting takes.
    pub fn load(
        args: impl IntoIterator<Item = String>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Invalid> {
        let flags = parse_flags(args)?;
        let from_environment =
            |name: &str| environment(name).filter(|value| !is_service_link(name, value));
        let mut config = Self::from_lookup(&|name| {
            let flag = flags.iter().rev().find(|(n, _)| *n == name);
            flag.map(|(_, value)| value.clone())
                .or_else(|| from_environment(name))
        })?;
        let links = super::SETTINGS.iter().map(|s| s.name).filter(|name| {
            environment(name).is_some_and(|value| is_service_link(name, &value))
                && !flags.iter().any(|(flag, _)| flag == name)
        });
        config.warnings.extend(links.map(|name| {
            format!(
                "{name} is ignored: Kubernetes set it for a Service of that name; \
                 set enableServiceLinks: false in the pod, or {name} itself"
            )
        }));
        Ok(config)
    }
}

/// Whether Kubernetes set this for a Service (`<SERVICE>_PORT=tcp://<address>:<port>`).
fn is_service_link(name: &str, value: &str) -> bool {
    let address = value.split_once("://").filter(|(protocol, _)| {
        name.ends_with("_PORT") && ["tcp", "udp", "sctp"].contains(protocol)
    });
    address
        .and_then(|(_, address)| address.rsplit_once(':'))
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    fn with(args: &[&str], environment: &[(&str, &str)]) -> Result<Config, Invalid> {
        let value = |name: &str| environment.iter().find(|(n, _)| *n == name);
        Config::load(args.iter().map(|a| (*a).to_owned()), &|name| {
            value(name).map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn a_link_to_a_service_is_no_port_of_ours() {
        for link in [
            "tcp://10.96.0.7:80",
            "tcp://[fd00::7]:80",
            "udp://10.96.0.7:53",
        ] {
            for name in ["GRPC_PORT", "HEALTH_PORT", "METRICS_PORT"] {
                let config = with(&[], &[(name, link)]).unwrap();
                let ports = (
                    config.serve.grpc_port,
                    config.serve.health_port,
                    config.serve.metrics_port,
                );
                assert_eq!(ports, (9090, 9091, 9092), "{name}={link}");
                assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
                let warning = &config.warnings[0];
                assert!(
                    warning.contains(name) && warning.contains("enableServiceLinks"),
                    "{warning}"
                );
            }
        }
        let config = with(
            &["--grpc-port", "7000"],
            &[("GRPC_PORT", "tcp://10.96.0.7:80")],
        );
        let config = config.unwrap();
        assert_eq!((config.serve.grpc_port, config.warnings.len()), (7000, 0));
    }

    #[test]
    fn what_is_no_link_is_still_a_wrong_port() {
        for value in ["tcp://", "tcp://host", "http://10.96.0.7:80", "many"] {
            let refused = with(&[], &[("GRPC_PORT", value)]).unwrap_err();
            assert_eq!(refused.name, "GRPC_PORT", "{value}");
        }
        let refused = with(&["--grpc-port", "tcp://10.96.0.7:80"], &[]);
        assert_eq!(refused.unwrap_err().name, "GRPC_PORT");
    }

    #[test]
    fn a_flag_wins_over_the_environment() {
        let config = with(&["--namespace=flag"], &[("NAMESPACE", "environment")]).unwrap();
        assert_eq!(config.namespace, "flag");
        assert_eq!(with(&[], &[("NAMESPACE", "ci")]).unwrap().namespace, "ci");
    }
}
