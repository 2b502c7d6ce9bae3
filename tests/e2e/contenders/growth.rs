//! Thousands of changes of leader leave nothing behind in the replicas' processes.
use std::time::Instant;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::Patch};
use serde_json::json;

use super::{LEASE, client, runtime};
use crate::{
    processes::{Cell, SOON},
    support::count_of,
};

/// Of a replica's process.
#[derive(Debug, Clone, Copy)]
struct Size {
    rss_kib: f64,
    descriptors: f64,
    sockets: f64,
    threads: f64,
    tasks: f64,
}

impl Size {
    fn of(cell: &Cell, replica: usize) -> Self {
        let pid = cell.replicas[replica].pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> f64 {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let links: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|f| std::fs::read_link(f.unwrap().path()).ok())
            .collect();
        let sockets = links
            .iter()
            .filter(|l| l.to_string_lossy().starts_with("socket:"));
        Self {
            rss_kib: field("VmRSS"),
            descriptors: links.len() as f64,
            sockets: sockets.count() as f64,
            threads: field("Threads"),
            tasks: cell.replicas[replica].metric("ottoscaler_tasks "),
        }
    }

    fn values(self) -> [(&'static str, f64); 5] {
        [
            ("rss_kib", self.rss_kib),
            ("descriptors", self.descriptors),
            ("sockets", self.sockets),
            ("threads", self.threads),
            ("tasks", self.tasks),
        ]
    }
}

/// Least squares, per step.
fn slope(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = |v: &mut dyn Iterator<Item = f64>| v.sum::<f64>() / n;
    let (mx, my) = (
        mean(&mut (0..values.len()).map(|i| i as f64)),
        mean(&mut values.iter().copied()),
    );
    let points = || {
        values
            .iter()
            .enumerate()
            .map(|(i, y)| (i as f64 - mx, y - my))
    };
    points().map(|(x, y)| x * y).sum::<f64>() / points().map(|(x, _)| x * x).sum::<f64>()
}

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
            samples.push((0..3).map(|r| Size::of(&cell, r)).collect::<Vec<_>>());
        }
    }
    println!(
        "{changes} changes of leader in {:.0} s, {} samples",
        began.elapsed().as_secs_f64(),
        samples.len()
    );
    let mut raw = String::from("sample,replica,rss_kib,descriptors,sockets,threads,tasks\n");
    for (n, sample) in samples.iter().enumerate() {
        for (r, size) in sample.iter().enumerate() {
            let values: Vec<String> = size.values().iter().map(|(_, v)| v.to_string()).collect();
            raw.push_str(&format!("{n},{r},{}\n", values.join(",")));
        }
    }
    if let Ok(path) = std::env::var("OTTO_TEST_SAMPLES") {
        std::fs::write(path, raw).unwrap();
    }
    assert!(samples.len() >= steps / 2);
    for replica in 0..3 {
        for (k, (what, last)) in samples.last().unwrap()[replica].values().iter().enumerate() {
            let values: Vec<f64> = samples.iter().map(|s| s[replica].values()[k].1).collect();
            let growth = slope(&values) * values.len() as f64;
            println!("replica-{replica} {what}: {last}, fitted growth {growth:.1}");
            // Of what leaks with each change there would be at least one per change.
            let bound = match *what {
                "rss_kib" => (changes as f64 / 2.0).max(1_024.0),
                _ => 8.0,
            };
            assert!(growth < bound, "{what} grows: {values:?}");
        }
    }
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
