//! What the API server's audit log says of one ServiceAccount's writes.
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Pods made, by name: uids seen under it in anybody's events. A create whose
    /// answer was a timeout may have taken effect; what it made is seen later.
    pub creates: BTreeMap<String, usize>,
    /// Accepted pod deletes by pod name.
    pub deletes: BTreeMap<String, usize>,
    /// Terms in the order in which their first write took effect.
    pub terms: Vec<String>,
    /// Accepted writes that carry a term.
    pub fenced_writes: usize,
    /// Writes that the fence policy refused.
    pub refusals: usize,
    /// Changes refused because their object was another by then.
    pub conflicts: usize,
    /// Both, by the term that the refused write carries.
    pub refused: BTreeMap<String, Refused>,
    pub faults: Vec<String>,
}

/// Of one term's writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    pub by_policy: usize,
    pub by_version: usize,
}

/// Reads the log of `user`; `task` narrows pods by their label `task-id`.
pub fn read(log: &str, user: &str, task: Option<&str>) -> Audit {
    let mut audit = Audit::default();
    // (resourceVersion, term, what): the order in which writes took effect.
    let mut writes: Vec<(u64, String, String)> = Vec::new();
    let mut uids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let namespace = user.split(':').nth(2);
    // Another namespace's events are most of a log.
    let ours = |line: &&str| namespace.is_none_or(|n| line.contains(n));
    for line in log.lines().filter(ours) {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if event["stage"] != "ResponseComplete" {
            continue;
        }
        if let Some((name, uid)) = pod_seen(&event, namespace, task) {
            uids.entry(name).or_default().insert(uid);
        }
        if event["user"]["username"] != user {
            continue;
        }
        let code = event["responseStatus"]["code"].as_u64().unwrap_or(0);
        let verb = event["verb"].as_str().unwrap_or_default();
        let (resource, sub) = (
            event["objectRef"]["resource"].as_str().unwrap_or_default(),
            event["objectRef"]["subresource"]
                .as_str()
                .unwrap_or_default(),
        );
        let object = &event["responseObject"];
        let name = event["objectRef"]["name"]
            .as_str()
            .or_else(|| object["metadata"]["name"].as_str());
        let name = name.unwrap_or_default().to_owned();
        if !matches!(resource, "pods" | "workertasks" | "configmaps") {
            continue;
        }
        let asked = term(sub, &event["requestObject"]).unwrap_or("none");
        if code == 403 || code == 422 {
            let message = event["responseStatus"]["message"]
                .as_str()
                .unwrap_or_default();
            if message.contains("ValidatingAdmissionPolicy") {
                audit.refusals += 1;
                audit.refused.entry(asked.to_owned()).or_default().by_policy += 1;
            }
            continue;
        }
        if code == 409 && matches!(verb, "update" | "patch") {
            audit.conflicts += 1;
            audit
                .refused
                .entry(asked.to_owned())
                .or_default()
                .by_version += 1;
        }
        if !(200..300).contains(&code) {
            continue;
        }
        let is_named =
            |name: &str| task.is_none_or(|t| name.starts_with(&format!("otto-agent-{t}-")));
        let of_task =
            is_named(&name) || task.is_some_and(|t| object["metadata"]["labels"]["task-id"] == t);
        match (resource, sub, verb) {
            ("pods", "", "delete") if of_task => {
                *audit.deletes.entry(name.clone()).or_default() += 1
            }
            ("pods", "", "deletecollection") => {
                let went = object["items"].as_array().into_iter().flatten();
                let names = went.filter_map(|pod| pod["metadata"]["name"].as_str());
                for name in names.filter(|name| is_named(name)) {
                    *audit.deletes.entry(name.to_owned()).or_default() += 1;
                }
            }
            _ => {}
        }
        if !matches!(verb, "create" | "update" | "patch") {
            continue;
        }
        let term = term(sub, object);
        let version = object["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|v| v.parse().ok());
        match (term, version) {
            (Some(term), Some(version)) => writes.push((
                version,
                term.to_owned(),
                format!("{verb} {resource}/{name}"),
            )),
            _ => audit
                .faults
                .push(format!("{verb} {resource}/{name} {sub} carries no term")),
        }
    }
    audit.creates = uids.into_iter().map(|(name, u)| (name, u.len())).collect();
    // A write that changes nothing answers an old version: not an effect.
    writes.sort();
    writes.dedup();
    audit.fenced_writes = writes.len();
    for (version, term, what) in writes {
        match audit.terms.iter().position(|t| *t == term) {
            None => audit.terms.push(term),
            Some(at) if at + 1 < audit.terms.len() => {
                audit.faults.push(format!(
                    "{what} at {version} carries term {term}, older than {:?}",
                    audit.terms.last()
                ));
            }
            Some(_) => {}
        }
    }
    for (pod, n) in audit.creates.iter().filter(|(_, n)| **n > 1) {
        audit.faults.push(format!("{pod} was created {n} times"));
    }
    audit
}

/// Who released a Lease, by the mark that a release leaves on it.
pub fn released(log: &str) -> BTreeSet<String> {
    let leases = log.lines().filter(|l| l.contains(RELEASED_BY));
    let events = leases.filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let accepted = events.filter(|e| {
        let code = e["responseStatus"]["code"].as_u64();
        e["objectRef"]["resource"] == "leases" && code.is_some_and(|c| (200..300).contains(&c))
    });
    accepted
        .filter_map(|e| {
            let marks = &e["responseObject"]["metadata"]["annotations"];
            marks[RELEASED_BY].as_str().map(str::to_owned)
        })
        .collect()
}

const RELEASED_BY: &str = "ottoscaler.io/released-by";

/// Where a write carries it.
fn term<'a>(sub: &str, object: &'a Value) -> Option<&'a str> {
    match sub {
        "status" => object["status"]["term"].as_str(),
        _ => object["metadata"]["annotations"]["ottoscaler.io/term"].as_str(),
    }
}

/// A pod of ours that exists, whoever's event shows it: its name and uid.
fn pod_seen(
    event: &Value,
    namespace: Option<&str>,
    task: Option<&str>,
) -> Option<(String, String)> {
    let object = &event["responseObject"];
    let meta = &object["metadata"];
    // A create's answer is only the pod's metadata where we asked for no more.
    let kind = object["kind"].as_str()?;
    let ours = event["objectRef"]["resource"] == "pods"
        && matches!(kind, "Pod" | "PartialObjectMetadata")
        && meta["annotations"]["ottoscaler.io/term"].is_string()
        && namespace.is_none_or(|n| meta["namespace"] == n)
        && task.is_none_or(|t| meta["labels"]["task-id"] == t);
    let name = meta["name"].as_str()?.to_owned();
    ours.then_some((name, meta["uid"].as_str()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SA: &str = "system:serviceaccount:ns:sa";

    fn pod(version: u64, name: &str, term: &str) -> Value {
        json!({"kind": "Pod", "metadata": {"name": name, "namespace": "ns",
            "uid": format!("{name}-{version}"), "resourceVersion": version.to_string(),
            "labels": {"task-id": "t"}, "annotations": {"ottoscaler.io/term": term}}})
    }

    fn event(verb: &str, user: &str, name: &str, code: u64, object: &Value) -> String {
        json!({"stage": "ResponseComplete", "verb": verb, "user": {"username": user},
            "objectRef": {"resource": "pods", "name": name}, "responseStatus": {"code": code,
                "message": "ValidatingAdmissionPolicy refused"},
            "responseObject": object})
        .to_string()
    }

    fn create(version: u64, name: &str, term: &str, code: u64) -> String {
        let object = match code {
            201 => pod(version, name, term),
            _ => json!({"kind": "Status"}),
        };
        event("create", SA, name, code, &object)
    }

    fn read(events: &[String]) -> Audit {
        super::read(&events.join("\n"), SA, Some("t"))
    }

    #[test]
    fn two_terms_one_after_the_other_are_fine() {
        let a = read(&[create(1, "a", "x", 201), create(2, "b", "y", 201)]);
        assert_eq!((a.faults.len(), a.terms.len(), a.creates.len()), (0, 2, 2));
    }

    #[test]
    fn a_write_of_an_older_term_is_a_fault_whatever_the_log_order() {
        let a = read(&[
            create(3, "c", "x", 201),
            create(1, "a", "x", 201),
            create(2, "b", "y", 201),
        ]);
        assert_eq!(a.faults.len(), 1);
    }

    #[test]
    fn a_pod_created_twice_is_a_fault() {
        assert_eq!(
            read(&[create(1, "a", "x", 201), create(2, "a", "x", 201)])
                .faults
                .len(),
            1
        );
    }

    #[test]
    fn a_create_that_was_answered_a_timeout_counts_when_its_pod_is_seen() {
        let kubelet = event("patch", "system:node:n", "a", 200, &pod(7, "a", "x"));
        let late = create(0, "a", "x", 504);
        assert_eq!(read(std::slice::from_ref(&late)).creates.len(), 0);
        assert_eq!(read(&[late.clone(), kubelet.clone()]).creates["a"], 1);
        let again = create(9, "a", "x", 201);
        assert_eq!(read(&[late, kubelet, again]).faults.len(), 1);
    }

    #[test]
    fn a_create_that_was_answered_by_metadata_counts() {
        let made = |version: u64| {
            let mut object = pod(version, "a", "x");
            object["kind"] = json!("PartialObjectMetadata");
            event("create", SA, "a", 201, &object)
        };
        assert_eq!(read(&[made(1)]).creates["a"], 1);
        assert_eq!(read(&[made(1), made(2)]).faults.len(), 1);
    }

    #[test]
    fn a_refused_write_has_no_effect() {
        let a = read(&[create(1, "a", "x", 201), create(0, "b", "w", 403)]);
        assert_eq!((a.refusals, a.creates.len(), a.faults.len()), (1, 1, 0));
    }

    #[test]
    fn refused_writes_are_told_by_their_term() {
        let late = |verb: &str, code: u64| {
            json!({"stage": "ResponseComplete", "verb": verb, "user": {"username": SA},
                "objectRef": {"resource": "pods", "name": "a"}, "requestObject": pod(0, "a", "w"),
                "responseStatus": {"code": code, "message": "ValidatingAdmissionPolicy refused"}})
            .to_string()
        };
        let a = read(&[late("create", 403), late("patch", 409), late("create", 409)]);
        let of_w = Refused {
            by_policy: 1,
            by_version: 1,
        };
        assert_eq!(a.refused, [("w".to_owned(), of_w)].into());
    }

    #[test]
    fn who_released_a_lease_is_told_by_its_accepted_writes() {
        let lease = |code: u64, resource: &str, by: &str| {
            json!({"stage": "ResponseComplete", "objectRef": {"resource": resource},
                "responseStatus": {"code": code},
                "responseObject": {"metadata": {"annotations": {RELEASED_BY: by}}}})
            .to_string()
        };
        let log = [
            lease(200, "leases", "a"),
            lease(200, "leases", "a"),
            lease(409, "leases", "b"),
            lease(200, "pods", "c"),
            lease(201, "leases", "d"),
        ];
        let all = super::released(&log.join("\n"));
        assert_eq!(all, ["a".to_owned(), "d".to_owned()].into());
    }

    #[test]
    fn somebody_elses_writes_are_left_alone() {
        assert_eq!(
            super::read(&create(1, "a", "x", 201), "system:serviceaccount:n:o", None),
            Audit::default()
        );
    }
}
