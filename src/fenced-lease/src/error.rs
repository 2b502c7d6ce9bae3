//! The errors of a builder, and errors as they may be logged.
use std::{error::Error, fmt};

use crate::InvalidTimings;

/// Why no contender can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The timings are not safe; see [`Timings::validate`](crate::Timings::validate).
    #[error(transparent)]
    Timings(#[from] InvalidTimings),
    /// No identity was given; see [`ContenderBuilder::identity`](crate::ContenderBuilder::identity).
    #[error("a contender needs an identity with a name")]
    NoIdentity,
    /// An annotation prefix or field manager that the API server would refuse.
    #[error("{0:?} is no annotation prefix or field manager")]
    Name(String),
}

/// An error without what the API server answered, which may quote objects and the secrets in
/// them. The status code says what happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loggable<'a>(pub(crate) &'a (dyn Error + 'static));

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

impl fmt::Display for Loggable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = |code: u16| format!("the API server answered {code}");
        let mut all = chain(self.0);
        // kube-leader-election keeps some answers in an error of its own, without a source.
        if let Some(kube_leader_election::Error::ApiError { response }) =
            self.0.downcast_ref::<kube_leader_election::Error>()
        {
            return f.write_str(&code(response.code));
        }
        match all.find_map(inner) {
            None => f.write_str(&self.0.to_string()),
            Some(kube::Error::Api(status)) => f.write_str(&code(status.code)),
            Some(kube::Error::SerdeError(_) | kube::Error::FromUtf8(_)) => {
                f.write_str("the API server's answer cannot be decoded")
            }
            Some(kube::Error::Auth(_)) => f.write_str("the credentials cannot be used"),
            Some(error) => {
                let innermost = chain(error).last();
                let innermost = innermost.map(ToString::to_string).unwrap_or_default();
                write!(f, "the API server is not reached: {innermost}")
            }
        }
    }
}

/// The client's error; kube-leader-election does not name it as a source.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a kube::Error> {
    use kube_leader_election::Error as Crate;
    if let Some(error) = error.downcast_ref::<Crate>() {
        return match error {
            Crate::GetLease(error)
            | Crate::CreateLease(error)
            | Crate::AcquireLease(error)
            | Crate::RenewLease(error)
            | Crate::ReleaseLease(error)
            | Crate::Kube(error) => Some(error),
            _ => None,
        };
    }
    error.downcast_ref()
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
