use proptest::prelude::*;

use super::*;

fn end(exit_code: i32, finished: i64) -> Termination {
    Termination {
        exit_code,
        reason: if exit_code == 0 { "Completed" } else { "Error" }.into(),
        started: Some(1),
        finished: Some(finished),
        ..Termination::default()
    }
}

fn container(name: &str, state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        name: name.into(),
        state,
        ..ContainerStatus::default()
    }
}

fn state() -> impl Strategy<Value = ContainerState> {
    let reasons = prop::sample::select(vec![
        "",
        "ContainerCreating",
        "PodInitializing",
        "ImagePullBackOff",
        "CrashLoopBackOff",
        "CreateContainerConfigError",
    ]);
    prop_oneof![
        reasons.prop_map(|reason| ContainerState::Waiting {
            reason: reason.into(),
            message: "why".into()
        }),
        (2..9_i64).prop_map(|at| ContainerState::Running { started: Some(at) }),
        (prop::sample::select(vec![0, 1, 137, 255]), 2..9_i64)
            .prop_map(|(code, at)| ContainerState::Terminated(end(code, at))),
    ]
}

fn injected() -> impl Strategy<Value = Vec<ContainerStatus>> {
    let one = (state(), 0..4, prop::option::of(0..3)).prop_map(|(state, restart_count, last)| {
        ContainerStatus {
            restart_count,
            last: last.map(|code| end(code, 1)),
            ..container("", state)
        }
    });
    prop::collection::vec(one, 0..3).prop_map(|mut all| {
        for (n, one) in all.iter_mut().enumerate() {
            one.name = format!("injected-{n}");
        }
        all
    })
}

/// Returns the phase that the kubelet gives a pod whose containers are not all done.
fn unfinished() -> impl Strategy<Value = PodPhase> {
    prop::sample::select(vec![PodPhase::Pending, PodPhase::Running])
}

proptest! {
    #[test]
    fn what_others_put_into_a_pod_says_nothing_of_its_worker(
        worker in state(), before in injected(), after in injected(), sidecars in injected(),
        phase in unfinished(),
    ) {
        // Only the reason of a sidecar that holds the start up is reported.
        let waits = matches!(worker, ContainerState::Waiting { .. });
        let alone = PodFacts {
            phase: match worker {
                ContainerState::Waiting { .. } => PodPhase::Pending,
                _ => PodPhase::Running,
            },
            containers: vec![container(WORKER, worker.clone())],
            ..PodFacts::default()
        };
        let others = |all: Vec<ContainerStatus>, prefix: &str| {
            all.into_iter().map(move |c| ContainerStatus { name: format!("{prefix}{}", c.name), ..c }).collect::<Vec<_>>()
        };
        let init = others(sidecars, "init-");
        let sidecar = |c: &ContainerStatus| ContainerSpec {
            name: c.name.clone(),
            restart_policy: Some(RestartPolicy::Always),
            ..ContainerSpec::default()
        };
        let mut containers = others(before, "before-");
        containers.extend(alone.containers.clone());
        containers.extend(others(after, "after-"));
        let among = PodFacts {
            phase,
            declared_init: init.iter().map(sidecar).collect(),
            init_containers: init,
            containers,
            ..PodFacts::default()
        };
        let (alone, mut among) = (alone.worker_state(), among.worker_state());
        among.others_run = alone.others_run;
        if waits && among.reason.starts_with("Init:") {
            prop_assert!(alone.reason.is_empty());
            among.reason.clear();
            among.message = alone.message.clone();
        }
        prop_assert_eq!(alone, among);
    }

    #[test]
    fn a_success_before_the_pod_was_ended_stays_one(
        at in 2..50_i64, later in 1..50_i64, by_deadline: bool, others in injected(),
    ) {
        let mut containers = others;
        containers.push(container(WORKER, ContainerState::Terminated(end(0, at))));
        let facts = PodFacts {
            phase: PodPhase::Failed,
            reason: if by_deadline { "DeadlineExceeded" } else { "Evicted" }.into(),
            deadline: by_deadline.then_some(at + later),
            disrupted: !by_deadline,
            disrupted_since: (!by_deadline).then_some(at + later),
            containers,
            ..PodFacts::default()
        };
        let read = facts.worker_state();
        prop_assert_eq!((read.phase, read.reason.as_str()), (PodPhase::Succeeded, ""));
        prop_assert!(read.own_end);
    }
}

#[test]
fn a_worker_without_a_status_of_its_own_fares_as_its_pod() {
    for phase in [PodPhase::Pending, PodPhase::Running, PodPhase::Failed] {
        let facts = PodFacts {
            phase,
            reason: "NodeAffinity".into(),
            ..PodFacts::default()
        };
        let read = facts.worker_state();
        assert_eq!((read.phase, read.reason.as_str()), (phase, "NodeAffinity"));
        assert!(!read.own_end);
    }
}

#[test]
fn an_end_that_the_pods_deadline_made_is_no_end_of_the_workers_own() {
    let facts = PodFacts {
        phase: PodPhase::Failed,
        reason: "DeadlineExceeded".into(),
        deadline: Some(30),
        containers: vec![container(WORKER, ContainerState::Terminated(end(137, 30)))],
        ..PodFacts::default()
    };
    let read = facts.worker_state();
    assert_eq!(
        (read.phase, read.reason.as_str(), read.own_end),
        (PodPhase::Failed, "DeadlineExceeded", false)
    );
}
