//! The examples of the crate `fenced-lease` do what they say.
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use super::{SOON, wait_for};
use crate::support::{Cluster, target_dir};

/// An example that runs, and what it has printed.
struct Example {
    child: Child,
    printed: Arc<Mutex<Vec<String>>>,
}

impl Example {
    fn start(cluster: &Cluster, name: &str, args: &[&str]) -> Self {
        let mut child = Command::new(target_dir().join("debug/examples").join(name))
            .args(args)
            .env("KUBECONFIG", cluster.var("KUBECONFIG"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let printed: Arc<Mutex<Vec<String>>> = Arc::default();
        let (lines, to) = (
            BufReader::new(child.stdout.take().unwrap()).lines(),
            printed.clone(),
        );
        // Ends with the child.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                println!("{line}");
                to.lock().unwrap().push(line);
            }
        });
        Self { child, printed }
    }

    fn wait_printed(&self, text: &str) -> String {
        wait_for(text, SOON, || {
            let printed = self.printed.lock().unwrap();
            printed.iter().find(|line| line.contains(text)).cloned()
        })
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn wait(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn namespace(cluster: &Cluster, name: &str) {
    cluster.kubectl(&["create", "namespace", name]);
}

#[test]
fn the_example_elects_one_and_hands_over_to_the_other() {
    let cluster = Cluster::from_env("OTTO_TEST_FAKE");
    namespace(&cluster, "elects");
    let elect = |name| Example::start(&cluster, "elect", &["elects", "controller", name]);
    let mut first = elect("a");
    // No Lease is there: it is waited for.
    first.wait_printed("a leads");
    let second = elect("b");
    second.wait_printed("b follows a_");
    first.terminate();
    first.wait_printed("a no longer leads");
    second.wait_printed("b leads");
    assert!(first.wait());
    // It dies; the next one waits for the Lease to expire.
    let third = elect("c");
    third.wait_printed("c follows b_");
    drop(second);
    let leads = third.wait_printed("c leads");
    assert!(leads.contains("/2/c_"), "{leads}");
    cluster.kubectl(&["delete", "namespace", "elects", "--wait=false"]);
}

#[test]
fn the_example_fences_what_a_former_leader_writes() {
    let cluster = Cluster::from_env("OTTO_TEST_FAKE");
    namespace(&cluster, "fences");
    let mut fence = Example::start(&cluster, "fence", &["fences", "controller"]);
    fence.wait_printed("old writes in its term");
    let late = fence.wait_printed("old writes late:");
    assert!(late.contains("no longer leads"), "{late}");
    let later = fence.wait_printed("old writes later still: 403");
    assert!(later.contains("is over, the Lease says"), "{later}");
    fence.wait_printed("new writes in its term");
    assert!(fence.wait());
    let maps = cluster.json(&["-n", "fences", "get", "configmaps", "-l", "fenced=true"]);
    let names: Vec<&str> = maps["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|map| map["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["by-new", "by-old"]);
    let policy = "fences.controller";
    cluster.kubectl(&["delete", "validatingadmissionpolicy", policy]);
    cluster.kubectl(&["delete", "validatingadmissionpolicybinding", policy]);
    cluster.kubectl(&["delete", "namespace", "fences", "--wait=false"]);
}
