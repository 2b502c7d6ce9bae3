//! Says who calls, and decides what each caller may do.
//!
//! Invariants:
//! - A call reaches a handler only after its method's row in the table of [`rights`] was found, and
//!   its caller was identified and has that right. With CALLERS=none every call does.
//! - The replica that took a call decides. Another replica believes its word, the metadata
//!   [`CALLER`], only over a connection whose certificate bears the replicas' name. Over any other
//!   connection a forwarded call is the client's own, with the client's own token.
//! - A token is in memory for its call only, and in no log, error or metric. What is kept of it is
//!   a hash.
pub(super) mod audit;
mod caller;
mod denied;
mod file;
#[cfg(test)]
mod hop_tests;
mod layer;
mod reload;
mod review_cache;
mod reviews;
pub(super) mod rights;
#[cfg(test)]
mod test_reviews;
mod verdicts;

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::{
    reload::CallersFile, review_cache::ReviewCache, reviews::KubeReviews, rights::Right,
    verdicts::Verdict,
};
use crate::{
    args::{CallerMode, CallerOptions},
    domain::template::Policy,
    listen::PeerNames,
    mounted::MountedFilesError,
};

pub(super) use caller::Caller;

/// The metadata key in which a replica names the caller of a call that it forwards.
pub(super) const CALLER: &str = "ottoscaler-caller";
/// The `Callers` of a replica decide who may do what. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Callers {
    mode: Mode,
    /// The name that the certificates of the replicas bear.
    replicas_name: Option<Arc<str>>,
}

#[derive(Debug, Clone)]
enum Mode {
    None,
    Static(Arc<CallersFile>),
    Kubernetes(Arc<ReviewCache>),
}

impl Callers {
    /// Reads the file of the callers, if there is one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not valid.
    pub fn new(
        options: &CallerOptions,
        namespace: &str,
        policy: &Arc<Policy>,
        client: &kube::Client,
    ) -> Result<Self, MountedFilesError> {
        let mode = match &options.mode {
            CallerMode::None => {
                tracing::warn!(
                    "CALLERS is none: whoever reaches the gRPC port may start and end workers; \
                     set it to static or kubernetes"
                );
                Mode::None
            }
            CallerMode::Static => {
                let path = options.file.clone().unwrap_or_default();
                Mode::Static(Arc::new(CallersFile::open(path, policy.clone())?))
            }
            CallerMode::Kubernetes => {
                let reviews = KubeReviews::new(client, namespace);
                Mode::Kubernetes(Arc::new(ReviewCache::new(
                    Arc::new(reviews),
                    options.audience.clone(),
                )))
            }
        };
        Ok(Self {
            mode,
            replicas_name: options.replicas_name.as_deref().map(Arc::from),
        })
    }

    /// Returns callers who may all do everything, as with CALLERS=none.
    #[cfg(test)]
    pub(crate) fn anyone() -> Self {
        Self {
            mode: Mode::None,
            replicas_name: None,
        }
    }

    /// Registers the metrics of the file of the callers, if there is one.
    pub fn register(&self, registry: &mut Registry) {
        if let Mode::Static(file) = &self.mode {
            file.register(registry);
        }
    }

    /// Takes changes of the file of the callers until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        match &self.mode {
            Mode::Static(file) => file.watch(&stop).await,
            Mode::None | Mode::Kubernetes(_) => stop.cancelled().await,
        }
    }

    /// Identifies the caller and checks that it has the right. None stands for the right to be
    /// known.
    ///
    /// # Errors
    /// Returns UNAUTHENTICATED without a valid token or certificate, PERMISSION_DENIED without the
    /// right, and UNAVAILABLE when the API server cannot say.
    async fn identify(
        &self,
        token: Option<&str>,
        peer: Option<&PeerNames>,
        right: Option<Right>,
    ) -> Result<Caller, Status> {
        match &self.mode {
            Mode::None => Ok(Caller::new("anyone")),
            Mode::Static(file) => {
                let callers = file.current();
                let names = peer.map_or(&[][..], |peer| &peer.0);
                let (name, role) = match token {
                    Some(token) => callers.of_token(token).ok_or_else(denied::bad_token)?,
                    None => callers.of_certificate(names).ok_or_else(denied::no_token)?,
                };
                if let Some(right) = right
                    && !role.has(right)
                {
                    audit::forbidden(right, name);
                    return Err(denied::forbidden(name, right));
                }
                Ok(Caller {
                    policy: callers.policy(role),
                    ..Caller::new(name)
                })
            }
            Mode::Kubernetes(reviews) => {
                let token = token.ok_or_else(denied::no_token)?;
                match reviews.verdict(token, right).await {
                    Ok(Verdict::Allowed(name)) => Ok(Caller::new(&name)),
                    Ok(Verdict::Forbidden(name)) => {
                        Err(right.map_or_else(denied::bad_token, |right| {
                            let name = Caller::new(&name).name;
                            audit::forbidden(right, &name);
                            denied::forbidden(&name, right)
                        }))
                    }
                    Ok(Verdict::BadToken) => Err(denied::bad_token()),
                    Err(_) => Err(denied::cannot_review()),
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
