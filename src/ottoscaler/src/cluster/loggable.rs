//! The form in which errors of the API server may be logged.
use std::{error::Error, fmt};

/// The reasons of the Kubernetes API (`metav1.StatusReason`).
const REASONS: [&str; 20] = [
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "AlreadyExists",
    "Conflict",
    "Gone",
    "Invalid",
    "ServerTimeout",
    "StoreReadError",
    "Timeout",
    "TooManyRequests",
    "BadRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "RequestEntityTooLarge",
    "UnsupportedMediaType",
    "InternalError",
    "Expired",
    "ServiceUnavailable",
    "Unknown",
];

/// A `Loggable` displays an error without the API server's message.
///
/// The message may quote an object and with it the environment of a worker. The log gets the
/// status code and the reason; the conditions of the task hold the message.
#[derive(Debug, Clone, Copy)]
pub struct Loggable<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Loggable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chain = std::iter::successors(Some(self.0), |error| (*error).source());
        match chain.find_map(|error| error.downcast_ref::<kube::Error>()) {
            None => fmt::Display::fmt(self.0, f),
            Some(kube::Error::Api(status)) => {
                write!(f, "the API server answered {}", status.code)?;
                match REASONS.iter().find(|reason| **reason == status.reason) {
                    Some(reason) => write!(f, " ({reason})"),
                    None => Ok(()),
                }
            }
            // The text of these errors quotes the answer.
            Some(kube::Error::SerdeError(_) | kube::Error::FromUtf8(_)) => {
                f.write_str("the API server's answer is not understood")
            }
            Some(error @ kube::Error::Service(_)) => connection(error, f),
            Some(error @ (kube::Error::HyperError(_) | kube::Error::ReadEvents(_))) => {
                connection(error, f)
            }
            Some(kube::Error::Auth(_)) => f.write_str("the credentials cannot be used"),
            Some(_) => f.write_str("the API server cannot be asked"),
        }
    }
}

/// Writes the innermost error, which is that of the network or of the write fence.
fn connection(error: &kube::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let error: &dyn Error = error;
    let innermost = std::iter::successors(Some(error), |error| (*error).source()).last();
    write!(
        f,
        "the API server is not reached: {}",
        innermost.unwrap_or(error)
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    const MARKER: &str = "s3cr3t";

    fn api(code: u16, reason: &str) -> kube::Error {
        let status = serde_json::json!({
            "status": "Failure",
            "message": format!("quota {MARKER}"),
            "reason": reason,
            "code": code,
            "details": {"name": MARKER, "causes": [{"message": MARKER}]},
        });
        kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn what_the_api_server_answered_is_not_logged() {
        assert_eq!(
            Loggable(&api(403, "Forbidden")).to_string(),
            "the API server answered 403 (Forbidden)"
        );
        assert_eq!(
            Loggable(&api(418, MARKER)).to_string(),
            "the API server answered 418"
        );
        let unread = serde_json::from_str::<u8>(&format!("{MARKER:?}")).unwrap_err();
        assert!(unread.to_string().contains(MARKER));
        for error in [
            kube::Error::SerdeError(unread),
            api(500, "InternalError"),
            api(410, "Expired"),
        ] {
            let text = Loggable(&error).to_string();
            assert!(!text.contains(MARKER), "{text}");
            // The same holds where another error wraps it.
            let wrapped = crate::cluster::watch::Error::from(error);
            assert_eq!(Loggable(&wrapped).to_string(), text);
        }
    }

    #[test]
    fn what_the_network_says_is_logged() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = kube::Error::Service(Box::new(refused));
        assert_eq!(
            Loggable(&error).to_string(),
            "the API server is not reached: connection refused"
        );
    }
}
