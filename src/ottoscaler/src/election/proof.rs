//! Proof of death: the kubelet reports the very container that the holder
//! published as terminated, in the very pod.
//!
//! Nothing else counts: no phase, no missing pod, no ContainerStatusUnknown (the
//! kubelet's word for "I do not know"); no id published, no proof.
use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    jiff::Timestamp,
};
use kube::Api;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    guard::{Guard, HOLDER_CONTAINER_ID, HOLDER_POD_UID, Proof},
    identity,
};
use crate::{
    cluster::{
        object,
        watch::{self as cluster_watch, Select, WatchHandler},
    },
    domain::unread::Unread,
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Seconds from our start to when the runtime says that our container started.
const TOLD_WITHIN: i64 = 10;

/// Our own proof, or None while the kubelet has not told of our container.
/// `started` is when this process was forked, which is before its container counts
/// as started: an older container is not ours.
pub(super) async fn own(
    pods: &Api<Pod>,
    pod: &str,
    uid: &str,
    started: Timestamp,
) -> Option<Proof> {
    let pod = timeout(REQUEST_TIMEOUT, pods.get(pod)).await.ok()?.ok()?;
    own_of(&pod, uid, started)
}

/// Only of a pod with one container: which of several is ours nobody tells.
fn own_of(pod: &Pod, uid: &str, started: Timestamp) -> Option<Proof> {
    if pod.metadata.uid.as_deref() != Some(uid) {
        return None;
    }
    let [only] = pod.status.as_ref()?.container_statuses.as_deref()? else {
        return None;
    };
    let running = only.state.as_ref()?.running.as_ref()?;
    // The API gives whole seconds. Much later than us is older too: the node's clock
    // was set back between that container and ours.
    let after = running.started_at.as_ref()?.0.as_second() - started.as_second();
    let ours = (0..=TOLD_WITHIN).contains(&after);
    let container_id = only
        .container_id
        .clone()
        .filter(|id| ours && !id.is_empty())?;
    Some(Proof {
        pod_uid: uid.to_owned(),
        container_id,
    })
}

/// Whether this pod proves that the published container has ended.
fn is_dead(pod: &Pod, proof: &Proof) -> bool {
    if pod.metadata.uid.as_deref() != Some(proof.pod_uid.as_str()) {
        return false;
    }
    let statuses = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten());
    statuses
        .flat_map(|c| [&c.state, &c.last_state])
        .flatten()
        .filter_map(|s| s.terminated.as_ref())
        .any(|end| {
            end.container_id.as_deref() == Some(proof.container_id.as_str())
                && end.reason.as_deref() != Some("ContainerStatusUnknown")
        })
}

/// What a holder published: its identity, its pod, its proof.
fn published(lease: &Lease) -> Option<(String, String, Proof)> {
    let holder = lease.spec.as_ref()?.holder_identity.clone()?;
    let (pod, _) = identity::parse(&holder)?;
    let annotations = lease.metadata.annotations.as_ref()?;
    let told = |key: &str| annotations.get(key).filter(|v| !v.is_empty()).cloned();
    let proof = Proof {
        pod_uid: told(HOLDER_POD_UID)?,
        container_id: told(HOLDER_CONTAINER_ID)?,
    };
    let pod = pod.to_owned();
    Some((holder, pod, proof))
}

struct Witness {
    holder: String,
    proof: Proof,
    guard: Arc<Guard>,
    wake: watch::Sender<()>,
}

impl Witness {
    fn look(&self, pod: &Pod) {
        if is_dead(pod, &self.proof) {
            self.guard.proved_dead(self.holder.clone());
            self.wake.send_replace(());
        }
    }
}

impl WatchHandler<Pod> for Witness {
    type Item = Pod;

    fn project(object: Pod) -> Option<Pod> {
        Some(object)
    }
    fn replace(&self, all: Vec<Pod>, unread: Vec<Unread>, _: u64) {
        unread.iter().for_each(object::log_unread);
        all.iter().for_each(|pod| self.look(pod));
    }
    fn apply(&self, object: Pod) {
        self.look(&object);
    }
    fn delete(&self, object: Pod) {
        self.look(&object);
    }
    fn synced_to(&self, _: u64) {}
}

/// Watches the pod of whoever holds the Lease; tells the guard of its death and
/// wakes the contest.
pub(super) async fn watch_holder(
    pods: Api<Pod>,
    mut lease: watch::Receiver<Option<Arc<Lease>>>,
    guard: Arc<Guard>,
    wake: watch::Sender<()>,
    cancel: CancellationToken,
) {
    loop {
        let current = lease.borrow_and_update().as_deref().and_then(published);
        let changed = async {
            loop {
                if lease.changed().await.is_err() {
                    return false;
                }
                if lease.borrow_and_update().as_deref().and_then(published) != current {
                    return true;
                }
            }
        };
        let witness = async {
            match current.clone() {
                Some((holder, pod, proof)) => {
                    let witness = Witness {
                        holder,
                        proof,
                        guard: guard.clone(),
                        wake: wake.clone(),
                    };
                    cluster_watch::run(pods.clone(), Select::Name(pod), witness, cancel.clone())
                        .await;
                }
                None => cancel.cancelled().await,
            }
        };
        tokio::select! {
            more = changed => if !more { return },
            () = witness => return,
        }
    }
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
