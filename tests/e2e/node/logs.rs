//! Logs: what otto-handler got, held against what the printers wrote on the node.
use serde_json::{Value, json};

use super::{DONE, Installed, SOON, installed, program, wait_for};

/// Puts otto-handler's manners right again, whatever happened.
struct Manners<'a>(&'a Installed);

impl Drop for Manners<'_> {
    fn drop(&mut self) {
        self.0.handler_is(&json!({}));
    }
}

impl Installed {
    /// Workers of a task that printed all there is.
    fn succeeded(&self, task: &str) -> u64 {
        let status = self.ottoctl(&self.service, &["status", task]);
        status["succeeded"].as_u64().unwrap_or(0)
    }

    fn records(&self, task: &str, is: impl Fn(&Value) -> bool) -> usize {
        let text = std::fs::read_to_string(self.truth().join("handler.jsonl")).unwrap();
        let ours = text.lines().filter(|l| l.contains(task));
        ours.filter_map(|l| serde_json::from_str(l).ok())
            .filter(|r| is(r))
            .count()
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
    wait_for("entries without an answer", SOON, || {
        (i.records("habit-mute", |r| r["answer"] == "none") == 2_000).then_some(())
    });
    drop(manners);
    i.wait_done("habit-mute", 5);
    let verdict = i.judge_logs("habit-mute", 5, 2_000, &[]);
    assert_eq!(verdict["recorded"], 2_000);
}

#[test]
fn any_replica_shows_a_tasks_lines_as_they_come() {
    let i = installed();
    let (workers, lines) = (3, 100);
    let env = [("LINES", lines.to_string()), ("RATE", "20".into())];
    i.scale_up("shown", workers, &env);
    let replicas = wait_for("three ready replicas", SOON, || {
        Some(i.replicas()).filter(|r| r.len() == 3)
    });
    let ctl = program("ottoctl");
    let shown: Vec<Vec<Value>> = std::thread::scope(|scope| {
        let show = |(_, address): &(String, String)| {
            let args = [
                &ctl, "--server", address, "-o", "json", "logs", "-f", "shown",
            ];
            let out = i.cluster.run(&args);
            out.lines()
                .map(|l| serde_json::from_str(l).unwrap())
                .collect()
        };
        let all: Vec<_> = replicas
            .iter()
            .map(|r| scope.spawn(move || show(r)))
            .collect();
        all.into_iter().map(|s| s.join().unwrap()).collect()
    });
    for shown in shown {
        assert_eq!(shown.len(), workers * lines);
        for worker in 1..=workers {
            let name = format!("otto-agent-shown-{worker}");
            let of = shown.iter().filter(|l| l["worker"] == *name);
            let texts: Vec<&str> = of.map(|l| l["message"].as_str().unwrap()).collect();
            let truth = std::fs::read_to_string(i.truth().join(format!("{name}.truth"))).unwrap();
            let printed = truth.lines().filter_map(|l| l.strip_prefix("stdout "));
            assert_eq!(texts, printed.collect::<Vec<_>>());
        }
    }
    // They are with otto-handler then.
    i.wait_done("shown", workers as u64);
    let out = i
        .cluster
        .run(&[&ctl, "--server", &i.service, "-o", "json", "logs", "shown"]);
    let note: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(note["kind"], "NOTE", "{note}");
}

/// The node rotates a log of 500 KiB, and looks every 10 s.
#[test]
fn lines_rotated_away_while_the_handler_was_away_are_one_gap_each() {
    let i = installed();
    let (task, workers, lines) = ("rotated", 20, 6_000);
    let manners = Manners(i);
    let env = [
        ("LINES", lines.to_string()),
        ("RATE", "200".into()),
        ("LENGTH", "400".into()),
    ];
    i.scale_up(task, workers, &env);
    // From its first lines on it is away; each worker prints 2.4 MB in 30 s.
    wait_for("each worker's first lines", SOON, || {
        let told = i.records(task, |r| r["kind"] == "log" && r["answer"] == "ack");
        (told > workers * 20).then_some(())
    });
    i.handler_is(&json!({"away": true}));
    wait_for("every worker ended", DONE, || {
        (i.succeeded(task) == workers as u64).then_some(())
    });
    drop(manners);
    i.wait_done(task, workers as u64);
    // Those are tried again less and less.
    wait_for("every end notified", DONE, || {
        let told = i.records(task, |r| r["status"] == "COMPLETED");
        (told == workers).then_some(())
    });
    let verdict = i.judge_logs(task, workers, workers * lines, &["--gaps-each", "1"]);
    let told = verdict["told"].as_u64().unwrap();
    assert!(told > 0, "nothing was rotated away");
    assert_eq!(
        verdict["recorded"].as_u64().unwrap() + told,
        verdict["printed"].as_u64().unwrap()
    );
}
