//! Thousands of changes of leader leave nothing behind in the replicas' processes.
use std::time::Instant;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::Patch};
use serde_json::json;

use super::{LEASE, client, runtime};
use crate::{
    processes::{Cell, SOON},
    size::{self, must_not_grow, write_csv},
    support::{count_of, is_full},
};

/// 10,000 in the full run.
#[test]
fn leadership_changes_leave_nothing_behind() {
    let cell = Cell::start("flap", &[("LOG_LEVEL", "warn")]);
    let changes = count_of("OTTO_TEST_CHANGES", 200);
    let (warm, steps) = (changes / 4, 40);
    let runtime = runtime();
    let leases: Api<Lease> = runtime.block_on(async {
        Api::namespaced(
            client(cell.cluster.var("KUBECONFIG")).await,
            &cell.namespace,
        )
    });
    let (mut samples, began) = (vec![], Instant::now());
    let mut holder = cell.holder().unwrap();
    for n in 1..=changes {
        // As if the leader had stepped down: the others take over at once.
        let released = json!({"metadata": {"annotations": {"ottoscaler.io/released-by": "test"}},
            "spec": {"holderIdentity": ""}});
        holder = runtime.block_on(async {
            let patched = leases
                .patch(LEASE, &Default::default(), &Patch::Merge(released))
                .await
                .unwrap();
            let version = patched.metadata.resource_version.unwrap();
            tokio::time::timeout(SOON, next_holder(&leases, &version, &holder))
                .await
                .expect("another holder")
        });
        if n > warm && n % ((changes - warm) / steps) == 0 {
            samples.push(size::sample(&cell));
        }
    }
    println!(
        "{changes} changes of leader in {:.0} s, {} samples",
        began.elapsed().as_secs_f64(),
        samples.len()
    );
    if let Ok(path) = std::env::var("OTTO_TEST_SAMPLES") {
        write_csv(path.as_ref(), &samples);
    }
    assert!(samples.len() >= steps / 2);
    // Of what leaks with each term there would be one per term, of which a replica has a third.
    let leak = (changes - warm) as f64 / 3.0;
    // A replica that others overtake for a while closes its leader's connections, some fifteen
    // descriptors. In a short run, that and its return look like growth.
    let most = if is_full() { 8.0 } else { leak / 2.0 };
    must_not_grow(&samples, (changes as f64 / 2.0).max(1_024.0), most);
}

async fn next_holder(leases: &Api<Lease>, version: &str, old: &str) -> String {
    use futures::TryStreamExt as _;
    use kube::api::{WatchEvent, WatchParams};
    let params = WatchParams::default().fields(&format!("metadata.name={LEASE}"));
    let mut events = Box::pin(leases.watch(&params, version).await.unwrap());
    while let Some(event) = events.try_next().await.unwrap() {
        if let WatchEvent::Added(lease) | WatchEvent::Modified(lease) = event {
            let holder = lease
                .spec
                .and_then(|s| s.holder_identity)
                .unwrap_or_default();
            if !holder.is_empty() && holder != old {
                return holder;
            }
        }
    }
    panic!("the watch ended");
}
