//! A second API server on the fake cluster's etcd, started as the first was, with
//! a port and an audit log of its own.
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use kube::config::Kubeconfig;

use super::{
    processes::{SOON, free_port},
    support::{Cluster, wait_for},
};

/// Ends with the test.
#[derive(Debug)]
pub struct SecondServer {
    child: Child,
    address: String,
    dir: PathBuf,
    /// As admin.
    pub kubeconfig: String,
    pub audit_log: PathBuf,
}

impl Drop for SecondServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl SecondServer {
    /// Its files go into `dir`.
    pub fn start(cluster: &Cluster, dir: &Path) -> Self {
        let components = PathBuf::from(cluster.var("COMPONENTS"));
        let command = std::fs::read(components.join("apiserver")).unwrap();
        let command = String::from_utf8(command).unwrap();
        let mut command = command.split('\0').filter(|a| !a.is_empty());
        let (port, audit_log) = (free_port(), dir.join("audit-b.log"));
        let program = command.next().unwrap();
        let own = ["--secure-port=", "--audit-log-path="];
        let log = std::fs::File::create(dir.join("apiserver-b.log")).unwrap();
        let child = Command::new(program)
            .args(command.filter(|a| !own.iter().any(|own| a.starts_with(own))))
            .arg(format!("--secure-port={port}"))
            .arg(format!("--audit-log-path={}", audit_log.display()))
            // The Service `kubernetes` stays the first one's.
            .arg("--endpoint-reconciler-type=none")
            // `cluster.sh down` ends what has this mark.
            .env("OTTOSCALER_CLUSTER_DIR", components.parent().unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self {
            child,
            address: format!("https://127.0.0.1:{port}"),
            dir: dir.to_owned(),
            kubeconfig: String::new(),
            audit_log,
        };
        server.kubeconfig = server.kubeconfig_of(cluster.var("KUBECONFIG"), "admin");
        wait_for("the second API server is ready", SOON * 2, || {
            let args = ["kubectl", "--kubeconfig", &server.kubeconfig];
            let ready = [&args[..], &["get", "--raw", "/readyz"]].concat();
            cluster.try_run(&ready).status.success().then_some(())
        });
        server
    }

    /// Another's kubeconfig, with this server in it.
    pub fn kubeconfig_of(&self, kubeconfig: &str, name: &str) -> String {
        let original = Kubeconfig::read_from(kubeconfig).unwrap();
        let mut ours = serde_json::to_value(&original).unwrap();
        ours["clusters"][0]["cluster"]["server"] = self.address.clone().into();
        let path = self.dir.join(format!("{name}-b.kubeconfig"));
        std::fs::write(&path, ours.to_string()).unwrap();
        path.to_string_lossy().into_owned()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }
}
