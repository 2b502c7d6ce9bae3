//! Proof of death: the kubelet reports the very container that the holder published as
//! terminated, in the very pod.
//!
//! Nothing else counts: no phase, no missing pod, no ContainerStatusUnknown (with which the
//! kubelet says that it does not know). Without a published id there is no proof.
use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{Api, Client};
use tokio::{sync::watch, time::timeout};

use crate::{
    guard::{Guard, Proof},
    identity::Holder,
    keys::Keys,
    watch::{self as pod_watch, Change},
};

/// The longest time of one look at a pod. A proof only shortens the wait for the Lease to expire,
/// which takes longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest time, in seconds, from our start to when the runtime says that our container
/// started. A runtime that is busy reports late, and the times are whole seconds.
const MAX_START_LAG: i64 = 10;

/// Returns our own proof, or `None` while the kubelet has not reported our container.
///
/// `started` is when this process was forked, which is before its container counts as
/// started: an older container is not ours.
pub(crate) async fn own(
    pods: &Api<Pod>,
    pod: &str,
    uid: &str,
    started: Timestamp,
) -> Option<Proof> {
    let pod = timeout(REQUEST_TIMEOUT, pods.get(pod)).await.ok()?.ok()?;
    own_of(&pod, uid, started)
}

/// Only a pod with one container has a proof: nobody tells which of several is ours.
fn own_of(pod: &Pod, uid: &str, started: Timestamp) -> Option<Proof> {
    if pod.metadata.uid.as_deref() != Some(uid) {
        return None;
    }
    let [only] = pod.status.as_ref()?.container_statuses.as_deref()? else {
        return None;
    };
    let running = only.state.as_ref()?.running.as_ref()?;
    // The API gives whole seconds. A container that started much later than us is older
    // too: the node's clock was set back between it and ours.
    let after = running.started_at.as_ref()?.0.as_second() - started.as_second();
    let ours = (0..=MAX_START_LAG).contains(&after);
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
fn published(lease: &Lease, keys: &Keys) -> Option<(String, String, Proof)> {
    let identity = lease.spec.as_ref()?.holder_identity.clone()?;
    let pod = Holder::parse(&identity)?.name.to_owned();
    let annotations = lease.metadata.annotations.as_ref()?;
    let value = |key: String| annotations.get(&key).filter(|v| !v.is_empty()).cloned();
    let proof = Proof {
        pod_uid: value(keys.holder_pod_uid())?,
        container_id: value(keys.holder_container_id())?,
    };
    Some((identity, pod, proof))
}

/// Looks for the proof of one holder's death.
struct Witness<'a> {
    holder: String,
    proof: Proof,
    guard: &'a Guard,
    wake: &'a watch::Sender<()>,
}

impl Witness<'_> {
    fn look(&self, change: &Change<Pod>) {
        let (Change::Present(pod) | Change::Deleted(pod)) = change else {
            return;
        };
        if is_dead(pod, &self.proof) {
            self.guard.proved_dead(self.holder.clone());
            self.wake.send_replace(());
        }
    }
}

/// Watches the pod of whoever holds the Lease; tells the guard of its death and wakes the
/// contest. Runs until it is dropped.
pub(crate) async fn watch_holder(
    client: Client,
    namespace: &str,
    mut lease: watch::Receiver<Option<Arc<Lease>>>,
    guard: &Guard,
    keys: Keys,
    wake: &watch::Sender<()>,
) {
    let published = |lease: &Option<Arc<Lease>>| lease.as_deref().and_then(|l| published(l, &keys));
    loop {
        let current = published(&lease.borrow_and_update());
        let changed = async {
            while lease.changed().await.is_ok() {
                if published(&lease.borrow_and_update()) != current {
                    return;
                }
            }
            std::future::pending().await
        };
        let witness = async {
            let Some((holder, pod, proof)) = current.clone() else {
                return std::future::pending().await;
            };
            let witness = Witness {
                holder,
                proof,
                guard,
                wake,
            };
            let look = |change: Change<Pod>| witness.look(&change);
            pod_watch::watch(client.clone(), namespace, &pod, look).await;
        };
        tokio::select! {
            () = changed => {}
            () = witness => {}
        }
    }
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
