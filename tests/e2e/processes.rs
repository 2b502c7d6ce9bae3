//! Replicas as processes on the fake cluster, each as its ServiceAccount.
use std::{
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    proxy::Proxy,
    support::{Cluster, cluster_sh, program, root, wait_for},
};

pub const SOON: Duration = Duration::from_secs(30);

/// A process of ours; ends with the test.
pub struct Process {
    child: Child,
    pub address: String,
    /// Of its metrics; empty: it has none.
    metrics: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A metric's value; 0 while it has none.
    pub fn metric(&self, line: &str) -> f64 {
        self.metrics([line])[0]
    }

    /// Several, of one moment.
    pub fn metrics<const N: usize>(&self, lines: [&str; N]) -> [f64; N] {
        let url = format!("http://{}/metrics", self.metrics);
        let out = Command::new("curl")
            .args(["-fsS", "--max-time", "5", &url])
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        lines.map(|line| {
            let found = text.lines().find_map(|l| l.strip_prefix(line));
            found.map_or(0.0, |value| value.trim().parse().unwrap())
        })
    }

    pub fn wait_exit(&mut self) -> i32 {
        wait_for("the process ended", SOON, || self.child.try_wait().unwrap())
            .code()
            .unwrap_or(-1)
    }
}

/// One that no outgoing connection may take before its process does: below the
/// range that the kernel picks from.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 50).unwrap() * 200;
    (0..10_000)
        .map(|_| 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}

/// Three replicas and a recording handler in a namespace of their own.
pub struct Cell {
    pub cluster: Cluster,
    pub namespace: String,
    pub replicas: Vec<Process>,
    /// One before each replica, or none at all.
    pub proxies: Vec<Proxy>,
    pub record: PathBuf,
    /// Of the replicas' pods, where they have some.
    pub pod_uids: Vec<String>,
    /// Of the ServiceAccount.
    pub kubeconfig: String,
    settings: Vec<(String, String)>,
    handler: Process,
    /// Bytes of the audit log before it.
    pub audit_from: u64,
}

impl Cell {
    pub fn start(namespace: &str, settings: &[(&str, &str)]) -> Self {
        Self::with(namespace, settings, false)
    }

    /// With a proxy before each replica.
    pub fn proxied(namespace: &str, settings: &[(&str, &str)]) -> Self {
        Self::with(namespace, settings, true)
    }

    fn with(namespace: &str, settings: &[(&str, &str)], proxied: bool) -> Self {
        let mut cell = Self::without_replicas(namespace, settings);
        if proxied {
            cell.proxies = (0..3).map(|n| cell.proxy(n, &cell.kubeconfig)).collect();
        }
        cell.release_lease();
        cell.start_replicas();
        cell
    }

    /// As a former leader leaves it, so that the first one need not wait.
    fn release_lease(&self) {
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "ottoscaler-leader",
                "annotations": {"ottoscaler.io/released-by": "nobody"}},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 1, "leaseTransitions": 0}});
        put(self, &["apply"], &lease);
    }

    /// A proxy for replica `n`, before the server of `kubeconfig`.
    pub fn proxy(&self, n: usize, kubeconfig: &str) -> Proxy {
        Proxy::start(kubeconfig, self.dir(), &format!("proxy-{n}"))
    }

    /// Those that do not run yet.
    pub fn start_replicas(&mut self) {
        for n in self.replicas.len()..3 {
            let replica = self.replica(n);
            self.replicas.push(replica);
        }
        for replica in &self.replicas {
            self.wait_ready(&replica.address);
        }
        wait_for("a leader", SOON, || self.leader());
    }

    /// Namespace, rights, CRD, fence, flow schema and handler only.
    pub fn without_replicas(namespace: &str, settings: &[(&str, &str)]) -> Self {
        Self::installed(namespace, settings, "")
    }

    /// The same, with more flags for the chart.
    pub fn installed(namespace: &str, settings: &[(&str, &str)], flags: &str) -> Self {
        let cluster = Cluster::from_env("OTTO_TEST_FAKE");
        let audit_from = cluster.audit_size();
        // All but its Deployment, which runs nothing here.
        let flags = format!("--set replicas=1 {flags}");
        let out = Command::new("make")
            .current_dir(root())
            .args([
                "-s",
                "install",
                &format!("NAME={}", cluster.name),
                &format!("NAMESPACE={namespace}"),
            ])
            .arg(format!("HELM_FLAGS={flags}"))
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        cluster.kubectl(&["-n", namespace, "delete", "deployment", "ottoscaler"]);
        let kubeconfig = cluster_sh(&["kubeconfig-for", &cluster.name, namespace, "ottoscaler"])
            .output()
            .unwrap();
        let kubeconfig = String::from_utf8(kubeconfig.stdout)
            .unwrap()
            .trim()
            .to_owned();

        let dir = std::env::temp_dir().join(format!("otto-{}-{namespace}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let record = dir.join("handler.jsonl");
        let handler = format!("127.0.0.1:{}", free_port());
        let child = Command::new(program("recording-handler"))
            .args([
                "serve",
                "--listen",
                &handler,
                "--out",
                &record.to_string_lossy(),
            ])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let handler = Process {
            child,
            address: handler,
            metrics: String::new(),
        };
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        Self {
            cluster,
            namespace: namespace.to_owned(),
            replicas: vec![],
            proxies: vec![],
            pod_uids: vec![],
            record,
            kubeconfig,
            settings: settings.iter().map(own).collect(),
            handler,
            audit_from,
        }
    }

    /// The audit log since this cell began.
    pub fn audit_log(&self) -> String {
        self.cluster.audit_since(self.audit_from)
    }

    /// What the audit log says of the calls that have ended and whose events have this text.
    pub fn audited(&self, about: &str) -> Vec<Value> {
        let log = self.audit_log();
        let events = log.lines().filter(|l| l.contains(about));
        let events = events.filter_map(|l| serde_json::from_str::<Value>(l).ok());
        events
            .filter(|e| e["stage"] == "ResponseComplete")
            .collect()
    }

    /// The ends of the replicas' logs, for who reads why a test failed.
    fn show_logs(&self) {
        for n in 0..3 {
            let log = self.dir().join(format!("replica-{n}.log"));
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("replica-{n}, the end of {} lines:", lines.len());
            for line in &lines[lines.len().saturating_sub(12)..] {
                eprintln!("  {}", line.chars().take(300).collect::<String>());
            }
        }
    }

    /// Of what this test leaves on disk.
    pub fn dir(&self) -> &Path {
        self.record.parent().unwrap()
    }

    /// Starts replica `n`; also anew, with another identity.
    pub fn replica(&self, n: usize) -> Process {
        self.replica_at(n, free_port())
    }

    /// The same on a port that clients know.
    pub fn replica_at(&self, n: usize, port: u16) -> Process {
        let (health, metrics) = (free_port(), free_port());
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir().join(format!("replica-{n}.log")))
            .unwrap();
        let proxied = self.proxies.get(n).map(|p| p.kubeconfig.as_os_str());
        let child = Command::new(program("ottoscaler"))
            .env(
                "KUBECONFIG",
                proxied.unwrap_or_else(|| self.kubeconfig.as_ref()),
            )
            .env("NAMESPACE", &self.namespace)
            .env("POD_NAME", format!("replica-{n}"))
            .env("GRPC_PORT", port.to_string())
            .env("HEALTH_PORT", health.to_string())
            .env("METRICS_PORT", metrics.to_string())
            .env("OTTO_HANDLER_HOST", &self.handler.address)
            .env("LOG_FORMAT", "text")
            .envs(self.pod_uids.get(n).map(|uid| ("POD_UID", uid)))
            .envs(self.settings.iter().cloned())
            .stderr(log)
            .spawn()
            .unwrap();
        Process {
            child,
            address: format!("127.0.0.1:{port}"),
            metrics: format!("127.0.0.1:{metrics}"),
        }
    }

    pub fn wait_ready(&self, address: &str) {
        wait_for("a replica is ready", SOON, || {
            self.is_serving(address, "readiness").then_some(())
        });
    }

    /// What the kubelet would hear of a replica's `liveness` or `readiness`.
    pub fn probe(&self, replica: usize, service: &str) -> bool {
        self.is_serving(&self.replicas[replica].address, service)
    }

    fn is_serving(&self, address: &str, service: &str) -> bool {
        let mut probe = vec![
            "grpc-health-probe".to_owned(),
            format!("-addr={address}"),
            format!("-service={service}"),
        ];
        if let Some((ca, name)) = self.tls() {
            probe.push("-tls".to_owned());
            probe.push(format!("-tls-ca-cert={ca}"));
            probe.push(format!("-tls-server-name={name}"));
        }
        let probe: Vec<&str> = probe.iter().map(String::as_str).collect();
        self.cluster.try_run(&probe).status.success()
    }

    /// The CA file and the name of the replicas, where they serve TLS.
    fn tls(&self) -> Option<(&str, &str)> {
        let value = |name| {
            let (_, value) = self.settings.iter().find(|(n, _)| n == name)?;
            Some(value.as_str())
        };
        Some((value("TLS_CA_FILE")?, value("REPLICAS_NAME")?))
    }

    pub fn lease(&self) -> Option<Value> {
        self.cluster.lease(&self.namespace)
    }

    /// Whose identity the Lease has.
    pub fn holder(&self) -> Option<String> {
        let holder = self.lease()?["spec"]["holderIdentity"].as_str()?.to_owned();
        (!holder.is_empty()).then_some(holder)
    }

    /// The replica that holds the Lease.
    pub fn leader(&self) -> Option<usize> {
        self.holder()?
            .strip_prefix("replica-")?
            .split('_')
            .next()?
            .parse()
            .ok()
    }

    pub fn ottoctl(&self, replica: usize, args: &[&str]) -> (i32, String, String) {
        let tls = self
            .tls()
            .map(|(ca, name)| ["--ca-file", ca, "--server-name", name]);
        let out = Command::new(program("ottoctl"))
            .args(["--server", &self.replicas[replica].address, "-o", "json"])
            .args(tls.into_iter().flatten())
            .args(args)
            .output()
            .unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        (
            out.status.code().unwrap_or(-1),
            text(out.stdout),
            text(out.stderr),
        )
    }

    pub fn ask(&self, replica: usize, args: &[&str]) -> Value {
        let (code, out, err) = self.ottoctl(replica, args);
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    }

    pub fn pods(&self, task: &str) -> Vec<Value> {
        self.cluster.pods(&self.namespace, "task-id", task)
    }

    /// Nobody runs these pods: says for the kubelet that they succeeded.
    pub fn succeed(&self, pod: &str) {
        let status = r#"{"status":{"phase":"Succeeded","containerStatuses":[{"name":"worker","image":"x","imageID":"","ready":false,"restartCount":0,"state":{"terminated":{"exitCode":0,"reason":"Completed"}}}]}}"#;
        self.cluster.kubectl(&[
            "-n",
            &self.namespace,
            "patch",
            "pod",
            pod,
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ]);
    }

    pub fn audit(&self, task: &str, creates: usize, terms: usize) {
        let user = format!("system:serviceaccount:{}:ottoscaler", self.namespace);
        let out = Command::new(program("audit-checker"))
            .args([
                "--log",
                &self.cluster.audit_log().to_string_lossy(),
                "--from",
                &self.audit_from.to_string(),
                "--user",
                &user,
                "--task",
                task,
            ])
            .args([
                "--expect-creates",
                &creates.to_string(),
                "--min-terms",
                &terms.to_string(),
            ])
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stdout)
        );
    }

    pub fn notified(&self, worker: &str) -> Vec<String> {
        let text = std::fs::read_to_string(&self.record).unwrap_or_default();
        let records = text
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let mut seen: Vec<String> = Vec::new();
        for r in records.filter(|r| r["kind"] == "notify" && r["worker"] == worker) {
            let status = r["status"].as_str().unwrap().to_owned();
            if !seen.contains(&status) {
                seen.push(status);
            }
        }
        seen
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // Ends the replicas first, so that nothing writes while it goes.
        self.replicas.clear();
        if std::thread::panicking() {
            self.show_logs();
        } else {
            if let Some(dir) = self.record.parent() {
                let _ = std::fs::remove_dir_all(dir);
            }
            // What the chart made outside the namespace goes too.
            let _ =
                self.cluster
                    .try_run(&["helm", "uninstall", "ottoscaler", "-n", &self.namespace]);
            let _ = self.cluster.try_run(&[
                "kubectl",
                "delete",
                "namespace",
                &self.namespace,
                "--wait=false",
            ]);
        }
    }
}

/// Puts an object into the cell's namespace, as admin.
pub fn apply(cell: &Cell, object: &Value) {
    put(cell, &["apply"], object);
}

/// The same by another verb of kubectl.
pub fn put(cell: &Cell, verb: &[&str], object: &Value) {
    let args = [&["kubectl", "-n", &cell.namespace], verb, &["-f", "-"]].concat();
    let mut put = cell
        .cluster
        .command(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let text = object.to_string();
    put.stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(put.wait().unwrap().success());
}

/// The fence policy that the chart installs into this namespace.
pub fn fence_policy(namespace: &str) -> String {
    format!("{namespace}.ottoscaler-fence")
}
