//! A cluster that `tests/run.sh` started, and what tests do with it.
//!
//! Tests look and set up as admin; Ottoscaler acts as its ServiceAccount.
use std::{
    collections::HashMap,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ottoscaler_partners::tail::read_from;
use serde_json::Value;

/// The only pause of the tests: between two looks at a fact. Most looks are a process of
/// their own, and lanes share the processors: the longer it takes, the fewer looks.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_millis(400);

/// Looks until `fact` holds.
pub fn wait_for<T>(what: &str, within: Duration, mut fact: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    let mut pause = FIRST_LOOK;
    loop {
        if let Some(found) = fact() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(LAST_LOOK);
    }
}

/// The same, where what does not hold tells why.
pub fn wait_for_ok<T>(
    what: &str,
    within: Duration,
    mut fact: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + within;
    wait_for(what, 2 * within, || match fact() {
        Ok(found) => Some(found),
        Err(why) => {
            assert!(
                Instant::now() < deadline,
                "not within {within:?}: {what}: {why}"
            );
            None
        }
    })
}

/// A count that the full run sets by an environment variable.
pub fn count_of(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// The full run, as `tests/long.sh` does it.
pub fn is_full() -> bool {
    std::env::var_os("OTTO_TEST_FULL").is_some()
}

/// For a fault that must last: here time itself is the fact.
pub fn pass(time: Duration) {
    let until = Instant::now() + time;
    wait_for("time passes", time + Duration::from_secs(5), || {
        (Instant::now() >= until).then_some(())
    });
}

/// To a moment, sharper than looks are: where the moment is what is tried out.
pub fn until(moment: Instant) {
    let left = || moment.saturating_duration_since(Instant::now());
    while !left().is_zero() {
        std::thread::park_timeout(left());
    }
}

/// The checkout that is tested; another one may have built this program.
pub fn root() -> PathBuf {
    let cargo = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by `cargo test`");
    let package = PathBuf::from(cargo);
    // `src/ottoscaler` of the checkout.
    package.join("../..").canonicalize().expect("the checkout")
}

#[derive(Debug)]
pub struct Cluster {
    pub name: String,
    pub env: HashMap<String, String>,
    access: OnceLock<Access>,
}

/// How curl reaches the API server as admin.
#[derive(Debug)]
struct Access {
    flags: Vec<String>,
    server: String,
    _files: tempfile::TempDir,
}

impl Cluster {
    /// The cluster named by an environment variable that `tests/run.sh` sets;
    /// without it the test cannot say anything, and fails.
    pub fn from_env(variable: &str) -> Self {
        let name = std::env::var(variable)
            .unwrap_or_else(|_| panic!("{variable} is not set: run the tests by `make test`"));
        let out = cluster_sh(&["env", &name]).output().unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let env = String::from_utf8(out.stdout).unwrap();
        let env = env.lines().filter_map(|l| {
            let (key, value) = l.split_once('=')?;
            Some((key.to_owned(), value.trim_matches('\'').to_owned()))
        });
        Self {
            name,
            env: env.collect(),
            access: OnceLock::new(),
        }
    }

    pub fn var(&self, key: &str) -> &str {
        self.env
            .get(key)
            .unwrap_or_else(|| panic!("cluster.sh env does not tell {key}"))
    }

    /// A command inside the cluster's network.
    pub fn command(&self, args: &[&str]) -> Command {
        let within = self.var("RUN").split_whitespace();
        let mut words = within.chain(args.iter().copied());
        let mut command = Command::new(words.next().unwrap());
        let path = std::env::var("PATH").unwrap();
        command
            .args(words)
            .stdin(Stdio::null())
            .env("PATH", format!("{}{path}", self.var("TOOLS")))
            .env("KUBECONFIG", self.var("KUBECONFIG"))
            .env("KUBECACHEDIR", self.var("KUBECACHEDIR"));
        let helm = std::path::Path::new(self.var("KUBECACHEDIR")).with_file_name("helm");
        for kind in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{kind}_HOME"), &helm);
        }
        command
    }

    pub fn try_run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn run(&self, args: &[&str]) -> String {
        let out = self.try_run(args);
        assert!(
            out.status.success(),
            "{args:?}: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }

    pub fn kubectl(&self, args: &[&str]) -> String {
        self.run(&[&["kubectl"], args].concat())
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// What the API server has there; None: it has nothing, or does not answer. For what is
    /// looked at often: a kubectl costs ten times as much.
    pub fn look(&self, path: &str) -> Option<Value> {
        let access = self.access.get_or_init(|| self.access());
        let url = format!("{}{path}", access.server);
        let flags = access.flags.iter().map(String::as_str);
        let curl = ["curl", "-fsS", "--max-time", "5", &url];
        let out = self.try_run(&curl.into_iter().chain(flags).collect::<Vec<_>>());
        serde_json::from_slice(&out.stdout).ok()
    }

    pub fn lease(&self, namespace: &str) -> Option<Value> {
        self.look(&format!(
            "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/ottoscaler-leader"
        ))
    }

    /// Pods with a label of this value.
    pub fn pods(&self, namespace: &str, label: &str, value: &str) -> Vec<Value> {
        let label = label.replace('/', "%2F");
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={label}%3D{value}");
        let within = Duration::from_secs(30);
        let list = wait_for("the API server lists pods", within, || self.look(&path));
        list["items"].as_array().unwrap().clone()
    }

    fn access(&self) -> Access {
        let view = ["config", "view", "--raw", "--minify", "--flatten"];
        let config = self.json(&view);
        let files = tempfile::tempdir().unwrap();
        let mut flags = Vec::new();
        let (cluster, user) = (
            &config["clusters"][0]["cluster"],
            &config["users"][0]["user"],
        );
        for (flag, data) in [
            ("--cacert", &cluster["certificate-authority-data"]),
            ("--cert", &user["client-certificate-data"]),
            ("--key", &user["client-key-data"]),
        ] {
            let file = files.path().join(&flag[2..]);
            let data = BASE64_STANDARD.decode(data.as_str().unwrap()).unwrap();
            std::fs::write(&file, data).unwrap();
            flags.extend([flag.to_owned(), file.to_string_lossy().into_owned()]);
        }
        Access {
            flags,
            server: cluster["server"].as_str().unwrap().to_owned(),
            _files: files,
        }
    }

    /// An HTTP GET through the cluster's network, as JSON.
    pub fn get(&self, url: &str) -> Option<Value> {
        let out = self.try_run(&["curl", "-fsS", "--max-time", "5", url]);
        serde_json::from_slice(&out.stdout).ok()
    }

    /// Stops, kills, pauses, resumes or starts a part of the control plane.
    pub fn component(&self, what: &str, component: &str) {
        let out = cluster_sh(&["component", &self.name, what, component])
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }

    pub fn audit_log(&self) -> PathBuf {
        self.var("AUDIT_LOG").into()
    }

    /// Bytes of the audit log so far: what follows is of the time after.
    pub fn audit_size(&self) -> u64 {
        std::fs::metadata(self.audit_log()).unwrap().len()
    }

    pub fn audit_since(&self, size: u64) -> String {
        read_from(&self.audit_log(), size).unwrap()
    }
}

pub fn cluster_sh(args: &[&str]) -> Command {
    let mut command = Command::new(root().join("deploy/local/cluster.sh"));
    command.args(args).stdin(Stdio::null());
    command
}

pub fn target_dir() -> PathBuf {
    let target = std::env::var("CARGO_TARGET_DIR").expect("CARGO_TARGET_DIR: run by `make test`");
    PathBuf::from(target)
}

/// A release program that `make build` made.
pub fn program(name: &str) -> String {
    let path = target_dir().join("release").join(name);
    assert!(path.exists(), "{} is not built: make build", path.display());
    path.to_string_lossy().into_owned()
}
