//! What the API server can do without us: creates pods with the body of a worker of
//! ours, as its audit log has it, at one concurrency. Prints milliseconds from the
//! first request to the last answer; or, with `--job`, a Job of such pods to create.
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod},
};
use kube::{Api, Client, ResourceExt as _, api::PostParams};
use serde_json::{Value, json};

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    log: PathBuf,
    #[arg(long)]
    namespace: String,
    #[arg(long, default_value_t = 1_000)]
    count: usize,
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// Of the pods' names.
    #[arg(long, default_value = "raw")]
    prefix: String,
    #[arg(long)]
    job: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut body = last_worker(&args.log, &args.namespace)?;
    if args.job {
        println!("{}", job(&args, body));
        return Ok(());
    }
    // With an infer'd kubeconfig: as our ServiceAccount, so that the policy judges.
    let client = Client::try_default().await?;
    // An owner that the garbage collector finds, and that is no WorkerTask: Ottoscaler
    // sees the pods and leaves them alone.
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &args.namespace);
    let owner = maps.get("kube-root-ca.crt").await;
    let owner_uid = owner.map_or_else(|_| "none".to_owned(), |o| o.uid().unwrap_or_default());
    let owner = &mut body["metadata"]["ownerReferences"][0];
    owner["apiVersion"] = json!("v1");
    owner["kind"] = json!("ConfigMap");
    owner["name"] = json!("kube-root-ca.crt");
    if owner_uid != "none" {
        owner["uid"] = json!(owner_uid);
    }
    body["metadata"]["labels"]["bench"] = json!("raw");
    body["metadata"]["annotations"]["ottoscaler.io/term"] =
        json!(term(&client, &args.namespace).await?);
    let pods: Api<Pod> = Api::namespaced(client, &args.namespace);
    let bodies = (1..=args.count).map(|n| {
        let mut body = body.clone();
        body["metadata"]["name"] = json!(format!("{}-{n}", args.prefix));
        body["metadata"]["labels"]["worker-index"] = json!(n.to_string());
        serde_json::from_value::<Pod>(body)
    });
    let bodies = bodies.collect::<Result<Vec<_>, _>>()?;
    let started = Instant::now();
    let creates = bodies.iter().map(|pod| {
        let pods = pods.clone();
        async move { pods.create(&PostParams::default(), pod).await }
    });
    let made: Vec<Pod> = futures::stream::iter(creates)
        .buffer_unordered(args.concurrency)
        .try_collect()
        .await?;
    anyhow::ensure!(made.len() == args.count, "{} pods made", made.len());
    println!("{:.1}", started.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Of whoever leads now: the policy takes no other.
async fn term(client: &Client, namespace: &str) -> anyhow::Result<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let lease = leases.get("ottoscaler-leader").await?;
    let uid = lease.uid().unwrap_or_default();
    let spec = lease.spec.context("an empty Lease")?;
    let transitions = spec.lease_transitions.unwrap_or(0);
    let holder = spec.holder_identity.unwrap_or_default();
    Ok(format!("{uid}/{transitions}/{holder}"))
}

/// The body that our ServiceAccount sent last to create a worker.
fn last_worker(log: &Path, namespace: &str) -> anyhow::Result<Value> {
    let text = fs::read_to_string(log)?;
    let user = format!("system:serviceaccount:{namespace}:ottoscaler");
    let created = text
        .lines()
        .rev()
        .filter(|l| l.contains(&user))
        .find_map(|line| {
            let event: Value = serde_json::from_str(line).ok()?;
            let object = &event["requestObject"];
            (event["verb"] == "create"
                && event["objectRef"]["resource"] == "pods"
                && event["stage"] == "ResponseComplete"
                && event["user"]["username"] == *user
                && object["metadata"]["ownerReferences"][0]["kind"] == "WorkerTask")
                .then(|| object.clone())
        });
    created.context("the audit log shows no worker of ours")
}

fn job(args: &Args, mut body: Value) -> Value {
    body["metadata"] = json!({
        "labels": body["metadata"]["labels"],
        "annotations": body["metadata"]["annotations"],
    });
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": args.prefix, "namespace": args.namespace},
        "spec": {"parallelism": args.count, "completions": args.count,
            "template": {"metadata": body["metadata"], "spec": body["spec"]}},
    })
}
