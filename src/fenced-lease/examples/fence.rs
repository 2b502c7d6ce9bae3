//! Fences: what becomes of the writes of a leader that has been succeeded.
//!
//! Installs a ValidatingAdmissionPolicy, lets `old` lead and then `new`, and tries three
//! writes. Needs the rights of a cluster administrator.
//!
//! ```text
//! cargo run -p fenced-lease --example fence -- <namespace> <lease>
//! ```
use std::{error::Error, time::Duration};

use anyhow::Context as _;
use fenced_lease::{Contender, FencePolicy, Identity, LeaderClient, LeaderContext, LeaseRef, Term};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    core::v1::ConfigMap,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

/// How long the API server may take to follow a new policy.
const POLICY_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let mut args = std::env::args().skip(1);
    let mut arg = |what| args.next().context(what);
    let lease = LeaseRef::new(arg("a namespace")?, arg("the name of a Lease")?);
    let client = Client::try_default().await?;
    let policy = format!("{}.{}", lease.namespace, lease.name);
    install(&client, &lease, &policy).await?;

    let mut contenders = JoinSet::new();
    let mut lead = |name: &str| lead(&mut contenders, &client, &lease, &policy, name);
    let (mut old, stop_old) = lead("old")?;
    let old = old.recv().await.context("old does not lead")?;
    until_fenced(&client, &lease, &policy).await?;
    write(&old.client, "by-old").await?;
    println!("old writes in its term");

    // The old leader hands over; some task of it has kept its client, and writes late.
    let (mut new, stop_new) = lead("new")?;
    stop_old.cancel();
    let new = new.recv().await.context("new does not lead")?;
    let late = write(&old.client, "late").await.err();
    println!("old writes late: {}", innermost(&late.context("written")?));

    // Had it been paused between the check of its clock and the request, only the API server
    // could have told.
    let later = stamped(&client, &lease, "later", &old.term).await.err();
    let later = later.context("written")?;
    let kube::Error::Api(status) = &later else {
        return Err(later.into());
    };
    println!("old writes later still: {} {}", status.code, status.message);

    write(&new.client, "by-new").await?;
    println!("new writes in its term");
    stop_new.cancel();
    while contenders.join_next().await.is_some() {}
    Ok(())
}

type Leading = (mpsc::Receiver<LeaderContext>, CancellationToken);

/// Starts a contender; its terms come by the channel.
fn lead(
    contenders: &mut JoinSet<()>,
    client: &Client,
    lease: &LeaseRef,
    policy: &str,
    name: &str,
) -> anyhow::Result<Leading> {
    let contender = Contender::builder(client.clone(), lease.clone())
        .identity(Identity::new(name))
        .fence_policy(FencePolicy::named(policy))
        .build()?;
    let (send, terms) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let work = move |leader: LeaderContext| {
        let send = send.clone();
        async move {
            let _ = send.send(leader.clone()).await;
            tokio::select! {
                () = leader.drain.cancelled() => {}
                () = leader.lost.cancelled() => {}
            }
        }
    };
    contenders.spawn(contender.run(work, stop.clone()));
    Ok((terms, stop))
}

fn config_map(name: &str) -> serde_json::Result<ConfigMap> {
    // The policy looks at what has this label.
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"fenced": "true"}}}))
}

/// A write as a controller's: the client adds the term.
async fn write(client: &LeaderClient, name: &str) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = client.api();
    maps.create(&PostParams::default(), &config_map(name)?)
        .await?;
    Ok(())
}

/// The write that the API server gets when the clock could not stop it.
async fn stamped(client: &Client, lease: &LeaseRef, name: &str, term: &Term) -> kube::Result<()> {
    let mut map = config_map(name).map_err(kube::Error::SerdeError)?;
    let annotation = ("fenced-lease.io/term".to_owned(), term.to_string());
    map.metadata.annotations = Some([annotation].into());
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &lease.namespace);
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    maps.create(&dry_run, &map).await?;
    Ok(())
}

/// Waits until the API server follows the policy.
async fn until_fenced(client: &Client, lease: &LeaseRef, policy: &str) -> anyhow::Result<()> {
    let nobodys = "none/0/nobody".parse()?;
    let policy = FencePolicy::named(policy);
    let fenced = async {
        loop {
            if let Err(kube::Error::Api(status)) = stamped(client, lease, "probe", &nobodys).await
                && policy.is_refusal(&status.message)
            {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let fenced = tokio::time::timeout(POLICY_TIMEOUT, fenced);
    fenced.await.context("the policy is not followed")
}

/// Installs the policy: what carries another term than the Lease's is refused.
async fn install(client: &Client, lease: &LeaseRef, name: &str) -> anyhow::Result<()> {
    let term = "has(object.metadata.annotations) && 'fenced-lease.io/term' in object.metadata.annotations \
        ? object.metadata.annotations['fenced-lease.io/term'] : 'none'";
    let current = "params.metadata.uid \
        + '/' + string(has(params.spec.leaseTransitions) ? params.spec.leaseTransitions : 0) \
        + '/' + (has(params.spec.holderIdentity) ? params.spec.holderIdentity : '')";
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"},
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"],
                "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"],
            }]},
            "variables": [
                {"name": "term", "expression": term},
                {"name": "lease", "expression": current},
            ],
            "validations": [{
                "expression": "variables.term == variables.lease",
                "reason": "Forbidden",
                "messageExpression": "'the term ' + variables.term + ' is over, the Lease says ' + variables.lease",
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {
            "policyName": name,
            "validationActions": ["Deny"],
            "matchResources": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": lease.namespace}},
                "objectSelector": {"matchLabels": {"fenced": "true"}},
            },
            // Without a Lease there is no leader, and no write.
            "paramRef": {
                "name": lease.name, "namespace": lease.namespace,
                "parameterNotFoundAction": "Deny",
            },
        },
    });
    let apply = PatchParams::apply("fenced-lease-example").force();
    let patch = |object: Value| Patch::Apply(object);
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    policies.patch(name, &apply, &patch(policy)).await?;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    bindings.patch(name, &apply, &patch(binding)).await?;
    Ok(())
}

fn innermost(error: &anyhow::Error) -> &(dyn Error + 'static) {
    error.root_cause()
}
