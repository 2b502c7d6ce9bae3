//! Logs: what otto-handler got, held against what the printers wrote on the node.
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Seek as _, SeekFrom},
    time::{Duration, Instant},
};

use ottoscaler_partners::audit;
use serde_json::{Value, json};

use super::{
    DONE, Installed, NAMESPACE, SOON, installed,
    matrix::{WAITS, shell},
    program, wait_for,
};
use crate::support::count_of;

mod beside;
mod shown;

/// Of the record, where its newest lines are looked for.
const TAIL: u64 = 64 * 1024;

/// Lines a second of a printer while leaders change.
const RATE: usize = 50;

/// Seconds of lines that the successor of a killed leader may repeat.
const REPEATED: f64 = 2.5;

/// Lines a second that any node serves in the end.
const SERVED: usize = 2_000;

fn printing(lines: usize, rate: usize, length: usize) -> [(&'static str, String); 3] {
    [
        ("LINES", lines.to_string()),
        ("RATE", rate.to_string()),
        ("LENGTH", length.to_string()),
    ]
}

/// The same, but only the first line until `release`: a busy kubelet tells late that a
/// container runs, and until then nobody reads what may be rotated soon.
fn printing_held(lines: usize, rate: usize, length: usize) -> Vec<(&'static str, String)> {
    let mut env = printing(lines, rate, length).to_vec();
    env.push(("HOLD", GO.to_owned()));
    env
}

const GO: &str = "go";

/// How a printer's lines begin.
fn numbered(pod: &str, lines: usize) -> Vec<String> {
    (1..=lines).map(|n| format!("{pod} {n}")).collect()
}

/// Puts otto-handler's manners right again, whatever happened.
struct Manners<'a>(&'a Installed);

impl Drop for Manners<'_> {
    fn drop(&mut self) {
        self.0.handler_is(&json!({}));
    }
}

/// Brings the replicas back, whatever happened.
pub(super) struct Nobody<'a>(&'a Installed);

impl Drop for Nobody<'_> {
    fn drop(&mut self) {
        self.0.replicas_are(3);
    }
}

impl Installed {
    /// Takes all replicas away; nobody reads a log until what it returns is dropped.
    pub(super) fn without_replicas(&self) -> Nobody<'_> {
        let nobody = Nobody(self);
        self.replicas_are(0);
        wait_for("no replica is left", DONE, || {
            let label = "app.kubernetes.io/name";
            let pods = self.cluster.pods(NAMESPACE, label, "ottoscaler");
            pods.is_empty().then_some(())
        });
        nobody
    }

    fn replicas_are(&self, count: usize) {
        let to = format!("--replicas={count}");
        let scale = ["-n", NAMESPACE, "scale", "deployment/ottoscaler", &to];
        self.cluster.kubectl(&scale);
    }

    /// Workers of a task that printed all there is.
    fn succeeded(&self, task: &str) -> u64 {
        let status = self.ottoctl(&self.service, &["status", task]);
        status["succeeded"].as_u64().unwrap_or(0)
    }

    fn records(&self, task: &str, is: impl Fn(&Value) -> bool) -> usize {
        self.record(task).filter(is).count()
    }

    fn wait_records(&self, what: &str, task: &str, count: usize, is: impl Fn(&Value) -> bool) {
        let (mut record, mut got) = (self.record(task), 0);
        wait_for(what, DONE, || {
            got += record.by_ref().filter(&is).count();
            (got == count).then_some(())
        });
    }

    /// otto-handler has so many lines of each worker.
    fn wait_lines(&self, task: &str, workers: usize, each: usize) {
        let (mut record, mut lines) = (self.record(task), BTreeMap::<String, usize>::new());
        let within = DONE + Duration::from_secs(workers as u64);
        wait_for("each worker's first lines", within, || {
            for record in record.by_ref().filter(|r| r["kind"] == "log") {
                let worker = record["worker"].as_str().unwrap();
                *lines.entry(worker.to_owned()).or_default() += 1;
            }
            let begun = lines.values().filter(|n| **n >= each).count();
            (begun == workers).then_some(())
        });
    }

    /// Asks for workers that print, and lets them go on once each is followed.
    fn begin_together(&self, task: &str, workers: usize, env: &[(&str, String)]) {
        let go = self.truth().join(GO);
        let _ = std::fs::remove_file(&go);
        self.scale_up(task, workers, env);
        self.wait_lines(task, workers, 1);
        std::fs::write(go, "").unwrap();
    }

    /// The lines of a task's only worker with such metadata, each once and in order:
    /// their first two words.
    fn lines_of(&self, task: &str, is: impl Fn(&Value) -> bool) -> Vec<String> {
        let mut lines = BTreeMap::new();
        for record in self
            .record(task)
            .filter(|r| r["answer"] == "ack" && is(&r["metadata"]))
        {
            let number = |key: &str| record["metadata"][key].as_str()?.parse::<u64>().ok();
            let words: Vec<&str> = record["message"].as_str().unwrap().split(' ').collect();
            let at = (number("epoch"), number("sequence"));
            lines.entry(at).or_insert_with(|| words[..2].join(" "));
        }
        lines.into_values().collect()
    }

    /// The leader that sent the newest line of a task, as the Lease names it.
    fn newest_sender(&self, task: &str) -> Option<String> {
        let mut record = std::fs::File::open(self.record_file()).ok()?;
        let length = record.metadata().ok()?.len();
        record
            .seek(SeekFrom::Start(length.saturating_sub(TAIL)))
            .ok()?;
        let mut text = Vec::new();
        record.read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text);
        let newest = text.lines().rev().filter(|l| l.contains(task));
        let terms = newest.filter_map(|l| {
            let record: Value = serde_json::from_str(l).ok()?;
            let term = record["metadata"]["leader-term"].as_str()?;
            // `<lease>/<transitions>/<holder>`.
            Some(term.rsplit('/').next()?.to_owned())
        });
        terms.take(1).next()
    }
}

#[test]
fn a_handler_of_any_habit_gets_every_line() {
    let i = installed();
    let manners = Manners(i);
    for (name, behaviour) in [
        ("count", json!({"sequence": "count"})),
        ("zero", json!({"sequence": "zero"})),
        ("retry", json!({"retry_every": 7})),
        ("throttle", json!({"throttle_ms": 5})),
        ("headers", json!({"late_headers": true})),
    ] {
        i.handler_is(&behaviour);
        let task = format!("habit-{name}");
        i.scale_up(&task, 5, &[("LINES", "400".into()), ("RATE", "200".into())]);
        i.wait_done(&task, 5);
        let verdict = i.judge_logs(&task, 5, 2_000, &[]);
        assert_eq!(verdict["recorded"], 2_000);
        let retried = i.records(&task, |r| r["answer"] == "retry");
        assert_eq!(retried > 0, name == "retry");
    }
    // One that answers nothing is left when LOG_ACK_TIMEOUT is over, and asked again.
    i.handler_is(&json!({"mute": true}));
    i.scale_up("habit-mute", 5, &[("LINES", "400".into())]);
    i.wait_records("entries without an answer", "habit-mute", 2_000, |r| {
        r["answer"] == "none"
    });
    drop(manners);
    i.wait_done("habit-mute", 5);
    let verdict = i.judge_logs("habit-mute", 5, 2_000, &[]);
    assert_eq!(verdict["recorded"], 2_000);
}

/// The node rotates a log of 500 KiB, and looks every 10 s.
#[test]
fn lines_rotated_away_while_nobody_read_are_one_gap_each() {
    let i = installed();
    let (task, workers, lines) = ("rotated", 20, 6_000);
    // Each prints 2.4 MB in 30 s.
    i.begin_together(task, workers, &printing_held(lines, 200, 400));
    i.wait_lines(task, workers, 20);
    i.replicas_are(0);
    let nobody = Nobody(i);
    wait_for("every worker printed all", DONE, || {
        (i.finished(task) == workers).then_some(())
    });
    drop(nobody);
    i.three_replicas(DONE);
    i.wait_done(task, workers as u64);
    let verdict = i.judge_logs(task, workers, workers * lines, &["--gaps-each", "1"]);
    let told = verdict["told"].as_u64().unwrap();
    assert!(told > 0, "nothing was rotated away");
    assert_eq!(
        verdict["recorded"].as_u64().unwrap() + told,
        verdict["printed"].as_u64().unwrap()
    );
}

/// What the node rotates away meanwhile, and more, waits on the leader's disk.
#[test]
fn while_the_handler_is_away_lines_wait_and_none_is_lost() {
    let i = installed();
    let (task, workers) = ("away", 20);
    let away = Duration::from_secs(count_of("OTTO_TEST_AWAY_S", 30) as u64);
    let lines = 100 * (away.as_secs() as usize + 10);
    let manners = Manners(i);
    i.begin_together(task, workers, &printing_held(lines, 100, 400));
    i.wait_lines(task, workers, 20);
    let (leader, before) = (i.leader().unwrap(), i.leader_resident());
    i.handler_is(&json!({"away": true}));
    let since = Instant::now();
    let mut most = before;
    let mut rotated = BTreeSet::new();
    wait_for("its time is over", 2 * away, || {
        most = most.max(i.leader_resident());
        rotated.append(&mut i.rotated(task));
        (since.elapsed() > away).then_some(())
    });
    drop(manners);
    let back = Instant::now();
    wait_for("every worker printed all", DONE, || {
        rotated.append(&mut i.rotated(task));
        (i.finished(task) == workers).then_some(())
    });
    i.wait_done(task, workers as u64);
    println!(
        "{task}: {} s away, the leader's memory {} KiB before, {} KiB at most; all taken {} s after",
        away.as_secs(),
        before,
        most,
        back.elapsed().as_secs()
    );
    assert_eq!(
        i.leader(),
        Some(leader),
        "another leader has another memory"
    );
    assert!(
        most - before <= 64 * 1024,
        "{before} KiB grew to {most} KiB"
    );
    // Those are tried again less and less.
    i.wait_records("every end notified", task, workers, |r| {
        r["status"] == "COMPLETED"
    });
    let rotations = rotated.len() as u64;
    assert!(rotations >= workers as u64, "{rotations} were rotated");
    let last_lines = i.truth().join("away.rotated");
    std::fs::write(&last_lines, Vec::from_iter(rotated).join("\n")).unwrap();
    let known = ["--rotated", &*last_lines.to_string_lossy()];
    let verdict = i.judge_logs(task, workers, workers * lines, &known);
    let missed = verdict["at_rotations"].as_u64().unwrap();
    println!("{task}: {missed} line(s) missed at {rotations} rotations");
    assert!(missed * 20 <= rotations);
    let recorded = verdict["recorded"].as_u64().unwrap();
    assert_eq!(recorded + missed, verdict["printed"].as_u64().unwrap());
}

/// SIGKILL to the leader's container, again and again.
#[test]
fn leaders_killed_again_and_again_lose_no_line() {
    let i = installed();
    let kills = count_of("OTTO_TEST_LOG_KILLS", 2);
    let killed = RefCell::new(vec![]);
    let change = |holder: &str| {
        let leader = i.kill_leader();
        i.wait_term_after(holder);
        // A busy machine ends terms too, and these are no kills.
        let is_one = holder.starts_with(&format!("{leader}_"));
        if is_one {
            killed.borrow_mut().push(holder.to_owned());
        }
        is_one
    };
    let verdict = change_leaders(i, "kills", kills, change, || {
        let killed = killed.borrow();
        killed
            .iter()
            .map(|holder| format!("--killed={holder}"))
            .collect()
    });
    let each_second = (count_of("OTTO_TEST_LOG_WORKERS", 20) * RATE) as f64;
    let seconds = |repeats: &str| verdict[repeats].as_f64().unwrap() / each_second;
    let most = seconds("repeats_after_kill");
    println!("kills: of a killed leader {most:.2} s of lines were repeated at most");
    let lost = seconds("repeats_after_loss");
    println!("kills: of one that lost the Lease {lost:.2} s of lines were repeated at most");
    assert_eq!(verdict["killed"], kills, "{verdict}");
    assert!(most <= REPEATED, "{verdict}");
}

#[test]
fn leaders_that_hand_over_again_and_again_repeat_no_line() {
    let i = installed();
    let (task, handovers) = ("handovers", count_of("OTTO_TEST_LOG_HANDOVERS", 2));
    let change = |holder: &str| {
        let leader = holder.split('_').next().unwrap();
        let delete = ["-n", NAMESPACE, "delete", "pod", leader, "--wait=false"];
        i.cluster.kubectl(&delete);
        i.wait_term_after(holder);
        // A busy machine ends terms too, and these are no handovers.
        let audit = i.cluster.audit_since(i.began(task).audit);
        audit::released(&audit).contains(holder)
    };
    let verdict = change_leaders(i, task, handovers, change, Vec::new);
    let released = verdict["released"].as_u64().unwrap();
    assert!(released >= handovers as u64, "{verdict}");
    assert_eq!(verdict["repeats_after_release"], 0, "{verdict}");
}

/// Many workers print 50 lines a second for as long as leaders change: each holder of the
/// Lease that has sent some is changed, until `change` says so often that it did. `more` is
/// for log-checker.
fn change_leaders(
    i: &Installed,
    task: &str,
    changes: usize,
    change: impl Fn(&str) -> bool,
    more: impl FnOnce() -> Vec<String>,
) -> Value {
    let workers = count_of("OTTO_TEST_LOG_WORKERS", 20);
    // For as long as the changes take; the more print, the longer.
    let lines = RATE * (15 + count_of("OTTO_TEST_LOG_CHANGE_S", 10) * changes);
    // Two hundred containers that print keep a small node from starting the others, and
    // have no place there if each asks for 10m.
    let mut env = printing_held(lines, RATE, 80);
    env.push(("OTTO_CPU_REQUEST", "1m".to_owned()));
    i.begin_together(task, workers, &env);
    let (mut made, mut during, mut before) = (0, 0, String::new());
    while made < changes {
        let holder = wait_for("lines of this leader", DONE, || {
            let holder = i.holder().filter(|h| *h != before);
            match i.finished(task) == workers {
                true => Some(None),
                false => Some(holder).filter(|h| h.is_some() && *h == i.newest_sender(task)),
            }
        });
        let Some(holder) = holder else { break };
        wait_for("another replica is ready", DONE, || {
            (i.replicas().len() >= 2).then_some(())
        });
        let is_one = change(&holder);
        let is_under_way = i.finished(task) < workers;
        made += usize::from(is_one);
        during += usize::from(is_one && is_under_way);
        println!("{task}: {made} changes of {changes}, under way: {is_under_way}");
        before = holder;
    }
    let within = DONE + Duration::from_secs((lines / RATE) as u64);
    wait_for("all lines are printed", within, || {
        (i.finished(task) == workers).then_some(())
    });
    // What a small node could not serve in that time comes after it.
    let within = DONE + Duration::from_secs((workers + workers * lines / SERVED) as u64);
    i.wait_done_within(task, workers as u64, within);
    let more = more();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let verdict = i.judge_logs(task, workers, workers * lines, &more);
    assert_eq!(verdict["recorded"], verdict["printed"]);
    i.check_audit(task, workers, 2);
    assert!(
        during * 10 >= changes * 8,
        "{during} of {changes} during the lines"
    );
    i.three_replicas(DONE);
    verdict
}

#[test]
fn an_api_server_and_a_kubelet_that_restart_lose_no_line() {
    let i = installed();
    let (task, workers, lines) = ("restarting", 20, 1_500);
    i.scale_up(task, workers, &printing(lines, 50, 80));
    for component in ["apiserver", "kubelet"] {
        let before = i.printed(task);
        wait_for("more lines", SOON, || {
            (i.printed(task) > before + 1_000).then_some(())
        });
        i.cluster.component("kill", component);
        i.cluster.component("start", component);
        wait_for("it serves again", SOON, || {
            let out = i.cluster.try_run(&["kubectl", "get", "--raw", "/readyz"]);
            out.status.success().then_some(())
        });
    }
    assert!(
        i.printed(task) < workers * lines,
        "the lines ended before the faults"
    );
    i.wait_done(task, workers as u64);
    i.check_logs(task, workers, workers * lines);
}

#[test]
fn workers_that_live_for_a_moment_lose_no_line() {
    let i = installed();
    let (task, lines) = ("moment", 6);
    let workers = count_of("OTTO_TEST_SHORT_WORKERS", 40);
    // 100 ms from the first line to the last.
    i.scale_up(task, workers, &printing(lines, 50, 80));
    let within = DONE + Duration::from_secs(2 * workers as u64);
    wait_for("every worker succeeded and went", within, || {
        let all = i.succeeded(task) == workers as u64;
        (all && i.worker_pods(task) == 0).then_some(())
    });
    i.check_logs(task, workers, workers * lines);
}

#[test]
fn an_init_container_that_fails_tells_its_lines() {
    let i = installed();
    i.scale_up("init-fails", 1, &[]);
    wait_for("the worker failed and went", DONE, || {
        let status = i.ottoctl(&i.service, &["status", "init-fails"]);
        (status["failed"] == 1 && i.worker_pods("init-fails") == 0).then_some(())
    });
    let lines = i.lines_of("init-fails", |m| m["container"] == "prepare");
    assert_eq!(lines, numbered("otto-agent-init-fails-1", 30));
}

#[test]
fn a_container_that_restarts_tells_the_lines_of_each_run() {
    let i = installed();
    let env = [("LINES", "40"), ("RATE", "10"), ("EXIT_CODE", "1")];
    let env = env.map(|(k, v)| (k, v.to_owned()));
    i.scale_up("restarts", 1, &env);
    wait_for("its third run", DONE, || {
        let third = i.lines_of("restarts", |m| m["restart"] == "2");
        (!third.is_empty()).then_some(())
    });
    i.ottoctl(&i.service, &["cancel", "restarts"]);
    for run in ["0", "1"] {
        let lines = i.lines_of("restarts", |m| m["restart"] == run);
        assert_eq!(lines, numbered("otto-agent-restarts-1", 40), "run {run}");
    }
}
