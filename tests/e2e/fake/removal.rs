//! How pods that have ended go: together, and only those. The oracle is the audit log.
use std::time::Duration;

use serde_json::{Value, json};

use super::{
    super::proxy::{Fault, Rule},
    Cell, QUICK, SOON, apply, scale_up, wait_for,
};

const KEY: &str = "ottoscaler.io/pod-key";

/// Our deletes of pods so far: single ones by name, and the names that each call for many
/// answered.
fn deletes(cell: &Cell) -> (Vec<String>, Vec<Vec<String>>) {
    let user = format!("system:serviceaccount:{}:ottoscaler", cell.namespace);
    let (mut single, mut together) = (Vec::new(), Vec::new());
    for event in cell.audited(&user) {
        let of = &event["objectRef"];
        if of["resource"] != "pods" {
            continue;
        }
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        match event["verb"].as_str().unwrap() {
            "delete" => single.push(text(&of["name"])),
            "deletecollection" => {
                let items = event["responseObject"]["items"].as_array();
                let names = items.into_iter().flatten();
                together.push(names.map(|p| text(&p["metadata"]["name"])).collect());
            }
            _ => {}
        }
    }
    (single, together)
}

/// Two tasks end; of one of their pods somebody took the label away, and a pod that still
/// runs was made with a label of theirs.
#[test]
fn pods_that_have_ended_go_by_one_call_and_none_that_lives() {
    let cell = Cell::start("together", QUICK);
    let label = |pod: &Value| pod["metadata"]["labels"][KEY].clone();
    cell.ask(0, &scale_up("one", "3"));
    cell.ask(1, &scale_up("two", "2"));
    let pods = [cell.pods("one"), cell.pods("two")].concat();
    let mut keys: Vec<_> = pods.iter().map(|p| label(p).to_string()).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 5, "each its own: {keys:?}");

    let copy = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "copy", "labels": {"app": "debug", KEY: label(&pods[0])}},
        "spec": {"containers": [{"name": "worker", "image": "busybox"}]}});
    apply(&cell, &copy);
    let bare = "otto-agent-two-2";
    cell.cluster
        .kubectl(&["-n", "together", "label", "pod", bare, &format!("{KEY}-")]);
    wait_for("all run", SOON, || {
        let running = |task| cell.ask(0, &["status", task])["running"].clone();
        (running("one") == 3 && running("two") == 2).then_some(())
    });
    for pod in &pods {
        cell.succeed(pod["metadata"]["name"].as_str().unwrap());
    }
    wait_for("finished pods are deleted", SOON, || {
        let left = cell.pods("one").len() + cell.pods("two").len();
        (left == 0).then_some(())
    });
    let (single, together) = wait_for("the audit log has all deletes", SOON, || {
        let now = deletes(&cell);
        let gone = now.0.len() + now.1.iter().map(Vec::len).sum::<usize>();
        (gone >= 5).then_some(now)
    });
    println!("{single:?} {together:?}");
    assert_eq!(single, [bare]);
    assert!(together.len() <= 2, "{together:?}");
    let mut went = together.concat();
    went.sort();
    let named = ["one-1", "one-2", "one-3", "two-1"];
    assert_eq!(went, named.map(|n| format!("otto-agent-{n}")));
    let copy = cell.cluster.json(&["-n", "together", "get", "pod", "copy"]);
    assert!(copy["metadata"]["deletionTimestamp"].is_null(), "{copy}");
    cell.audit("one", 3, 1);
}

/// As with a role of an earlier version.
#[test]
fn without_the_right_to_delete_many_each_goes_by_itself() {
    let cell = Cell::start("single", QUICK);
    let verbs = json!(["get", "list", "watch", "create", "patch", "delete"]);
    let role = cell
        .cluster
        .json(&["-n", "single", "get", "role", "ottoscaler"]);
    let rules = role["rules"].as_array().unwrap().clone().into_iter();
    let less = rules.map(|mut rule| {
        if rule["resources"] == json!(["pods"]) {
            rule["verbs"] = verbs.clone();
        }
        rule
    });
    let less = json!({ "rules": less.collect::<Vec<_>>() }).to_string();
    let patch = ["-n", "single", "patch", "role", "ottoscaler", "-p", &less];
    cell.cluster.kubectl(&patch);
    cell.ask(0, &scale_up("single", "3"));
    wait_for("all run", SOON, || {
        (cell.ask(0, &["status", "single"])["running"] == 3).then_some(())
    });
    for n in 1..=3 {
        cell.succeed(&format!("otto-agent-single-{n}"));
    }
    wait_for(
        "finished pods are deleted",
        SOON + Duration::from_secs(10),
        || cell.pods("single").is_empty().then_some(()),
    );
    let (single, together) = deletes(&cell);
    assert_eq!(single.len(), 3);
    assert!(together.concat().is_empty(), "{together:?}");
}

/// Such a call may last for seconds; its deadline here is that of the Lease, six.
#[test]
fn a_handover_does_not_wait_for_a_call_that_deletes_many() {
    let cell = Cell::proxied("hasty", QUICK);
    let (leader, holder) = (cell.leader().unwrap(), cell.holder());
    cell.ask(0, &scale_up("hasty", "3"));
    wait_for("all run", SOON, || {
        (cell.ask(0, &["status", "hasty"])["running"] == 3).then_some(())
    });
    cell.proxies[leader].set(vec![Rule::on("DELETE", "/pods?", Fault::Hold)]);
    for n in 1..=3 {
        cell.succeed(&format!("otto-agent-hasty-{n}"));
    }
    wait_for("the call is held", SOON, || {
        (cell.proxies[leader].holding() > 0).then_some(())
    });
    cell.replicas[leader].signal("TERM");
    wait_for("another leads", Duration::from_secs(3), || {
        cell.holder()
            .filter(|h| !h.is_empty() && Some(h) != holder.as_ref())
    });
    wait_for("finished pods are deleted", SOON, || {
        cell.pods("hasty").is_empty().then_some(())
    });
    // The next one only deletes, which carries no term.
    cell.audit("hasty", 3, 1);
}
