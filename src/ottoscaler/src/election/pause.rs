//! A pause for maintenance: work is taken and waits, no worker is started.
//!
//! It stands as an annotation of the Lease, which every replica watches anyway: so
//! it outlives a leader, and `kubectl annotate` sets it as well as `ottoctl pause`.
//! The contest never looks at it.
use std::{sync::Arc, time::Duration};

use fenced_lease::Event;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::timeout};

/// It pauses whatever its value, which tells why.
const PAUSED: &str = "ottoscaler.io/paused";
/// Told where nobody gave one.
pub const NO_REASON: &str = "no reason given";
/// The time within which the API server must answer a change of the pause. A person waits for it,
/// and can try again.
const SET_WITHIN: Duration = Duration::from_secs(3);

/// Whether workers may be started. Written by the watch of the Lease; read by the
/// worker manager and by status.
#[derive(Debug, Clone)]
pub struct Pause {
    /// The setting PAUSED: for this process's life.
    configured: bool,
    annotation: watch::Receiver<Option<Arc<str>>>,
}

impl Pause {
    fn new(configured: bool, annotation: watch::Receiver<Option<Arc<str>>>) -> Self {
        Self {
            configured,
            annotation,
        }
    }

    /// One that a test sets.
    pub fn channel(configured: bool) -> (watch::Sender<Option<Arc<str>>>, Self) {
        let (set, annotation) = watch::channel(None);
        (set, Self::new(configured, annotation))
    }

    /// Why no worker is started; None: nothing is paused.
    pub fn why(&self) -> Option<Arc<str>> {
        self.configured()
            .map(Arc::from)
            .or_else(|| self.annotation.borrow().clone())
    }

    /// The same, of what no [`PauseSwitch`] ends.
    pub fn configured(&self) -> Option<&'static str> {
        self.configured.then_some("by the setting PAUSED")
    }

    /// Returns at the next change.
    pub async fn changed(&mut self) {
        if self.annotation.changed().await.is_err() {
            // The process is ending.
            std::future::pending::<()>().await;
        }
    }
}

/// Takes the pause out of what the contender observes of the Lease.
#[derive(Debug)]
pub(super) struct PauseSource(watch::Sender<Option<Arc<str>>>);

impl Default for PauseSource {
    fn default() -> Self {
        Self(watch::channel(None).0)
    }
}

impl PauseSource {
    pub(super) fn pause(&self, configured: bool) -> Pause {
        Pause::new(configured, self.0.subscribe())
    }

    pub(super) fn observe(&self, event: Event<'_>) {
        let Event::LeaseObserved(lease) = event else {
            return;
        };
        let paused = of(lease);
        self.0.send_if_modified(|shown| {
            let changed = *shown != paused;
            *shown = paused;
            changed
        });
    }
}

fn of(lease: Option<&Lease>) -> Option<Arc<str>> {
    let annotations = lease?.metadata.annotations.as_ref()?;
    Some(match annotations.get(PAUSED)?.as_str() {
        "" => NO_REASON.into(),
        why => why.into(),
    })
}

/// The pause was not changed.
#[derive(Debug, thiserror::Error)]
pub enum NotSet {
    #[error("there is no Lease yet, so no leader either; try again")]
    NoLease,
    #[error("the API server did not take it ({0}); try again")]
    Api(kube::Error),
    #[error("the API server did not answer in time; try again")]
    Timeout,
}

/// Sets and ends the pause, at any replica.
#[derive(Debug, Clone)]
pub struct PauseSwitch {
    leases: Api<Lease>,
    lease: String,
}

impl PauseSwitch {
    pub fn new(client: kube::Client, namespace: &str, lease: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            lease: lease.to_owned(),
        }
    }

    /// None ends it.
    ///
    /// # Errors
    /// See [`NotSet`].
    pub async fn set(&self, why: Option<&str>) -> Result<(), NotSet> {
        let patch = json!({ "metadata": { "annotations": { PAUSED: why } } });
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let answer = self.leases.patch(&self.lease, &params, &patch);
        match timeout(SET_WITHIN, answer).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(NotSet::NoLease),
            Ok(Err(error)) => Err(NotSet::Api(error)),
            Err(_) => Err(NotSet::Timeout),
        }
    }
}

#[cfg(test)]
#[path = "pause_tests.rs"]
mod tests;
