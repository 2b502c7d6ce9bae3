//! Stock clients with the published service config: grpc-go, grpc-js, NestJS and tonic, from
//! the .proto files alone (`tests/clients`). They call every method, page through all workers,
//! and lose no call while replicas restart and leaders die. All of it is over TLS, with a token.
mod authority;
mod rotation;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ring::digest;

use self::authority::{Authority, NAME, put_file};
use super::{
    faults::{judge, new_holder},
    processes::{Cell, SOON},
    support::{count_of, is_full, pass, program, root, wait_for},
};

/// A call may last a minute, and a ScaleDown follows it.
const ENDS: Duration = Duration::from_secs(120);
/// Of each of the four clients: 20 ScaleUps a second in all, and a ScaleDown of every fourth
/// task.
const RATE: &str = "5";
const TOKEN: &str = "a-token-of-the-stock-clients";
/// Between two disturbances: clients use every replica again.
const CALM: Duration = Duration::from_secs(1);

/// Where the programs of the clients are, their token, and the certificates.
struct Clients {
    go: String,
    js: String,
    files: tempfile::TempDir,
    authority: Authority,
}

impl Clients {
    fn build() -> Self {
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("token"), TOKEN).unwrap();
        let hash = digest::digest(&digest::SHA256, TOKEN.as_bytes());
        let hash: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let known = format!("clients admin {hash}\n");
        std::fs::write(files.path().join("callers"), known).unwrap();
        let authority = Authority::new();
        let own = authority.issue(NAME, 2089);
        for (name, text) in [
            ("ca.crt", &authority.pem()),
            ("trusted.crt", &authority.pem()),
            ("tls.crt", &own.certificate),
            ("tls.key", &own.key),
        ] {
            put_file(files.path(), name, text);
        }
        Self {
            files,
            authority,
            go: format!("{}/client", built("tests/clients/build.sh")),
            js: format!("{}/dist/client.js", built("tests/nest/build.sh")),
        }
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).to_string_lossy().into_owned()
    }

    /// Every client, which calls these replicas in this mode; without a task, about one of its
    /// own.
    fn commands(
        &self,
        servers: &str,
        mode: &str,
        task: Option<&str>,
    ) -> Vec<(&'static str, Command)> {
        let protos = root().join("proto");
        let config = protos.join("ottoscaler/v1/service_config.json");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (protos, config) = (text(&protos), text(&config));
        let mut go = Command::new(&self.go);
        go.args(["--config", &config]);
        let js = |kind: &str| {
            let mut js = Command::new("node");
            js.arg(&self.js).env("CLIENT", kind);
            js.args(["--protos", &protos, "--config", &config]);
            js
        };
        let mut all = vec![
            ("go", go),
            ("grpc-js", js("grpc-js")),
            ("nest", js("nest")),
            ("tonic", Command::new(program("stock-client"))),
        ];
        for (name, command) in &mut all {
            let task = task.map_or_else(|| format!("stock-{name}"), str::to_owned);
            command
                .args(["--servers", servers, "--task", &task])
                .args(["--ca", &self.file("trusted.crt"), "--server-name", NAME])
                .args(["--token-file", &self.file("token")])
                .args(["--rate", RATE, mode])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
        }
        all
    }
}

/// Runs a script that builds programs, and returns where they are.
fn built(script: &str) -> String {
    let out = Command::new(root().join(script)).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{script}: {said}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A client that runs until its standard input ends. It is killed with the test.
struct Running {
    child: Child,
    lines: std::thread::JoinHandle<Vec<String>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let lines = std::thread::spawn(move || output.lines().map_while(Result::ok).collect());
        Self { child, lines }
    }

    /// Ends its input, and returns its lines once it has ended well.
    fn end(mut self, name: &str) -> Vec<String> {
        drop(self.child.stdin.take());
        let ended = wait_for("a client ends", ENDS, || self.child.try_wait().unwrap());
        let lines = self.lines.join().unwrap();
        assert!(ended.success(), "{name}: {lines:#?}");
        lines
    }
}

/// The words after this one, of the lines that begin with it.
fn said<'a>(lines: &'a [String], word: &str) -> Vec<&'a str> {
    let said = lines.iter().filter_map(|line| line.strip_prefix(word));
    said.map(str::trim).collect()
}

/// Three replicas that answer those who have the token of the clients.
fn start(namespace: &str, clients: &Clients) -> (Cell, Vec<u16>) {
    let [callers, certificate, key, authority] =
        ["callers", "tls.crt", "tls.key", "ca.crt"].map(|name| clients.file(name));
    let settings = [
        ("CALLERS", "static"),
        ("CALLERS_FILE", callers.as_str()),
        ("TLS_CERT_FILE", certificate.as_str()),
        ("TLS_KEY_FILE", key.as_str()),
        ("TLS_CA_FILE", authority.as_str()),
        ("REPLICAS_NAME", NAME),
        ("MAX_WORKERS", "100000"),
        ("TASK_TTL", "2h"),
        ("LOG_DRAIN_TIMEOUT", "1s"),
        ("LOG_LEVEL", "warn"),
    ];
    let cell = Cell::start(namespace, &settings);
    let port = |address: &str| address.rsplit_once(':').unwrap().1.parse().unwrap();
    let ports = cell.replicas.iter().map(|r| port(&r.address)).collect();
    (cell, ports)
}

fn addresses(cell: &Cell) -> String {
    let all = cell.replicas.iter().map(|r| r.address.as_str());
    all.collect::<Vec<_>>().join(",")
}

/// Restarts one replica after the other, each once the one before is ready again.
fn restart_all(cell: &mut Cell, ports: &[u16]) {
    for (n, port) in ports.iter().enumerate() {
        cell.replicas[n].signal("TERM");
        assert_eq!(cell.replicas[n].wait_exit(), 0, "replica {n} drains");
        cell.replicas[n] = cell.replica_at(n, *port);
        cell.wait_ready(&cell.replicas[n].address);
        pass(CALM);
    }
}

/// Kills the leader, and starts it again once another one leads.
fn kill_leader(cell: &mut Cell, ports: &[u16]) {
    let holder = wait_for("a leader", SOON, || cell.holder());
    let n = wait_for("a leader", SOON, || cell.leader());
    cell.replicas[n].signal("KILL");
    cell.replicas[n].wait_exit();
    new_holder(cell, &holder);
    cell.replicas[n] = cell.replica_at(n, ports[n]);
    cell.wait_ready(&cell.replicas[n].address);
    pass(CALM);
}

#[test]
fn stock_clients_call_every_method_and_lose_no_call_through_restarts_and_leader_kills() {
    let times = count_of("OTTO_TEST_CLIENT_CHANGES", if is_full() { 20 } else { 1 });
    let clients = Clients::build();
    let (mut cell, ports) = start("clients", &clients);
    let servers = addresses(&cell);
    for (name, command) in clients.commands(&servers, "methods", None) {
        let lines = Running::start(command).end(name);
        let ok: BTreeSet<&str> = said(&lines, "ok ").into_iter().collect();
        assert_eq!(ok.len(), 9, "{name}: {lines:#?}");
    }
    let began = Instant::now();
    let mut running: Vec<_> = clients
        .commands(&servers, "scale", None)
        .into_iter()
        .map(|(name, command)| (name, Running::start(command)))
        .collect();
    pass(CALM);
    for _ in 0..times {
        restart_all(&mut cell, &ports);
        kill_leader(&mut cell, &ports);
    }
    // All of them stop at once, so that the rate is that of the time before.
    for (_, client) in &mut running {
        drop(client.child.stdin.take());
    }
    let seconds = began.elapsed().as_secs_f64();
    let (accepted, failed) = accepted_and_failed(running);
    let rate = accepted.len() as f64 / seconds;
    println!(
        "clients: {} tasks in {seconds:.0} s ({rate:.1} a second), {times} rolling restarts, \
         {times} leader kills, {} failed calls",
        accepted.len(),
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:#?}");
    expect_stored(&cell, &accepted);
    let repeated: BTreeMap<_, _> = judge(&cell, None)
        .creates
        .into_iter()
        .filter(|(_, n)| *n > 1)
        .collect();
    assert!(repeated.is_empty(), "created twice: {repeated:?}");
}

/// Ends the clients, and returns the ids of the accepted tasks and the calls that failed.
fn accepted_and_failed(running: Vec<(&'static str, Running)>) -> (BTreeSet<String>, Vec<String>) {
    let (mut accepted, mut failed) = (BTreeSet::new(), vec![]);
    for (name, client) in running {
        let lines = client.end(name);
        let ids = said(&lines, "accepted ");
        println!("clients: {name}: {} tasks accepted", ids.len());
        assert!(!ids.is_empty(), "{name} did nothing");
        accepted.extend(ids.into_iter().map(str::to_owned));
        let calls = said(&lines, "failed ");
        failed.extend(calls.iter().map(|call| format!("{name}: {call}")));
    }
    (accepted, failed)
}

/// The stored tasks are those that were accepted. Those of the other modes have names without a
/// number.
fn expect_stored(cell: &Cell, accepted: &BTreeSet<String>) {
    let list = ["-n", &cell.namespace, "get", "workertasks"];
    let stored = cell.cluster.json(&list);
    let ids = stored["items"].as_array().unwrap().iter();
    let ids = ids.map(|task| task["spec"]["taskId"].as_str().unwrap().to_owned());
    let ids: BTreeSet<String> = ids
        .filter(|id| id.ends_with(|c: char| c.is_ascii_digit()))
        .collect();
    let (lost, unknown): (Vec<_>, Vec<_>) = (
        accepted.difference(&ids).collect(),
        ids.difference(accepted).collect(),
    );
    assert!(
        lost.is_empty() && unknown.is_empty(),
        "lost {lost:?}, unknown {unknown:?}"
    );
}

/// 30,000 workers in the full run, and more than a page in any.
#[test]
fn stock_clients_page_through_all_workers_that_the_audit_log_names() {
    let workers = count_of(
        "OTTO_TEST_PAGED_WORKERS",
        if is_full() { 30_000 } else { 2_100 },
    );
    let clients = Clients::build();
    let (cell, _) = start("pages", &clients);
    let (mut left, mut tasks) = (workers, 0);
    while left > 0 {
        let some = left.min(1_000);
        let (count, task) = (some.to_string(), format!("paged-{tasks}"));
        let args = [
            "scale-up",
            &task,
            "-n",
            &count,
            "--repository",
            "org/repo",
            "--commit",
            "abc",
        ];
        let no_node = ["--env", "OTTO_NODE_SELECTOR=kubernetes.io/arch=none"];
        // What is answered in part goes on.
        let token = ["--token", TOKEN];
        cell.ottoctl(tasks % 3, &[&args[..], &no_node, &token].concat());
        (left, tasks) = (left - some, tasks + 1);
    }
    let within = Duration::from_secs(60 + workers as u64 / 20);
    wait_for("each worker has its pod", within, || {
        pass(CALM);
        (judge(&cell, None).creates.len() >= workers).then_some(())
    });
    let created: BTreeSet<String> = judge(&cell, None).creates.into_keys().collect();
    assert_eq!(created.len(), workers);
    for (name, command) in clients.commands(&addresses(&cell), "pages", Some("")) {
        let lines = Running::start(command).end(name);
        let pods: Vec<&str> = said(&lines, "pod ");
        let pages = said(&lines, "pages ").concat();
        println!("clients: {name}: {} workers on {pages} pages", pods.len());
        assert!(pages.parse::<usize>().unwrap() > 1, "{name}: {pages}");
        assert_eq!(pods.len(), workers, "{name} got some twice, or not");
        let pods: BTreeSet<String> = pods.into_iter().map(str::to_owned).collect();
        assert_eq!(pods, created, "{name}");
    }
}
