//! Writes of a former leader that take effect: where the fence policy is off, and
//! where an API server has not yet seen the Lease. What they change, and for how
//! long.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::Value;

use super::{
    faults::{QUICK, new_holder, no_longer_leads, scale_up},
    processes::{Cell, SOON},
    proxy::{Fault, Rule},
    server::SecondServer,
    support::{pass, wait_for},
};

const WORKERS: usize = 100;

/// The Lease's term, as writes carry it.
fn term(cell: &Cell) -> String {
    let lease = cell.lease().unwrap();
    format!(
        "{}/{}/{}",
        lease["metadata"]["uid"].as_str().unwrap(),
        lease["spec"]["leaseTransitions"].as_i64().unwrap_or(0),
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default()
    )
}

/// What became of one term's writes, since a moment, by the audit logs.
#[derive(Debug, Default)]
struct Fate {
    /// Pods that came into being, and when.
    made: BTreeMap<String, Timestamp>,
    /// The name was taken.
    taken: usize,
    /// The policy said no.
    fenced: usize,
    /// Other answers to creates.
    failed: usize,
    /// Status writes: accepted, and refused.
    stored: usize,
    refused: usize,
    /// Deletes of pods, whoever's, by name.
    deletes: BTreeMap<String, Vec<Timestamp>>,
}

impl Fate {
    fn of(cell: &Cell, logs: &[String], term: &str, since: Timestamp) -> Self {
        let mut fate = Self::default();
        for log in logs {
            for line in log.lines().filter(|l| l.contains(&cell.namespace)) {
                if let Ok(event) = serde_json::from_str(line) {
                    fate.add(&event, &cell.namespace, term, since);
                }
            }
        }
        fate
    }

    fn add(&mut self, event: &Value, namespace: &str, term: &str, since: Timestamp) {
        let of = &event["objectRef"];
        if event["stage"] != "ResponseComplete" || of["namespace"] != namespace {
            return;
        }
        let at: Timestamp = event["stageTimestamp"].as_str().unwrap().parse().unwrap();
        let asked = &event["requestObject"];
        let asked_for = || asked["metadata"]["name"].as_str();
        let name = of["name"].as_str().or_else(asked_for);
        let name = name.unwrap_or_default().to_owned();
        let code = event["responseStatus"]["code"].as_u64().unwrap_or(0);
        if at < since {
            return;
        }
        let resource = of["resource"].as_str().unwrap_or_default();
        match (resource, event["verb"].as_str().unwrap_or_default()) {
            ("pods", "delete") if code == 200 => self.deletes.entry(name).or_default().push(at),
            ("pods", "create")
                if asked["metadata"]["annotations"]["ottoscaler.io/term"] == term =>
            {
                match code {
                    201 => drop(self.made.insert(name, at)),
                    409 => self.taken += 1,
                    403 | 422 => self.fenced += 1,
                    _ => self.failed += 1,
                }
            }
            ("workertasks", "patch") if asked["status"]["term"] == term => match code {
                200 => self.stored += 1,
                _ => self.refused += 1,
            },
            _ => {}
        }
    }

    fn creates(&self) -> usize {
        self.made.len() + self.taken + self.fenced + self.failed
    }

    fn all_ended(&self) -> bool {
        self.made.keys().all(|name| self.deletes.contains_key(name))
    }

    /// How long each pod lived until somebody's `nth` delete of it: the first is
    /// when it was told to end, the last is its end.
    fn lives(&self, last: bool) -> Vec<Duration> {
        let ends = self.made.iter().map(|(name, made)| {
            let deletes = self.deletes[name].iter();
            let end = if last { deletes.max() } else { deletes.min() };
            // One server may answer the delete before another answers the create.
            Duration::try_from(end.unwrap().duration_since(*made)).unwrap_or_default()
        });
        let mut lives: Vec<Duration> = ends.collect();
        lives.sort();
        lives
    }

    fn tell(&self, case: &str, held: usize) {
        let told = |last| match self.lives(last).as_slice() {
            [] => "none".to_owned(),
            all => format!(
                "median {:.3} s, at most {:.3} s",
                all[all.len() / 2].as_secs_f64(),
                all[all.len() - 1].as_secs_f64()
            ),
        };
        println!(
            "{case}: {held} late writes; creates: {} took effect, {} found the name taken, {} refused by policy, {} failed; \
             late status writes: {} accepted, {} refused; told to end after {}, gone after {}",
            self.made.len(),
            self.taken,
            self.fenced,
            self.failed,
            self.stored,
            self.refused,
            told(false),
            told(true)
        );
    }
}

/// A ScaleUp whose leader stands still with its status write and all the creates
/// that it does at once on the way; another leader answers it. Returns the old
/// term, and how many writes are on the way.
fn stand_still_in_a_scale_up(
    cell: &Cell,
    old: usize,
    task: &str,
    stop: impl Fn(),
) -> (String, usize) {
    let (holder, term) = (cell.holder().unwrap(), term(cell));
    let other = (old + 1) % 3;
    // A first status waits for one that runs; a second one does not.
    scale_up(cell, other, task, 1);
    wait_for("a first status", SOON, || {
        (record(cell, task)["counts"]["running"] == 1).then_some(())
    });
    cell.proxies[old].set(vec![
        Rule::on("POST", "/pods", Fault::Hold),
        Rule::on("PATCH", "/status", Fault::Hold),
    ]);
    std::thread::scope(|s| {
        let ask = s.spawn(|| scale_up(cell, other, task, WORKERS));
        wait_for("writes are under way", SOON, || {
            let held = |rule| cell.proxies[old].held_by(rule);
            (held(0) > 0 && held(1) > 0).then_some(())
        });
        // And all that will come, before they are given up.
        pass(Duration::from_millis(500));
        stop();
        new_holder(cell, &holder);
        // With all names, or on a busy machine with those that were made in time.
        ask.join().unwrap();
    });
    wait_for("all workers are created", SOON, || {
        (cell.pods(task).len() == WORKERS).then_some(())
    });
    (term, cell.proxies[old].holding())
}

fn cancel(cell: &Cell, replica: usize, task: &str) {
    cell.ask(replica, &["cancel", task]);
    wait_for("no worker stays", SOON * 2, || {
        cell.pods(task).is_empty().then_some(())
    });
    wait_for("the task is cancelled", SOON, || {
        (record(cell, task)["phase"] == "Cancelled").then_some(())
    });
}

/// What is stored of a task, but for who was told of it.
fn record(cell: &Cell, task: &str) -> Value {
    let tasks = format!("/apis/ottoscaler.io/v1alpha1/namespaces/{}", cell.namespace);
    let mut object = cell
        .cluster
        .look(&format!("{tasks}/workertasks/{task}"))
        .unwrap();
    let mut status = object["status"].take();
    for worker in status["workers"].as_array_mut().into_iter().flatten() {
        let words = worker.as_str().unwrap().split(' ');
        let kept: Vec<_> = words.filter(|word| !word.starts_with("told=")).collect();
        *worker = kept.join(" ").into();
    }
    status["term"].take();
    status
}

#[test]
fn with_the_policy_off_late_creates_find_their_names_taken_or_are_removed() {
    let policy_off = "--set fence.policy.enabled=false";
    let mut cell = Cell::installed("open", QUICK, policy_off);
    cell.proxies = (0..3).map(|n| cell.proxy(n, &cell.kubeconfig)).collect();
    cell.start_replicas();
    for case in ["running", "cancelled", "forgotten"] {
        let old = cell.leader().unwrap();
        let other = (old + 1) % 3;
        let stop = || cell.replicas[old].signal("STOP");
        let (term, held) = stand_still_in_a_scale_up(&cell, old, case, stop);
        if case != "running" {
            cancel(&cell, other, case);
        }
        if case == "forgotten" {
            // As TASK_TTL does.
            cell.cluster
                .kubectl(&["-n", "open", "delete", "workertask", case]);
        }
        if case == "running" {
            // What pods show themselves is stored within a minute.
            wait_for("all run", SOON * 3, || {
                (record(&cell, case)["counts"]["running"] == WORKERS).then_some(())
            });
        }
        let before = (case != "forgotten").then(|| record(&cell, case));
        let since = Timestamp::now();
        // Now the old leader's writes arrive.
        cell.proxies[old].heal();
        let fate = || Fate::of(&cell, &[cell.audit_log()], &term, since);
        wait_for("each late write is answered", SOON, || {
            let now = fate();
            (now.creates() + now.stored + now.refused >= held).then_some(())
        });
        let left = if case == "running" { WORKERS } else { 0 };
        let fate = wait_for("what came late is removed", SOON * 2, || {
            let now = fate();
            (cell.pods(case).len() == left && now.all_ended()).then_some(now)
        });
        fate.tell(case, held);
        assert!(fate.creates() > 0, "{fate:?}");
        assert_eq!((fate.stored, fate.fenced, fate.failed), (0, 0, 0));
        assert!(fate.refused > 0, "no late status write: {fate:?}");
        let made = if case == "running" { 0 } else { fate.creates() };
        assert_eq!(fate.made.len(), made, "{fate:?}");
        if let Some(before) = before {
            assert!(record(&cell, case) == before, "the record changed");
        }
        cell.replicas[old].signal("CONT");
        no_longer_leads(&mut cell, old);
        if case == "running" {
            cancel(&cell, other, case);
        }
    }
}

#[test]
fn late_creates_at_a_server_that_wakes_up_with_an_old_lease_are_refused_or_removed() {
    let mut cell = Cell::installed("wake", QUICK, "");
    let second = SecondServer::start(&cell.cluster, cell.dir());
    let at_second = second.kubeconfig_of(&cell.kubeconfig, "ottoscaler");
    let servers = [&at_second, &cell.kubeconfig, &cell.kubeconfig];
    cell.proxies = (0..3).map(|n| cell.proxy(n, servers[n])).collect();
    // The leader to be is the one whose server is the second.
    cell.replicas.push(cell.replica(0));
    wait_for("it leads", SOON, || (cell.leader()? == 0).then_some(()));
    cell.start_replicas();
    // Makes the connections that late creates will go by.
    scale_up(&cell, 1, "before", WORKERS);
    cancel(&cell, 1, "before");

    let stop = || {
        second.signal("STOP");
        // Else it would give its writes up.
        cell.replicas[0].signal("STOP");
    };
    let (term, held) = stand_still_in_a_scale_up(&cell, 0, "wake", stop);
    cancel(&cell, 1, "wake");
    let before = record(&cell, "wake");
    let since = Timestamp::now();
    // They lie in the sockets of a server that does not read them yet.
    cell.proxies[0].heal();
    pass(Duration::from_millis(500));
    let woken = Instant::now();
    second.signal("CONT");
    let of_second = || std::fs::read_to_string(&second.audit_log).unwrap();
    let fate = || Fate::of(&cell, &[cell.audit_log(), of_second()], &term, since);
    wait_for("each late write is answered", SOON, || {
        let now = fate();
        (now.creates() + now.stored + now.refused >= held).then_some(())
    });
    println!("answered within {:?} of waking", woken.elapsed());
    let fate = wait_for("what came late is removed", SOON * 2, || {
        let now = fate();
        (cell.pods("wake").is_empty() && now.all_ended()).then_some(now)
    });
    fate.tell("a server that wakes up", held);
    assert_eq!(fate.stored, 0, "{fate:?}");
    assert!(fate.refused > 0, "no late status write: {fate:?}");
    assert!(fate.creates() > 0, "{fate:?}");
    assert!(record(&cell, "wake") == before, "the record changed");
    cell.replicas[0].signal("CONT");
    no_longer_leads(&mut cell, 0);
}
