#![expect(clippy::unwrap_used)]
use domain::pod::{Pod, PodPhase};

use super::*;

#[path = "machine_tests/world.rs"]
mod world;

const RUNS: Instance = Instance {
    exists: true,
    is_over: false,
    may_have_successor: false,
    successors: 0,
};
const OVER: Instance = Instance {
    is_over: true,
    ..RUNS
};
const GONE: Instance = Instance {
    exists: false,
    is_over: true,
    ..RUNS
};
const START: i64 = 1_790_000_000;

/// Printed so long after the container's start.
fn line(n: usize, age: Duration) -> Line {
    let time = jiff::Timestamp::from_second(START).unwrap() + age;
    Line {
        timestamp: time.to_string(),
        nanos: i64::try_from(time.as_nanosecond()).ok(),
        text: format!("line {n}").into_bytes(),
        cut_from: None,
    }
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// What an effect comes to, in short.
fn short(effect: &Effect) -> String {
    match effect {
        Effect::Wait => "wait".to_owned(),
        Effect::Line(line, _) => String::from_utf8(line.text.clone()).unwrap(),
        Effect::Gap(gap, _) => format!("gap {}", gap.reason.as_str()),
        Effect::Open { follow: true, .. } => "follow".to_owned(),
        Effect::Open { previous: true, .. } => "read previous".to_owned(),
        Effect::Open { .. } => "read".to_owned(),
        Effect::Probe { .. } => "probe".to_owned(),
        Effect::Close(why) => format!("close: {why:?}"),
    }
}

/// A machine, and the time that its inputs come at.
struct At {
    machine: TailMachine,
    now: Duration,
}

impl At {
    fn new(place: Option<Place>) -> Self {
        Self {
            machine: TailMachine::new(place),
            now: Duration::ZERO,
        }
    }

    /// One that follows and has read line 0.
    fn following() -> Self {
        let mut at = Self::new(None);
        assert_eq!(at.tell(Input::Tick(RUNS)), "follow");
        assert_eq!(at.tell(Input::Opened(RUNS)), "wait");
        assert_eq!(at.tell(Input::Line(line(0, seconds(0)))), "line 0");
        at
    }

    fn tell(&mut self, input: Input) -> String {
        short(&self.machine.next(input, self.now))
    }

    fn ended(&mut self, instance: Instance) -> String {
        self.tell(Input::Ended {
            rest: None,
            instance,
        })
    }

    /// What comes when the deadline has passed.
    fn due(&mut self, instance: Instance) -> String {
        self.now = self.machine.deadline().unwrap().max(self.now);
        self.tell(Input::Tick(instance))
    }

    /// Ticks until something is to be done; how long that took.
    fn until(&mut self, wanted: &str, instance: Instance) -> Duration {
        let began = self.now;
        for _ in 0..1_000 {
            if self.due(instance) == wanted {
                return self.now - began;
            }
        }
        unreachable!("no {wanted}: {:?}", self.machine)
    }
}

#[test]
fn a_log_is_followed_and_read_to_its_end_once_the_container_has_ended() {
    let mut at = At::following();
    assert_eq!(at.ended(OVER), "close: Ended");
    assert_eq!(at.until("read", OVER), Duration::ZERO);
    at.tell(Input::Opened(OVER));
    assert_eq!(at.tell(Input::Line(line(0, seconds(0)))), "wait");
    let rest = Some(line(1, seconds(0)));
    let instance = OVER;
    assert_eq!(at.tell(Input::Ended { rest, instance }), "line 1");
    assert_eq!(at.ended(OVER), "wait");
    assert_eq!(at.machine.end(), Some(End::Complete));
}

#[test]
fn what_a_log_is_opened_for_follows_from_the_status() {
    for (instance, opens) in [
        (RUNS, "follow"),
        (OVER, "read"),
        (
            Instance {
                successors: 1,
                ..OVER
            },
            "read previous",
        ),
        (
            Instance {
                successors: 2,
                ..OVER
            },
            "gap restarted",
        ),
        (GONE, "gap pod gone"),
    ] {
        assert_eq!(At::new(None).tell(Input::Tick(instance)), opens);
    }
}

#[test]
fn a_status_is_what_the_pod_tells_of_that_instance_of_its_container() {
    let pod = |restart_count, finished, restarts| Pod {
        phase: PodPhase::Running,
        restart_count,
        finished,
        restarts,
        ..Pod::default()
    };
    assert_eq!(Instance::of(None, 0), GONE);
    assert_eq!(Instance::of(Some(&pod(1, None, true)), 1), RUNS);
    assert_eq!(Instance::of(Some(&pod(1, Some(1), false)), 1), OVER);
    let next_starts = Instance {
        may_have_successor: true,
        ..RUNS
    };
    assert_eq!(Instance::of(Some(&pod(1, Some(1), true)), 1), next_starts);
    let replaced = Instance {
        successors: 2,
        ..OVER
    };
    assert_eq!(Instance::of(Some(&pod(3, None, true)), 1), replaced);
}

#[test]
fn an_input_that_the_state_does_not_wait_for_changes_nothing() {
    let mut ended = At::new(None);
    ended.tell(Input::Tick(GONE));
    for at in [&mut At::new(None), &mut ended] {
        let before = format!("{:?}", at.machine);
        let rest = None;
        let instance = RUNS;
        for input in [
            Input::Opened(RUNS),
            Input::Line(line(0, seconds(0))),
            Input::Ended { rest, instance },
            Input::Probed { found_more: true },
            Input::HeldUp,
        ] {
            assert_eq!(at.tell(input), "wait");
        }
        assert_eq!(format!("{:?}", at.machine), before);
    }
    assert_eq!(ended.tell(Input::Tick(RUNS)), "wait");
    assert_eq!(ended.tell(Input::Failed(Failure::Gone, GONE)), "wait");
}

#[test]
fn a_follow_that_ended_awaits_the_status_and_asks_once_before_it_waits_for_long() {
    let mut at = At::following();
    for waits in [2, 30, 30] {
        assert_eq!(at.ended(RUNS), "close: Ended");
        assert_eq!(at.until("follow", RUNS), seconds(waits));
        at.tell(Input::Opened(RUNS));
        at.tell(Input::Line(line(0, seconds(0))));
    }
    // It tells of the end; two ends have proved that there is no more.
    at.ended(RUNS);
    at.now += seconds(1);
    assert_eq!(at.tell(Input::Tick(OVER)), "wait");
    assert_eq!(at.machine.end(), Some(End::Complete));
}

#[test]
fn a_silent_follow_is_probed_less_and_less() {
    let mut at = At::following();
    for silence in [30, 60, 120, 240, 300, 300] {
        assert_eq!(at.until("probe", RUNS), seconds(silence));
        assert_eq!(at.tell(Input::Probed { found_more: false }), "wait");
    }
    assert_eq!(at.tell(Input::Line(line(1, seconds(0)))), "line 1");
    assert_eq!(at.until("probe", RUNS), seconds(30));
    assert_eq!(
        at.tell(Input::Probed { found_more: true }),
        "close: MissedLines"
    );
    assert_eq!(at.until("follow", RUNS), Duration::from_millis(500));
}

#[test]
fn a_probe_that_a_line_overtook_changes_nothing() {
    let mut at = At::following();
    at.until("probe", RUNS);
    assert_eq!(at.tell(Input::Line(line(1, seconds(0)))), "line 1");
    assert_eq!(at.tell(Input::Probed { found_more: true }), "wait");
}

/// Between two reads lines may be printed and rotated away.
#[test]
fn a_log_that_is_polled_is_not_open_between_its_reads() {
    for (failure, first) in [
        (Failure::Broken, "line 0"),
        (Failure::CannotFollow, "gap read late"),
    ] {
        let mut at = At::new(None);
        at.machine = TailMachine::new(None).of_container_started(Some(START));
        at.tell(Input::Tick(RUNS));
        at.tell(Input::Failed(failure, RUNS));
        let polls = failure == Failure::CannotFollow;
        for _ in 0..5 {
            at.until(if polls { "read" } else { "follow" }, RUNS);
            at.tell(Input::Opened(RUNS));
            if !polls {
                break;
            }
            at.ended(RUNS);
        }
        if polls {
            at.until("read", RUNS);
            at.tell(Input::Opened(RUNS));
        }
        at.now = at.now.max(seconds(12));
        let age = at.now;
        assert_eq!(at.tell(Input::Line(line(0, age))), first);
    }
}

/// A connection can be dead without an end.
#[test]
fn a_follow_that_stays_silent_after_the_containers_end_is_given_up() {
    let mut at = At::following();
    assert_eq!(at.until("close: Ended", OVER), seconds(30));
    at.until("read", OVER);
}

#[test]
fn whether_a_line_is_gone_is_decided_by_a_read_to_the_end_of_the_file() {
    let mut at = At::following();
    at.tell(Input::Failed(Failure::Broken, RUNS));
    at.until("follow", RUNS);
    at.tell(Input::Opened(RUNS));
    assert_eq!(at.tell(Input::Line(line(5, seconds(5)))), "wait");
    assert_eq!(at.until("close: Doubt", RUNS), seconds(2));
    assert_eq!(at.due(RUNS), "read");
    at.tell(Input::Opened(RUNS));
    at.tell(Input::Line(line(5, seconds(5))));
    assert_eq!(at.ended(RUNS), "close: Ended");
    assert_eq!(at.until("follow", RUNS), Duration::ZERO);
    at.tell(Input::Opened(RUNS));
    assert_eq!(at.tell(Input::Line(line(5, seconds(5)))), "gap rotated");
    assert_eq!(at.tell(Input::Line(line(6, seconds(6)))), "line 6");
}

#[test]
fn a_log_that_its_node_refuses_is_removed_after_a_while_only_if_its_container_has_ended() {
    for (instance, ends) in [(RUNS, false), (OVER, true)] {
        let mut at = At::following();
        at.ended(instance);
        for _ in 0..20 {
            if at.machine.end().is_none() {
                let opens = if ends { "read" } else { "follow" };
                at.until(opens, instance);
                at.tell(Input::Failed(Failure::Refused, instance));
            }
        }
        assert_eq!(at.machine.end(), ends.then_some(End::Gone));
        assert!(at.now >= REMOVED_AFTER);
    }
}

#[test]
fn a_reader_that_was_held_up_opens_the_log_again_at_once() {
    let mut at = At::following();
    assert_eq!(at.tell(Input::HeldUp), "close: HeldUp");
    assert_eq!(at.until("follow", RUNS), Duration::ZERO);
    assert_eq!(at.tell(Input::HeldUp), "close: HeldUp");
}

#[test]
fn a_follow_that_ends_decides_nothing_of_a_line_that_it_did_not_give() {
    let mut at = At::following();
    at.tell(Input::Failed(Failure::Broken, RUNS));
    at.until("follow", RUNS);
    at.tell(Input::Opened(RUNS));
    assert_eq!(at.tell(Input::Line(line(5, seconds(5)))), "wait");
    at.ended(RUNS);
    at.until("follow", RUNS);
    at.tell(Input::Opened(RUNS));
    assert_eq!(at.tell(Input::Line(line(0, seconds(0)))), "wait");
    assert_eq!(at.tell(Input::Line(line(1, seconds(1)))), "line 1");
}

#[test]
fn a_log_whose_second_end_came_late_is_read_once_more() {
    for (after, then) in [(1, "wait"), (3, "read")] {
        let mut at = At::following();
        at.ended(RUNS);
        at.until("follow", RUNS);
        at.tell(Input::Opened(RUNS));
        at.tell(Input::Line(line(0, seconds(0))));
        at.now += seconds(after);
        at.ended(RUNS);
        assert_eq!(at.due(OVER), then, "{after}");
    }
}
