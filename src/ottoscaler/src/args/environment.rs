//! Which variables of the environment are settings.

/// The environment by name, as [`std::env::var`] gives it.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A variable of a setting's name.
pub(super) enum Variable {
    /// It is not set, or empty.
    Absent,
    Set(String),
    /// Kubernetes gives each container variables for the Services of its namespace: one
    /// named `grpc` becomes `GRPC_PORT=tcp://10.96.0.7:80`. Such a value is no setting.
    ServiceLink,
}

pub(super) fn variable(lookup: Lookup<'_>, name: &str) -> Variable {
    match lookup(name).filter(|value| !value.is_empty()) {
        None => Variable::Absent,
        Some(value) if is_service_link(name, &value) => Variable::ServiceLink,
        Some(value) => Variable::Set(value),
    }
}

/// Returns the warning of a service link that takes a setting's name.
pub(super) fn ignored(name: &str) -> String {
    format!(
        "{name} is ignored: Kubernetes set it for a Service of that name; \
         set enableServiceLinks: false in the pod, or {name} itself"
    )
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
