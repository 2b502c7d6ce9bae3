#![expect(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::logs::read::{
    line::Line,
    position::{LOOK_BACK, Resume, Step},
};

const SECOND: i64 = 1_000_000_000;

fn line(nanos: i64, text: &str) -> Line {
    Line {
        timestamp: nanos.to_string(),
        nanos: Some(nanos),
        text: text.into(),
        cut_from: None,
    }
}

/// Stamped by a clock that moves by `steps` (tenths of a second, often not at all), but
/// never further back from its peak than a reader looks.
fn file(steps: &[i64]) -> Vec<Line> {
    let (mut now, mut peak) = (1_000 * SECOND, 1_000 * SECOND);
    let mut lines = Vec::new();
    for (n, step) in steps.iter().enumerate() {
        if *step != 0 {
            // No moment comes twice.
            let next = now - now % (SECOND / 10) + step * (SECOND / 10) + n as i64;
            now = next.max(peak - (LOOK_BACK - 1) * SECOND + n as i64);
        }
        peak = now.max(peak);
        // Few texts, so that lines alike are many.
        lines.push(line(now, &format!("line {}", n % 3)));
    }
    lines
}

/// What the API serves: lines stamped from a second on, in file order.
fn served(file: &[Line], place: Option<&Place>) -> Vec<Line> {
    let since = place.and_then(Place::since);
    let is_served = |l: &&Line| since.is_none_or(|s| l.nanos.unwrap() >= s * SECOND);
    file.iter().filter(is_served).cloned().collect()
}

/// Reads on from a checkpoint to the end: the new lines with their sequences, or None
/// where the line looked for is not in the file.
fn read(file: &[Line], from: &Checkpoint) -> Option<(Vec<(u64, Line)>, Checkpoint)> {
    let mut resume = Resume::new(from.place.clone());
    let (mut at, mut new) = (from.clone(), Vec::new());
    for l in served(file, from.place.as_ref()) {
        if let Step::New(anchor) = resume.step(&l) {
            new.push((at.next, l));
            at.pass(anchor);
        }
    }
    resume
        .is_flowing()
        .then(|| (new, at.to_string().parse().unwrap()))
}

fn steps() -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(prop_oneof![2 => Just(0), 3 => -90i64..90], 1..80)
}

proptest! {
    /// A reader that dies after any line, any number of times, gives every line once,
    /// with the same sequence, also where timestamps are equal or go back by less than
    /// LOOK_BACK, and texts repeat.
    #[test]
    fn a_resume_gives_every_line_once_in_order(
        steps in steps(),
        cuts in prop::collection::vec(0usize..80, 0..6),
    ) {
        let file = file(&steps);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(file.len())).chain([file.len()]).collect();
        cuts.sort_unstable();
        let (mut at, mut all) = (Checkpoint::start(0), Vec::new());
        for end in cuts {
            // Only `end` lines exist by now.
            let (new, next) = read(&file[..end], &at).unwrap();
            all.extend(new);
            at = next;
        }
        let expected: Vec<(u64, Line)> = (1..).zip(file).collect();
        prop_assert_eq!(all, expected);
    }

    /// After a rotation: while the last line is there, the rest comes as before, though
    /// lines before it have gone; else it is known that it went.
    #[test]
    fn a_rotated_file_is_read_on_exactly_or_known_to_have_moved_on(
        steps in steps(),
        read_lines in 0usize..80,
        first in 0usize..80,
    ) {
        let file = file(&steps);
        let (seen, first) = (read_lines.min(file.len()), first.min(file.len()));
        let (_, at) = read(&file[..seen], &Checkpoint::start(0)).unwrap();
        // A rotation within lines of one moment hides which of them is first.
        prop_assume!(first == 0 || first == file.len() || file[first - 1].nanos != file[first].nanos);
        let outcome = read(&file[first..], &at);
        if seen == 0 || first < seen {
            let from = if seen == 0 { first } else { seen };
            let expected: Vec<(u64, Line)> = (at.next..).zip(file[from..].iter().cloned()).collect();
            prop_assert_eq!(outcome.unwrap().0, expected);
        } else {
            prop_assert_eq!(outcome, None);
        }
    }

    /// While time goes forward, no line that is behind us raises a doubt, and the first
    /// line after one that went does.
    #[test]
    fn a_doubt_is_raised_by_what_came_later(steps in prop::collection::vec(1i64..90, 2..40), seen in 1usize..40) {
        let file = file(&steps);
        let seen = seen.min(file.len() - 1);
        let (_, at) = read(&file[..seen], &Checkpoint::start(0)).unwrap();
        let mut resume = Resume::new(at.place.clone());
        let steps: Vec<Step> = served(&file[..seen], at.place.as_ref()).iter().map(|l| resume.step(l)).collect();
        prop_assert!(steps.iter().all(|s| *s == Step::Held));
        prop_assert_eq!(Resume::new(at.place).step(&file[seen]), Step::Late);
    }
}

#[test]
fn lines_with_one_timestamp_and_text_are_told_apart() {
    let file: Vec<Line> = (0..1_000).map(|_| line(5 * SECOND, "same")).collect();
    let (_, at) = read(&file[..500], &Checkpoint::start(0)).unwrap();
    let (new, _) = read(&file, &at).unwrap();
    assert_eq!((new.len(), new[0].0), (500, 501));
}

#[test]
fn the_rest_of_a_line_whose_head_was_cut_off_is_held_back() {
    let lines = [line(50 * SECOND, "a"), line(51 * SECOND, "b")];
    let (_, at) = read(&lines, &Checkpoint::start(0)).unwrap();
    let rest = Line {
        text: b"of a long line".to_vec(),
        ..Line::default()
    };
    let mut resume = Resume::new(at.place);
    assert_eq!(resume.step(&rest), Step::Held);
    lines
        .iter()
        .for_each(|l| assert_eq!(resume.step(l), Step::Held));
    assert!(resume.is_flowing());
}

#[test]
fn a_checkpoint_is_short() {
    let (_, at) = read(&file(&[30; 80]), &Checkpoint::start(0)).unwrap();
    let text = at.to_string();
    assert!(text.len() < 60, "{text}");
    assert_eq!(text.parse(), Ok(at));
}

#[test]
fn a_checkpoint_that_somebody_changed_is_none_and_no_number_in_it_is_too_large() {
    for text in [
        "",
        "garbage",
        "{}",
        "[1]",
        r#"{"next":0,"epoch":0,"restart":0}"#,
        r#"{"next":-1,"epoch":0,"restart":0}"#,
        r#"{"next":18446744073709551615,"epoch":0,"restart":0}"#,
        r#"{"next":1,"epoch":4294967295,"restart":0}"#,
        r#"{"next":1,"epoch":0,"restart":-1}"#,
        r#"{"next":1,"epoch":0,"restart":0,"place":{"after":7}}"#,
    ] {
        assert_eq!(Checkpoint::of_annotation(text), None, "{text}");
    }
    // Whatever passes can be counted on from, and looked back from.
    let far = r#"{"next":4503599627370495,"epoch":1073741823,"restart":2147483647,
        "place":{"after":{"nanos":-9223372036854775808,"hash":18446744073709551615,"nth":18446744073709551615}}}"#;
    let mut far = Checkpoint::of_annotation(far).unwrap();
    assert!(far.place.as_ref().is_some_and(|p| p.since().is_some()));
    let epoch = far.next_epoch(0, 0);
    far.pass_gap(None, epoch);
    assert_eq!(far.epoch, 1 << 30);
}

#[test]
fn a_text_that_is_no_checkpoint_is_refused() {
    for text in [
        "",
        "0 0",
        "0 0 0",
        "0 0 -1",
        "-1 0 1",
        "0 1073741824 1",
        "0 0 4503599627370496",
        "0 0 99999999999999999999",
        "0 0 1 ",
        " 0 0 1",
        "0 0 1 a",
        "0 0 1 c 1 ff 1",
        "0 0 1 a 1 ff",
        "0 0 1 a 1 fg 1",
        "0 0 1 a - ff 1 1",
        "0\t0\t1",
    ] {
        assert_eq!(text.parse::<Checkpoint>(), Err(NoCheckpoint), "{text:?}");
    }
    let text = "2 3 9 b - ffffffffffffffff 1";
    let before: Checkpoint = text.parse().unwrap();
    assert_eq!((before.restart, before.epoch, before.next), (2, 3, 9));
    assert!(matches!(before.place, Some(Place::Before(_))));
    assert_eq!(before.to_string(), text);
}

#[test]
fn of_two_checkpoints_the_later_run_then_the_later_epoch_then_the_later_line_is_further() {
    let at = |restart, epoch, next| Checkpoint {
        next,
        epoch,
        ..Checkpoint::start(restart)
    };
    let further = [at(0, 0, 9), at(0, 0, 10), at(0, 1, 5), at(1, 0, 1)];
    assert!(further.is_sorted_by_key(Checkpoint::progress));
}

proptest! {
    #[test]
    fn no_text_is_too_much_for_whoever_reads_checkpoints(text in ".{0,80}|([0-9ab-]{0,20} ?){0,8}") {
        if let Ok(checkpoint) = text.parse::<Checkpoint>() {
            prop_assert_eq!(checkpoint.to_string().parse(), Ok(checkpoint));
        }
    }
}
