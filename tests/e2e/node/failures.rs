//! The failure matrix: pods as Ottoscaler writes them.
use std::{sync::OnceLock, time::Duration};

use jiff::SignedDuration;
use serde_json::json;

use super::{
    DONE, SOON, installed,
    matrix::{End, Lines, Matrix, shell, time, with},
    mutated,
    policies::{Policy, add, put_in_force},
    wait_for,
};

/// How long the kubelet is in the dark before its first try: longer than a pull is tried.
const LATE: Duration = Duration::from_secs(50);
const LATE_IMAGE: &str = "docker.io/local/late:1";

/// The tasks of this matrix and of the one under a mutating policy, which start together.
pub(super) fn matrix() -> Matrix {
    static STARTED: OnceLock<Matrix> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let i = installed();
        put_in_force(
            i,
            &[an_init_container_that_fails(), a_slow_init_container()],
        );
        let plain = Matrix { i, prefix: "fail-" };
        let late = vec![("OTTO_IMAGE", LATE_IMAGE.to_owned())];
        plain.scale_up("late", &with(late, "OTTO_COMMAND", "echo it came"));
        // Its image comes while other tests wait.
        std::thread::spawn(move || the_image_comes_after_the_first_error(plain));
        plain.start();
        mutated::matrix().start();
        plain
    })
}

/// Before the worker of one task.
fn an_init_container_that_fails() -> Policy {
    let mesh = json!([{"name": "mesh", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", "exit 3"]}]);
    Policy {
        name: "init",
        tasks: "fail-init",
        patches: format!(
            "[{}]",
            add("/spec/initContainers", "spec.initContainers", &mesh)
        ),
        adds: "mesh",
    }
}

fn a_slow_init_container() -> Policy {
    let wait = format!("sleep {}", LATE.as_secs());
    let slow = json!([{"name": "slow", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", wait]}]);
    Policy {
        name: "slow",
        tasks: "fail-late",
        patches: format!(
            "[{}]",
            add("/spec/initContainers", "spec.initContainers", &slow)
        ),
        adds: "slow",
    }
}

fn the_image_comes_after_the_first_error(plain: Matrix) {
    wait_for(
        "the kubelet's first try of the late image",
        LATE + DONE,
        || plain.kubelets_word("late", "ErrImagePull"),
    );
    let busybox = "docker.io/library/busybox:latest";
    let tag = ["ctr", "-n", "k8s.io", "images", "tag", busybox, LATE_IMAGE];
    let status = plain.i.on_node(&tag).status().unwrap();
    assert!(status.success());
}

#[test]
fn an_exit_code_is_kept_and_not_tried_again() {
    matrix().exit_code();
}

#[test]
fn a_worker_out_of_memory_is_oom_killed_and_not_tried_again() {
    matrix().out_of_memory();
}

#[test]
fn a_worker_evicted_for_its_own_limit_is_not_tried_again() {
    matrix().evicted_for_its_own_volume();
}

#[test]
fn an_image_that_cannot_be_pulled_fails_within_a_minute_with_the_kubelets_reason() {
    matrix().pull();
}

/// The kubelet's next try finds it.
#[test]
fn an_image_that_comes_after_the_first_error_is_waited_for_however_late_that_was() {
    let m = matrix();
    wait_for("its image came, and it succeeded", LATE + 2 * DONE, || {
        let w = m.worker("late");
        assert_ne!(w["status"], "Failed", "{w}");
        (w["status"] == "Succeeded").then_some(())
    });
    assert_eq!(m.worker("late")["attempt"], 1);
    m.told("late", "COMPLETED");
    let line = || m.i.record("fail-late").find(|r| r["message"] == "it came");
    wait_for("its line", SOON, line);
}

/// A name that is none to the kubelet only: it reads 64 digits as an id. Begun when
/// the node has little else to do.
#[test]
fn an_invalid_image_name_is_told_within_two_seconds_of_the_pods_start() {
    let m = matrix();
    let image = "0123456789abcdef".repeat(4);
    m.scale_up("invalid", &vec![("OTTO_IMAGE", image)]);
    m.fails_once(
        "invalid",
        &End {
            reason: "InvalidImageName",
            kubelet: "InvalidImageName",
            ..End::default()
        },
    );
    let taken = m.kubelets_word("invalid", "").unwrap();
    let told = time(&m.told("invalid", "FAILED")["at"]).duration_since(taken);
    let said = m.kubelets_word("invalid", "InvalidImageName").unwrap();
    println!(
        "invalid: told {told:#} after the kubelet took the pod, which said so after {:#}",
        said.duration_since(taken)
    );
    assert!(told <= SignedDuration::from_secs(2), "{told:#}");
}

#[test]
fn a_passed_deadline_ends_a_worker_for_good() {
    matrix().deadline();
}

#[test]
fn a_program_that_cannot_start_fails_with_the_reason() {
    matrix().start_error();
}

#[test]
fn an_init_container_that_fails_is_named_with_its_exit_code() {
    matrix().init_container("mesh", Lines::None);
}

#[test]
fn a_worker_that_nobody_schedules_says_so_at_once() {
    matrix().nobody_schedules();
}

#[test]
fn a_worker_deleted_by_hand_is_tried_again_once_it_is_gone() {
    matrix().deleted_by_hand();
}

#[test]
fn a_worker_that_vanished_is_tried_again_and_is_no_success() {
    matrix().vanished();
}

/// The kubelet removes the containers of a pod that it evicts, and answers a read of their
/// logs with words of its own.
#[test]
fn the_log_of_an_evicted_worker_that_nobody_read_is_told_as_a_gap() {
    let m = Matrix {
        i: installed(),
        prefix: "unread-",
    };
    let go = m.i.truth().join("unread");
    let _ = std::fs::remove_file(&go);
    let waits = "until [ -e /truth/unread ]; do sleep 0.1; done; echo nobody reads this";
    let full = format!("{waits}; dd if=/dev/zero of=/workspace/f bs=1M count=8; sleep 600");
    m.scale_up("evict", &with(shell(&full), "OTTO_WORKSPACE_SIZE", "1Mi"));
    m.runs("evict", 1);
    let nobody = m.i.without_replicas();
    std::fs::write(&go, "").unwrap();
    m.kubelet_said("evict", "\"reason\":\"Evicted\"");
    wait_for("its log is gone", SOON, || {
        let list = [
            "sh",
            "-c",
            "ls /var/log/pods/*_otto-agent-unread-evict-*/worker",
        ];
        let logs = m.i.on_node(&list).output().unwrap();
        logs.stdout.is_empty().then_some(())
    });
    drop(nobody);
    m.i.three_replicas(DONE);
    m.failed("evict");
    let logs = || m.i.record("unread-evict").filter(|r| r["kind"] == "log");
    // Asked for again for a while: a node may not serve a log at once.
    let gap = wait_for("a gap is told", DONE, || {
        logs().find(|l| l["metadata"]["kind"] == "gap")
    });
    println!("unread: {gap}");
    let others: Vec<_> = logs().filter(|l| l["metadata"]["kind"] != "gap").collect();
    assert!(others.is_empty(), "{others:?}");
    wait_for("its pod is gone", DONE, || {
        (m.i.worker_pods("unread-evict") == 0).then_some(())
    });
}
