//! A cluster that `tests/run.sh` started, and what tests do with it.
//!
//! Tests look and set up as admin; Ottoscaler acts as its ServiceAccount.
use std::{
    collections::HashMap,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

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

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[derive(Debug)]
pub struct Cluster {
    pub name: String,
    pub env: HashMap<String, String>,
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

/// A release program that `make build` made.
pub fn program(name: &str) -> String {
    let target = std::env::var("CARGO_TARGET_DIR").expect("CARGO_TARGET_DIR: run by `make test`");
    let path = PathBuf::from(target).join("release").join(name);
    assert!(path.exists(), "{} is not built: make build", path.display());
    path.to_string_lossy().into_owned()
}
