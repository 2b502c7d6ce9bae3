//! Logs of many workers: kwok serves one file as the log of every worker of the namespace
//! `log-kills` (tests/served_logs.sh).
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::scale_up;
use crate::{
    processes::{Cell, SOON},
    support::{count_of, pass, program, until, wait_for, wait_for_ok},
};

const NAMESPACE: &str = "log-kills";
const TASK: &str = "kills";
/// Lines a second of each worker.
const RATE: usize = 4;
/// Seconds of lines that the successor of a killed leader may repeat.
const REPEATED: f64 = 2.5;
/// What otto-handler has is stored after so long.
const STORED: Duration = Duration::from_secs(2);
/// How old the newest lines that otto-handler took may be where nothing is held up.
const FRESH: usize = 2 * RATE;
/// Of a worker, at the end of the record: about half a second of its lines.
const TAIL: usize = 1024;

/// The file that every worker prints.
struct Printed {
    file: File,
    lines: AtomicUsize,
    ended: AtomicBool,
}

impl Printed {
    fn begin() -> Self {
        let path = std::env::var("OTTO_TEST_LOG_FILE")
            .expect("OTTO_TEST_LOG_FILE is not set: run the tests by `make test`");
        let file = OpenOptions::new().append(true).open(path).unwrap();
        file.set_len(0).unwrap();
        let printed = Self {
            file,
            lines: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        };
        printed.line();
        printed
    }

    fn line(&self) {
        let n = self.lines.load(Ordering::Relaxed) + 1;
        let line = format!("{:.9} stdout F {}\n", Timestamp::now(), text(n));
        (&self.file).write_all(line.as_bytes()).unwrap();
        self.lines.store(n, Ordering::Relaxed);
    }

    fn go_on(&self) {
        let mut next = Instant::now();
        while !self.ended.load(Ordering::Relaxed) {
            until(next);
            self.line();
            next += Duration::from_secs(1) / RATE as u32;
        }
    }

    fn count(&self) -> usize {
        self.lines.load(Ordering::Relaxed)
    }
}

fn text(line: usize) -> String {
    format!("line {line} of what every worker prints, as long as many a line of a build is")
}

/// Which line that record is.
fn number(record: &Value) -> Option<usize> {
    let text = record["message"].as_str()?;
    text.split(' ').nth(1)?.parse().ok()
}

/// The newest records of otto-handler, without the notifications.
fn newest(cell: &Cell, workers: usize) -> Vec<Value> {
    let mut file = File::open(&cell.record).unwrap();
    let length = file.metadata().unwrap().len();
    let from = length.saturating_sub((TAIL * workers) as u64);
    file.seek(SeekFrom::Start(from)).unwrap();
    let mut text = Vec::new();
    file.read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text);
    let records = text.lines().filter_map(|l| serde_json::from_str(l).ok());
    records.filter(|r: &Value| r["kind"] == "log").collect()
}

/// The leader and its identity, once it follows all workers and otto-handler has what they
/// printed just now; else what is wrong.
fn settled(cell: &Cell, printed: &Printed, workers: usize) -> Result<(usize, String), String> {
    let leader = cell.leader().zip(cell.holder());
    let (leader, holder) = leader.ok_or("nobody leads")?;
    let follows = cell.replicas[leader].metric("ottoscaler_log_follows ");
    if follows < workers as f64 {
        return Err(format!("{holder} follows {follows}"));
    }
    let since = printed.count().saturating_sub(FRESH);
    let newest = newest(cell, workers);
    let is_new = |r: &Value| {
        let term = r["metadata"]["leader-term"].as_str();
        term.is_some_and(|t| t.ends_with(&holder)) && number(r).is_some_and(|n| n >= since)
    };
    match newest.iter().find(|r| !is_new(r)) {
        None if newest.is_empty() => Err("no line came".to_owned()),
        None => Ok((leader, holder)),
        Some(old) => Err(format!("at line {since}: {old}")),
    }
}

/// What each worker printed, where log-checker looks for it.
fn truth(cell: &Cell, workers: usize, lines: usize) -> PathBuf {
    let dir = cell.dir().join("truth");
    fs::create_dir_all(&dir).unwrap();
    let all: String = (1..=lines)
        .map(|n| format!("stdout {}\n", text(n)))
        .collect();
    for worker in 1..=workers {
        fs::write(dir.join(format!("otto-agent-{TASK}-{worker}.truth")), &all).unwrap();
    }
    dir
}

fn judge(cell: &Cell, workers: usize, lines: usize) -> Value {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let out = Command::new(program("log-checker"))
        .args(["--truth", &path(truth(cell, workers, lines))])
        .args(["--record", &path(cell.record.clone())])
        .args(["--prefix", &format!("otto-agent-{TASK}-")])
        .args(["--expect-workers", &workers.to_string()])
        .args(["--min-lines", &(workers * lines).to_string()])
        .args(["--audit", &path(cell.cluster.audit_log())])
        .args(["--audit-from", &cell.audit_from.to_string()])
        .args(["--allow-unfinished", "--json"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}");
    println!("{TASK}: {}", text.trim());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_killed_leaders_successor_repeats_few_lines_of_many_workers() {
    let workers = count_of("OTTO_TEST_MANY_LOGS", 40);
    let kills = count_of("OTTO_TEST_MANY_LOGS_KILLS", 2);
    let printed = Printed::begin();
    let mut cell = Cell::start(NAMESPACE, &[("MAX_WORKERS", "2000")]);
    let began = Instant::now();
    let within = SOON + Duration::from_millis(300 * workers as u64);
    std::thread::scope(|s| {
        s.spawn(|| printed.go_on());
        // Also where something fails.
        let _end = End(&printed);
        cell.ask(0, &scale_up(TASK, &workers.to_string()));
        for kill in 1..=kills {
            let (leader, holder) =
                wait_for_ok("all lines come as they are printed", within, || {
                    settled(&cell, &printed, workers)
                });
            // It caught up with what was printed while nobody led: many seconds of lines at once.
            pass(STORED);
            println!(
                "{TASK}: {kill} of {kills} kills: {holder} at line {}",
                printed.count()
            );
            cell.replicas[leader].signal("KILL");
            cell.replicas[leader].wait_exit();
            cell.replicas[leader] = cell.replica(leader);
            wait_for("another leader", SOON, || {
                cell.holder().filter(|h| *h != holder)
            });
        }
    });
    let (lines, time) = (printed.count(), began.elapsed());
    wait_for("the last line of each worker", within, || {
        (taken(&cell, lines) >= workers).then_some(())
    });
    let verdict = judge(&cell, workers, lines);
    assert_eq!(verdict["recorded"], verdict["printed"]);
    let each_second = (workers * lines) as f64 / time.as_secs_f64();
    let seconds = verdict["repeats_after_kill"].as_f64().unwrap() / each_second;
    println!("{TASK}: a successor of {kills} repeated {seconds:.2} s of lines at most");
    assert!(seconds <= REPEATED, "{seconds} s");
    cell.audit(TASK, workers, 1 + kills);
    check_writes(&cell);
    check_rights(&cell);
}

/// A replica may write the shards and no other ConfigMap, and only in its term.
fn check_rights(cell: &Cell) {
    let refused = |args: &[&str]| {
        let kubectl = ["kubectl", "--kubeconfig", &cell.kubeconfig, "-n", NAMESPACE];
        let out = cell.cluster.try_run(&[&kubectl, args].concat());
        assert!(!out.status.success(), "{args:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    let shards = [
        "get",
        "configmaps",
        "-l",
        "app.kubernetes.io/component=log-checkpoints",
    ];
    let shards = cell
        .cluster
        .json(&[&["-n", NAMESPACE][..], &shards].concat());
    let shard = shards["items"][0]["metadata"]["name"].as_str().unwrap();
    let late = r#"{"metadata": {"annotations": {"ottoscaler.io/term": "former/1/leader"}}}"#;
    let said = refused(&["patch", "configmap", shard, "--type=merge", "-p", late]);
    assert!(
        said.contains("ottoscaler fence: the term former/1/leader is over"),
        "{said}"
    );
    for args in [
        &["create", "configmap", "another"][..],
        &["get", "configmap", "kube-root-ca.crt"],
        &["get", "configmaps"],
        &["delete", "configmap", shard],
    ] {
        let said = refused(args);
        assert!(said.contains("is forbidden: User"), "{args:?}: {said}");
    }
}

/// Checkpoints are written to few objects, each once a second at most, and to no pod.
fn check_writes(cell: &Cell) {
    let user = format!("system:serviceaccount:{NAMESPACE}:ottoscaler");
    let log = cell.audited(&user);
    let writes = log.iter().filter(|e| e["verb"] == "patch");
    let mut shards: BTreeMap<(&str, &str), Vec<Timestamp>> = BTreeMap::new();
    for event in writes {
        let of = &event["objectRef"];
        assert_ne!(of["resource"], "pods", "{event}");
        if of["resource"] == "configmaps" {
            let term = &event["requestObject"]["metadata"]["annotations"]["ottoscaler.io/term"];
            let at = event["requestReceivedTimestamp"].as_str().unwrap();
            let shard = (of["name"].as_str().unwrap(), term.as_str().unwrap());
            shards.entry(shard).or_default().push(at.parse().unwrap());
        }
    }
    let names: BTreeSet<&str> = shards.keys().map(|(name, _)| *name).collect();
    println!(
        "{TASK}: {} writes of {} shards",
        shards.values().map(Vec::len).sum::<usize>(),
        names.len()
    );
    assert!((1..=16).contains(&names.len()), "{names:?}");
    for (shard, mut at) in shards {
        at.sort();
        // But for how late each came.
        let seconds = at[at.len() - 1].duration_since(at[0]).as_secs_f64();
        assert!(at.len() as f64 <= seconds + 2.0, "{shard:?}: {at:?}");
    }
}

/// How often otto-handler took that line.
fn taken(cell: &Cell, line: usize) -> usize {
    let text = format!("\"line {line} of ");
    let mut count = Command::new("grep");
    count.args(["-cF", &text]).arg(&cell.record);
    let out = count.output().unwrap();
    String::from_utf8(out.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// Ends the printing.
struct End<'a>(&'a Printed);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}
