//! The protocol, checked exhaustively (stateright): election, fence, sealing and
//! adoption, with crashes, pauses, lost and late messages and drifting clocks.
//!
//! `fenced_lease::candidate`, with `fenced_lease::lease` in it, is production's own. Each `without_…`
//! takes one wall away and must find a counterexample: it shows that the walls
//! are needed, and that the checker would see a break.
//!
//!   OTTO_MODEL=full   three replicas, as `make model` runs it
#![expect(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "tests")]

mod protocol;
mod world;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use protocol::{Lag, Model, Walls};
use stateright::{Checker, Model as _};

/// For one exhaustive run.
const AT_MOST: Duration = Duration::from_secs(540);

/// Replicas, terms, writes of the work under way at a time.
type Shape = (usize, u8, usize);

const SMALL: Shape = (2, 2, 1);
const FULL: Shape = (3, 2, 2);
const MORE_TERMS: Shape = (2, 3, 1);

fn full() -> bool {
    std::env::var("OTTO_MODEL").is_ok_and(|m| m == "full")
}

fn shape() -> Shape {
    if full() { FULL } else { SMALL }
}

fn model((replicas, terms, under_way): Shape, walls: Walls, lag: Lag) -> Model {
    Model {
        replicas,
        terms,
        under_way,
        walls,
        lag,
        sights: Arc::default(),
    }
}

/// Every reachable state was seen, none was bad, and what must be possible was.
fn holds(model: Model) {
    let (began, sights) = (Instant::now(), model.sights.clone());
    let shown = format!(
        "{} replicas, {} terms, {} writes under way, lag {:?}",
        model.replicas, model.terms, model.under_way, model.lag
    );
    let checker = model
        .checker()
        .threads(2)
        .timeout(AT_MOST)
        .spawn_bfs()
        .join();
    println!(
        "{shown}: {} states, depth {}, {:.0} s",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    if let Some((name, path)) = checker.discoveries().into_iter().next() {
        panic!("{name}: {:?}", path.into_actions());
    }
    assert!(
        checker.is_done() && began.elapsed() < AT_MOST,
        "not exhausted in {AT_MOST:?}"
    );
    assert!(
        checker.unique_state_count() > 1_000,
        "hardly anything was checked"
    );
    for (what, seen) in [
        ("a second term acts", &sights.second_term),
        ("the clock refuses a write", &sights.by_clock),
        ("the policy refuses a write", &sights.by_policy),
        ("the version refuses a write", &sights.by_version),
        ("a worker is retried", &sights.retried),
        ("a released Lease is taken", &sights.released_and_taken),
        ("a dead holder's Lease is taken", &sights.dead_and_taken),
    ] {
        assert!(seen.load(Ordering::Relaxed), "never seen: {what}");
    }
}

/// A wall less, and this goes wrong.
fn breaks(model: Model, property: &'static str) {
    let checker = model
        .checker()
        .threads(2)
        .timeout(AT_MOST)
        .finish_when(stateright::HasDiscoveries::AnyOf([property].into()))
        .spawn_bfs()
        .join();
    let path = checker.discovery(property);
    let path = path.unwrap_or_else(|| panic!("no counterexample to {property:?}"));
    println!("{property}: {:?}", path.into_actions());
}

#[test]
fn no_write_of_an_older_term_takes_effect() {
    holds(model(shape(), Walls::default(), Lag::None));
    if full() {
        holds(model(MORE_TERMS, Walls::default(), Lag::None));
    }
}

/// The policy may not have seen the Lease yet: then outcomes are still the same.
#[test]
fn in_the_policys_window_no_outcome_changes() {
    holds(model(shape(), Walls::default(), Lag::WithinTick));
}

#[test]
fn without_preconditions_two_lead() {
    let walls = Walls {
        precondition: false,
        ..Walls::default()
    };
    breaks(
        model((2, 2, 2), walls, Lag::None),
        "at most one leader may act",
    );
}

#[test]
fn without_a_whole_duration_of_silence_two_lead() {
    let walls = Walls {
        silence: false,
        ..Walls::default()
    };
    breaks(
        model((2, 2, 2), walls, Lag::None),
        "at most one leader may act",
    );
}

#[test]
fn without_the_policy_an_old_term_writes() {
    let walls = Walls {
        policy: false,
        ..Walls::default()
    };
    breaks(
        model((2, 2, 2), walls, Lag::None),
        "no write of an older term takes effect",
    );
}

#[test]
fn without_policy_and_version_an_outcome_changes() {
    let walls = Walls {
        policy: false,
        version: false,
        ..Walls::default()
    };
    breaks(
        model((2, 2, 2), walls, Lag::None),
        "what was recorded stays",
    );
}

#[test]
fn a_release_before_the_work_has_ended_lets_two_act() {
    let walls = Walls {
        drained: false,
        ..Walls::default()
    };
    breaks(
        model((2, 2, 2), walls, Lag::None),
        "at most one leader may act",
    );
}
