//! What looks like the leader's death and is none must not shorten a successor's
//! wait; the death itself must. The kubelet's part is the test's: each replica has
//! a pod that no kubelet runs.
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{QUICK, judge, new_holder, no_longer_leads, scale_up};
use crate::{
    processes::{Cell, SOON},
    support::wait_for,
};

/// A whole lease, less what passed between the last renewal and the stop.
const WAITED_OUT: Duration = Duration::from_secs(5);
const PUBLISHED: &str = "ottoscaler.io/holder-container-id";

/// A pod as a kubelet would have it.
struct Body {
    name: String,
    uid: String,
    container_id: String,
    /// As the runtime says: shortly after the replica's process.
    started: Timestamp,
}

impl Body {
    /// The pod of replica `n`, bound to no node.
    fn make(cell: &Cell, n: usize) -> Self {
        let name = format!("replica-{n}");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"schedulerName": "nobody", "containers": [{"name": "ottoscaler", "image": "x"}]}});
        let file = cell.dir().join(format!("{name}.json"));
        std::fs::write(&file, pod.to_string()).unwrap();
        let made = cell.cluster.json(&[
            "-n",
            &cell.namespace,
            "create",
            "-f",
            &file.to_string_lossy(),
        ]);
        let uid = made["metadata"]["uid"].as_str().unwrap().to_owned();
        Self {
            container_id: format!("containerd://{uid}"),
            started: Timestamp::now(),
            name,
            uid,
        }
    }

    fn delete_by_force(&self, cell: &Cell) {
        let force = ["--force", "--grace-period=0", "--ignore-not-found"];
        let delete = ["-n", &cell.namespace, "delete", "pod", &self.name];
        cell.cluster.kubectl(&[&delete[..], &force[..]].concat());
    }

    fn patch(&self, cell: &Cell, status: &Value) {
        let status = json!({ "status": status }).to_string();
        cell.cluster.kubectl(&[
            "-n",
            &cell.namespace,
            "patch",
            "pod",
            &self.name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ]);
    }

    fn container(id: &str, state: &Value, last: &Value) -> Value {
        json!({"phase": "Running", "containerStatuses": [{"name": "ottoscaler", "image": "x",
            "imageID": "", "ready": true, "restartCount": 0, "containerID": id,
            "state": state, "lastState": last}]})
    }

    /// To be called when the replica's process starts.
    fn starts(&mut self) {
        self.started = Timestamp::now() + Duration::from_secs(1);
    }

    fn runs(&self, cell: &Cell) {
        let state = running(self.started);
        let status = Self::container(&self.container_id, &state, &json!({}));
        self.patch(cell, &status);
    }
}

fn running(since: Timestamp) -> Value {
    json!({"running": {"startedAt": format!("{since:.0}")}})
}

fn ended(id: &str, reason: &str) -> Value {
    json!({"terminated": {"exitCode": 137, "reason": reason, "containerID": id}})
}

/// Three replicas with pods.
struct Ward {
    cell: Cell,
    bodies: Vec<Body>,
}

impl Ward {
    fn open(namespace: &str) -> Self {
        let mut cell = Cell::without_replicas(namespace, QUICK);
        let mut bodies: Vec<Body> = (0..3).map(|n| Body::make(&cell, n)).collect();
        cell.pod_uids = bodies.iter().map(|b| b.uid.clone()).collect();
        for (n, body) in bodies.iter_mut().enumerate() {
            let replica = cell.replica(n);
            cell.replicas.push(replica);
            body.starts();
        }
        for replica in &cell.replicas {
            cell.wait_ready(&replica.address);
        }
        wait_for("a leader", SOON, || cell.leader());
        Self { cell, bodies }
    }

    fn leader(&self) -> (usize, String) {
        wait_for("a leader", SOON, || {
            Some((self.cell.leader()?, self.cell.holder()?))
        })
    }

    /// The leader, once what proves its death is on the Lease.
    fn marked_leader(&self) -> (usize, String) {
        wait_for("the leader's container is published", SOON, || {
            let (leader, holder) = self.leader();
            let lease = self.cell.lease()?;
            let id = lease["metadata"]["annotations"][PUBLISHED].as_str()?;
            let same = lease["spec"]["holderIdentity"] == holder.as_str();
            (same && id == self.bodies[leader].container_id).then_some((leader, holder))
        })
    }

    /// Replica `n` anew, in a new pod that runs.
    fn replace(&mut self, n: usize) {
        let cell = &mut self.cell;
        if cell.replicas[n].is_running() {
            cell.replicas[n].signal("KILL");
            cell.replicas[n].wait_exit();
        }
        self.bodies[n].delete_by_force(cell);
        self.bodies[n] = Body::make(cell, n);
        cell.pod_uids[n] = self.bodies[n].uid.clone();
        cell.replicas[n] = cell.replica(n);
        self.bodies[n].starts();
        self.bodies[n].runs(cell);
        cell.wait_ready(&cell.replicas[n].address);
    }
}

type Case = (&'static str, fn(&Cell, &Body));

const LOOK_ALIKES: [Case; 5] = [
    ("container-status-unknown", |cell, body| {
        let lost = ended(&body.container_id, "ContainerStatusUnknown");
        let status = Body::container(&body.container_id, &lost, &json!({}));
        body.patch(cell, &status);
    }),
    ("failed-by-the-pod-garbage-collector", |cell, body| {
        let condition = json!({"type": "DisruptionTarget", "status": "True",
            "reason": "DeletionByPodGC", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        body.patch(cell, &json!({"phase": "Failed", "conditions": [condition]}));
    }),
    ("deleted-by-force", |cell, body| body.delete_by_force(cell)),
    ("recurring-pod-name", |cell, body| {
        body.delete_by_force(cell);
        let next = Body::make(cell, body.name[8..].parse().unwrap());
        let death = ended(&body.container_id, "Error");
        next.patch(
            cell,
            &Body::container(&body.container_id, &death, &json!({})),
        );
    }),
    ("another-container-of-the-pod", |cell, body| {
        let former = ended("containerd://before", "Error");
        body.patch(
            cell,
            &Body::container(&body.container_id, &running(body.started), &former),
        );
    }),
];

const DEATHS: [Case; 2] = [
    ("container-ended", |cell, body| {
        let death = ended(&body.container_id, "Error");
        body.patch(
            cell,
            &Body::container(&body.container_id, &death, &json!({})),
        );
    }),
    ("container-ended-and-restarted", |cell, body| {
        let death = ended(&body.container_id, "OOMKilled");
        body.patch(
            cell,
            &Body::container("containerd://next", &running(body.started), &death),
        );
    }),
];

#[test]
fn what_looks_like_a_death_is_waited_out_and_a_death_is_not() {
    let mut ward = Ward::open("proofs");
    let mut rounds = 0;
    // No id published yet: whatever ends in that pod proves nothing.
    let (old, holder) = ward.leader();
    let published = ward.cell.lease().unwrap()["metadata"]["annotations"][PUBLISHED].clone();
    assert!(published.is_null(), "{published}");
    outwaits(&mut ward, old, &holder, "no-id-published", |cell, body| {
        let death = ended(&body.container_id, "Error");
        body.patch(
            cell,
            &Body::container(&body.container_id, &death, &json!({})),
        );
    });
    rounds += 1;
    for (n, body) in ward.bodies.iter().enumerate() {
        if n != old {
            body.runs(&ward.cell);
        }
    }
    ward.replace(old);
    for (case, look_alike) in LOOK_ALIKES {
        let (old, holder) = ward.marked_leader();
        outwaits(&mut ward, old, &holder, case, look_alike);
        ward.replace(old);
        rounds += 1;
    }
    for (case, die) in DEATHS {
        let (old, holder) = ward.marked_leader();
        ward.cell.replicas[old].signal("KILL");
        ward.cell.replicas[old].wait_exit();
        let died = Instant::now();
        die(&ward.cell, &ward.bodies[old]);
        let new = new_holder(&ward.cell, &holder);
        let took = died.elapsed();
        println!("{case}: {new} after {took:?}");
        assert!(took < WAITED_OUT, "{case}: waited for {took:?}");
        let answer = scale_up(&ward.cell, (old + 1) % 3, case, 2);
        assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), 2);
        ward.replace(old);
        rounds += 1;
    }
    assert_eq!(rounds, 1 + LOOK_ALIKES.len() + DEATHS.len());
    // In each a task was made by another term.
    let terms = wait_for("all terms are in the audit log", SOON, || {
        let terms = judge(&ward.cell, None).terms;
        (terms.len() >= rounds).then_some(terms)
    });
    assert_eq!(terms.len(), rounds, "{terms:?}");
    println!("{rounds} rounds, {} terms", terms.len());
}

/// The leader lives, stopped, and seems dead: its Lease stands for its whole time.
fn outwaits(ward: &mut Ward, old: usize, holder: &str, case: &str, look_alike: fn(&Cell, &Body)) {
    let cell = &mut ward.cell;
    cell.replicas[old].signal("STOP");
    let stopped = Instant::now();
    look_alike(cell, &ward.bodies[old]);
    let new = new_holder(cell, holder);
    let waited = stopped.elapsed();
    println!("{case}: {new} after {waited:?}");
    assert!(waited > WAITED_OUT, "{case}: taken after {waited:?}");
    cell.replicas[old].signal("CONT");
    no_longer_leads(cell, old);
    let answer = scale_up(cell, old, case, 2);
    assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), 2);
}
