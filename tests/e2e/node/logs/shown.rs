//! Logs as people see them: `ottoctl logs`.
use super::*;

#[test]
fn any_replica_shows_a_tasks_lines_as_they_come() {
    let i = installed();
    let (workers, lines) = (3, 100);
    let env = [("LINES", lines.to_string()), ("RATE", "20".into())];
    i.scale_up("shown", workers, &env);
    let replicas = i.three_replicas(SOON);
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

/// For ottoctl to end by itself.
const RETURNS: &str = "20";

#[test]
fn logs_without_follow_return_while_the_workers_run() {
    let i = installed();
    i.scale_up(
        "glanced",
        2,
        &shell(&format!("echo one; echo two; {WAITS}")),
    );
    i.wait_lines("glanced", 2, 2);
    let ctl = program("ottoctl");
    for (replica, address) in i.three_replicas(SOON) {
        let show = [&ctl, "--server", &address, "-o", "json", "logs", "glanced"];
        let out = i
            .cluster
            .try_run(&[&["timeout", RETURNS][..], &show].concat());
        let text = String::from_utf8(out.stdout).unwrap();
        assert_eq!(out.status.code(), Some(0), "{replica}: {text}");
        let lines: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        for worker in ["otto-agent-glanced-1", "otto-agent-glanced-2"] {
            let of = lines.iter().filter(|l| l["worker"] == worker);
            let messages: Vec<&Value> = of.map(|l| &l["message"]).collect();
            assert_eq!(messages, ["one", "two"], "{replica}");
        }
    }
    i.ottoctl(&i.service, &["cancel", "glanced"]);
}
