//! Workers whose pods others change on their way in, as service meshes and log shippers
//! do: the main job with a change of leader, and the failure matrix once more.
use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    DONE, NAMESPACE, SOON, failures, installed,
    matrix::{Lines, Matrix, shell, with},
    policies::{Policy, add, put_in_force},
    wait_for,
};

/// The tasks whose workers get everything.
const PREFIX: &str = "meshed-";

/// The matrix under the policy; [`failures::matrix`] starts it beside its own.
pub(super) fn matrix() -> Matrix {
    static IN_FORCE: OnceLock<Matrix> = OnceLock::new();
    *IN_FORCE.get_or_init(|| {
        let i = installed();
        put_in_force(
            i,
            &[everything(), a_second_container(), a_sidecar_that_fails()],
        );
        Matrix { i, prefix: PREFIX }
    })
}

fn started() -> Matrix {
    failures::matrix();
    matrix()
}

/// A container that a policy adds. It is small, and restricted as the worker is: user and
/// seccomp profile are the pod's.
fn container(name: &str, line: &str) -> Value {
    json!({"name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", line],
        "env": [{"name": "TASK", "valueFrom":
            {"fieldRef": {"fieldPath": "metadata.labels['task-id']"}}}],
        "resources": {"requests": {"cpu": "1m", "memory": "4Mi"},
            "limits": {"cpu": "100m", "memory": "32Mi"}},
        "volumeMounts": [{"name": "mesh", "mountPath": "/mesh"}],
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}}})
}

/// A native sidecar; it fails at its first run, and again when it is ended.
fn sidecar() -> Value {
    let mut sidecar = container(
        "mesh",
        "echo mesh; [ -e /mesh/ran ] || { touch /mesh/ran; exit 1; }; \
         trap 'exit 7' TERM; sleep 3600 & wait",
    );
    sidecar["restartPolicy"] = json!("Always");
    sidecar
}

const VOLUMES: &str = "(has(object.spec.volumes) ? [] : \
     [JSONPatch{op: 'add', path: '/spec/volumes', value: []}])";

fn volume() -> String {
    let mesh = json!({"name": "mesh", "emptyDir": {}});
    add("/spec/volumes/-", "spec.volumes", &mesh)
}

/// A native sidecar, an init container (which fails for one task), a container before the
/// worker that outlives it, a volume that the worker mounts too, annotations and a label.
fn everything() -> Policy {
    let prepare = "echo prepares; case $TASK in *-init) exit 3;; esac";
    let shipper = "echo ships; trap 'exit 0' TERM; sleep 3600 & wait";
    let init = json!([sidecar(), container("prepare", prepare)]);
    let mount = json!({"name": "mesh", "mountPath": "/mesh", "readOnly": true});
    let patches = [
        volume(),
        add("/spec/initContainers", "spec.initContainers", &init),
        // The worker's place while it is the only one, and then the one after.
        add(
            "/spec/containers/0/volumeMounts/-",
            "spec.containers.volumeMounts",
            &mount,
        ),
        add(
            "/spec/containers/0",
            "spec.containers",
            &container("shipper", shipper),
        ),
        "JSONPatch{op: 'add', path: '/metadata/labels/mesh.test~1revision', value: 'canary'}"
            .to_owned(),
    ];
    // A dry run of kubectl has none.
    let annotations = "(has(object.metadata.annotations) ? \
         [JSONPatch{op: 'add', path: '/metadata/annotations/mesh.test~1status', value: 'injected'}, \
          JSONPatch{op: 'add', path: '/metadata/annotations/kubectl.kubernetes.io~1default-container', value: 'shipper'}] : [])";
    Policy {
        name: "mesh",
        tasks: PREFIX,
        patches: format!("{VOLUMES} + [{}] + {annotations}", patches.join(", ")),
        adds: "shipper",
    }
}

/// And nothing else.
fn a_second_container() -> Policy {
    let second = json!({"name": "second", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "3600"]});
    Policy {
        name: "second",
        tasks: "second-container",
        patches: format!(
            "[{}]",
            add("/spec/containers/-", "spec.containers", &second)
        ),
        adds: "second",
    }
}

fn a_sidecar_that_fails() -> Policy {
    let init = add(
        "/spec/initContainers",
        "spec.initContainers",
        &json!([sidecar()]),
    );
    Policy {
        name: "sidecar",
        tasks: "failing-sidecar",
        patches: format!("{VOLUMES} + [{}, {init}]", volume()),
        adds: "mesh",
    }
}

/// The main job, with the leader's container killed on the way.
#[test]
fn the_main_job_under_a_mutating_policy_survives_its_leader() {
    let i = started().i;
    let (task, workers, lines) = ("meshed-job", 6, 200);
    let env = [("LINES", lines.to_string()), ("RATE", "25".into())];
    let answer = i.scale_up(task, workers, &env);
    assert_eq!(answer["status"], "SUCCESS", "{answer}");
    assert_eq!(answer["workerPodNames"].as_array().unwrap().len(), workers);
    for pod in i.cluster.pods(NAMESPACE, "task-id", task) {
        let containers = pod["spec"]["containers"].as_array().unwrap();
        let names: Vec<&Value> = containers.iter().map(|c| &c["name"]).collect();
        assert_eq!(names, ["shipper", "worker"]);
    }
    wait_for("a third of all lines is printed", DONE, || {
        (i.printed(task) >= workers * lines / 3).then_some(())
    });
    let before = i.holder().unwrap();
    i.kill_leader();
    i.wait_term_after(&before);
    i.wait_done(task, workers as u64);
    i.check_logs(task, workers, workers * lines);
    i.check_audit(task, workers, 2);
    has_only_lines_of_the_worker(task);
    i.three_replicas(DONE);
}

fn has_only_lines_of_the_worker(task: &str) {
    let logs = installed().record(task).filter(|r| r["kind"] == "log");
    let others: Vec<Value> = logs
        .filter(|l| l["metadata"]["container"] != "worker")
        .take(3)
        .collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn a_worker_ends_with_its_own_container_not_with_an_injected_one() {
    let i = matrix().i;
    let (task, began) = ("second-container", Instant::now());
    let env = with(shell("echo done"), "OTTO_TIMEOUT", "60s");
    i.scale_up(task, 1, &env);
    let notified = |status: &str| {
        let mut notes = i.record(task).filter(|r| r["kind"] == "notify");
        notes.any(|n| n["status"] == status)
    };
    wait_for("COMPLETED is told", SOON, || {
        notified("COMPLETED").then_some(())
    });
    wait_for("its pod is gone", DONE, || {
        (i.worker_pods(task) == 0).then_some(())
    });
    println!("{task}: gone after {:?}", began.elapsed());
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "the deadline ended it"
    );
    let status = i.ottoctl(&i.service, &["status", task]);
    assert_eq!(status["workers"][0]["status"], "Succeeded", "{status}");
    assert_eq!(status["workers"][0]["exitCode"], 0, "{status}");
    assert!(!notified("FAILED"));
    let messages: Vec<Value> = i
        .record(task)
        .filter(|r| r["kind"] == "log")
        .map(|l| l["message"].clone())
        .collect();
    assert_eq!(messages, ["done"]);
    i.check_audit(task, 1, 1);
}

#[test]
fn a_native_sidecar_that_fails_is_no_init_container_that_failed() {
    let i = matrix().i;
    let task = "failing-sidecar";
    i.scale_up(task, 1, &[("LINES", "5".into()), ("RATE", "5".into())]);
    i.wait_done(task, 1);
    i.check_logs(task, 1, 5);
    i.check_audit(task, 1, 1);
    has_only_lines_of_the_worker(task);
}

#[test]
fn an_exit_code_under_a_mutating_policy_is_the_workers() {
    started().exit_code();
}

#[test]
fn a_worker_out_of_memory_under_a_mutating_policy_is_oom_killed() {
    started().out_of_memory();
}

#[test]
fn a_worker_evicted_under_a_mutating_policy_is_not_tried_again() {
    started().evicted_for_its_own_volume();
}

#[test]
fn an_image_that_cannot_be_pulled_under_a_mutating_policy_fails() {
    started().pull();
}

#[test]
fn a_passed_deadline_under_a_mutating_policy_ends_a_worker() {
    started().deadline();
}

#[test]
fn a_program_that_cannot_start_under_a_mutating_policy_fails() {
    started().start_error();
}

#[test]
fn an_init_container_that_fails_under_a_mutating_policy_is_named() {
    started().init_container("prepare", Lines::Of("prepare"));
}

#[test]
fn a_worker_that_nobody_schedules_under_a_mutating_policy_says_so() {
    started().nobody_schedules();
}

#[test]
fn a_worker_deleted_by_hand_under_a_mutating_policy_is_tried_again() {
    started().deleted_by_hand();
}

#[test]
fn a_worker_that_vanished_under_a_mutating_policy_is_tried_again() {
    started().vanished();
}
