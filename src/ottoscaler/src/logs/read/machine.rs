//! Reading one container's log to its end, as a state machine; pure.
//!
//! The driver (`tail.rs`) tells of each thing that happened as an [`Input`] and carries out
//! the [`Effect`] that comes back. Times are Durations since the reader began.
//!
//! ```text
//!            due                    opened
//! Waiting ────────────► Opening ────────────► Reading: follow, poll, decide or drain
//!    ▲  ▲                  │                     │   │
//!    │  │   not opened     │      broke off,     │   │ a follow ended
//!    │  └──────────────────┴─────────────────────┘   ▼
//!    └──────────────────────────────────────── AwaitingStatus
//! ```
//! `Ended` is reached from each of them.
//!
//! Invariants:
//! - Lines come in file order, each once.
//! - Where lines may be missing, one gap is told before what comes after them. The API
//!   server serves a container's newest file only, so a line that is not in it any more was
//!   rotated away.
//! - The log is open once at most: a log is opened in `Waiting` and `AwaitingStatus` only, and
//!   whatever leaves `Opening` or `Reading` closes it.
//! - The log is complete when it was read to its end by an open that began after the
//!   container's end, or when a follow came to its end and nothing later is in the file, or
//!   when a second follow ended at once (`ends.rs`).
//! - Once the pod is gone, or the status tells of the container's end and the log is served,
//!   the machine ends.
use std::time::Duration;

use super::{
    ends::Ends,
    gap::{Gap, Reason},
    line::Line,
    missing::Missing,
    position::{Place, Resume, Step},
    reading::{Purpose, Reading},
    reopen::Reopen,
    signals::{Effect, End, Failure, Input, Instance, Why},
};

/// How long a follow may give later lines than the one looked for, until the file is read to its
/// end to decide whether that line is gone. Lines that were written at the same moment come within
/// it.
const DECIDE_AFTER: Duration = Duration::from_secs(2);
/// The silence after which a follow is probed: it can miss a rotation
/// (kubernetes/kubernetes#126564), or hang on a dead connection. Each probe that finds
/// nothing doubles it. Another read is given up after that silence.
pub(super) const PROBE_AFTER: Duration = Duration::from_secs(30);
/// The longest silence after which a follow is probed. A thousand silent workers cost three
/// requests a second.
const MAX_PROBE_AFTER: Duration = Duration::from_secs(300);
/// The period in which the status is looked at while it is awaited. A look reads memory only.
pub(super) const STATUS_POLL: Duration = Duration::from_millis(100);
/// How long a node may refuse to serve the log of a container that has ended, until the log counts
/// as removed. A node whose runtime or kubelet starts refuses likewise, for a shorter time.
pub(super) const REMOVED_AFTER: Duration = PROBE_AFTER;

#[derive(Debug)]
enum TailState {
    /// The log is opened at `due`, to `decide` or to follow.
    Waiting {
        due: Duration,
        decide: bool,
    },
    /// A follow ended. The status may tell why, until the log is opened again at `until`.
    AwaitingStatus {
        until: Duration,
        look_at: Duration,
    },
    Opening {
        purpose: Purpose,
        previous: bool,
    },
    Reading(Reading),
    Ended(End),
}

/// A node refuses to serve the log of a container that has ended.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    since: Duration,
    /// All of the log had been read before.
    had_all: bool,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct TailMachine {
    state: TailState,
    /// Where the next line comes after.
    place: Option<Place>,
    missing: Missing,
    can_follow: bool,
    probe_after: Duration,
    reopen: Reopen,
    ends: Ends,
    refusal: Option<Refusal>,
}

impl TailMachine {
    /// Reads on after `place`; None: from the log's first byte on.
    pub(super) fn new(place: Option<Place>) -> Self {
        Self {
            state: TailState::Waiting {
                due: Duration::ZERO,
                decide: false,
            },
            place,
            missing: Missing::Nothing,
            can_follow: true,
            probe_after: PROBE_AFTER,
            reopen: Reopen::default(),
            ends: Ends::default(),
            refusal: None,
        }
    }

    /// Tells of a gap before the first line, too, where lines of the container, which started
    /// at that Unix second, may have been rotated away before the log was first opened.
    pub(super) fn of_container_started(mut self, started: Option<i64>) -> Self {
        if let Some(started) = started.filter(|_| self.place.is_none()) {
            self.missing = Missing::before_first(started);
        }
        self
    }

    /// How the log ended, once it has.
    pub(super) fn end(&self) -> Option<End> {
        match self.state {
            TailState::Ended(end) => Some(end),
            _ => None,
        }
    }

    /// When to come with [`Input::Tick`], if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.state {
            TailState::Waiting { due, .. } => Some(*due),
            TailState::AwaitingStatus { until, look_at } => Some(*until.min(look_at)),
            TailState::Reading(reading) => reading.deadline(),
            TailState::Opening { .. } | TailState::Ended(_) => None,
        }
    }

    /// An input that the state does not wait for changes nothing.
    pub(super) fn next(&mut self, input: Input, now: Duration) -> Effect {
        match input {
            Input::Line(line) => self.line(line, now),
            Input::Tick(instance) => self.tick(instance, now),
            Input::Opened(instance) => self.opened(instance, now),
            Input::Failed(failure, instance) => self.failed(failure, instance, now),
            Input::Ended { rest, instance } => self.ended(rest, instance, now),
            Input::Probed { found_more } => self.probed(found_more, now),
            Input::HeldUp => match self.state {
                TailState::Opening { .. } | TailState::Reading(_) => {
                    self.missing.log_interrupted();
                    self.close(Why::HeldUp, now)
                }
                _ => Effect::Wait,
            },
        }
    }

    fn tick(&mut self, instance: Instance, now: Duration) -> Effect {
        match &mut self.state {
            TailState::Waiting { due, decide } if *due <= now => {
                let decide = *decide;
                self.open(decide, instance, now)
            }
            TailState::AwaitingStatus { until, .. } if *until <= now || instance.is_over => {
                self.open(false, instance, now)
            }
            TailState::AwaitingStatus { look_at, .. } => {
                *look_at = now + STATUS_POLL;
                Effect::Wait
            }
            TailState::Reading(reading) => {
                if reading.is_in_doubt_at(now) {
                    self.state = TailState::Waiting {
                        due: now,
                        decide: true,
                    };
                    Effect::Close(Why::Doubt)
                } else if reading.is_probed || now < reading.quiet_at {
                    Effect::Wait
                } else if reading.purpose != Purpose::Follow {
                    self.failed(Failure::Broken, instance, now)
                } else if instance.is_over {
                    // It would have ended with the container: its connection is dead.
                    self.close_for_a_while(Why::Ended, now)
                } else {
                    reading.is_probed = true;
                    Effect::Probe {
                        previous: reading.previous,
                        sought: self.sought(),
                    }
                }
            }
            _ => Effect::Wait,
        }
    }

    fn open(&mut self, decide: bool, instance: Instance, now: Duration) -> Effect {
        if !instance.exists {
            return self.failed(Failure::Gone, instance, now);
        }
        // The node keeps the log of the newest instance and of the one before.
        if instance.successors > 1 {
            return self.failed(Failure::Replaced, instance, now);
        }
        let previous = instance.successors == 1;
        if instance.is_over && !previous && self.ends.needs_no_reread() {
            self.state = TailState::Ended(End::Complete);
            return Effect::Wait;
        }
        let purpose = match (instance.is_over, decide, self.can_follow) {
            (true, _, _) => Purpose::Drain,
            (false, true, _) => Purpose::Decide,
            (false, false, false) => Purpose::Poll,
            (false, false, true) => Purpose::Follow,
        };
        self.state = TailState::Opening { purpose, previous };
        Effect::Open {
            since: self.sought().as_ref().and_then(Place::since),
            follow: purpose == Purpose::Follow,
            previous,
        }
    }

    fn opened(&mut self, instance: Instance, now: Duration) -> Effect {
        let TailState::Opening { purpose, previous } = self.state else {
            return Effect::Wait;
        };
        // A log is opened by the pod's name, which may be another pod's by now.
        if !instance.exists {
            return self.failed(Failure::Gone, instance, now);
        }
        self.missing.log_opened(now);
        self.state = TailState::Reading(Reading {
            purpose,
            previous,
            resume: Resume::new(self.sought()),
            opened: now,
            decide_at: None,
            quiet_at: now + self.probe_after,
            is_probed: false,
        });
        Effect::Wait
    }

    fn line(&mut self, line: Line, now: Duration) -> Effect {
        let TailState::Reading(reading) = &mut self.state else {
            return Effect::Wait;
        };
        let anchor = match reading.resume.step(&line) {
            Step::Held => {
                if reading.resume.is_flowing() {
                    reading.decide_at = None;
                }
                return Effect::Wait;
            }
            Step::Late => {
                self.ends.doubt();
                reading.decide_at.get_or_insert(now + DECIDE_AFTER);
                return Effect::Wait;
            }
            Step::New(anchor) => anchor,
        };
        self.probe_after = PROBE_AFTER;
        reading.quiet_at = now + PROBE_AFTER;
        reading.is_probed = false;
        self.reopen.fruitful();
        self.refusal = None;
        self.ends.clear();
        let missing = std::mem::replace(&mut self.missing, Missing::Nothing);
        let place = self.place.replace(Place::After(anchor.clone()));
        match missing.reason(&line, now) {
            None => Effect::Line(line, anchor),
            Some(reason) => {
                let gap = Gap {
                    reason,
                    from: place.as_ref().and_then(Place::time),
                    to: line.time(),
                    place: Some(Place::Before(anchor.clone())),
                };
                Effect::Gap(gap, Some((line, anchor)))
            }
        }
    }

    /// The log ended: for good if the container had, else it is opened again.
    fn ended(&mut self, rest: Option<Line>, instance: Instance, now: Duration) -> Effect {
        let TailState::Reading(reading) = &self.state else {
            return Effect::Wait;
        };
        let drains = reading.purpose == Purpose::Drain;
        // The rest of a line that is cut off may come later, unless the container has ended.
        let is_whole = match rest {
            Some(rest) if drains => return self.line(rest, now),
            rest => rest.is_none(),
        };
        let follow = (reading.purpose == Purpose::Follow).then_some(reading.opened);
        let is_flowing = reading.resume.is_flowing();
        let doubts = reading.decide_at.is_some();
        self.refusal = None;
        self.ends.note_whole(is_whole);
        if is_flowing {
            let was_rotated = self.missing == Missing::Rotated;
            if drains {
                self.state = TailState::Ended(End::Complete);
                return if was_rotated {
                    self.gap(Reason::Rotated)
                } else {
                    Effect::Wait
                };
            }
            if follow.is_some() && !was_rotated {
                self.ends.note_status(instance.is_over);
                self.ends.note(follow, now);
            }
            return self.reopen_after_end(instance.is_over, follow.is_some(), now);
        }
        // A follow had read the log to its end, its file was rotated then, and nothing came
        // after it.
        if !doubts && self.ends.reached_the_end(now) {
            if drains {
                self.state = TailState::Ended(End::Complete);
                return Effect::Wait;
            }
            self.ends.note(follow, now);
        }
        // Only a read to the end of the file knows that a line is not in it. Where the status
        // tells of the container's end only, the file may be that of its successor.
        let is_proven = follow.is_none() && (drains || doubts);
        let was_rotated = is_proven && (drains || !instance.may_have_successor);
        if was_rotated {
            self.missing = Missing::Rotated;
        }
        self.reopen_after_end(was_rotated, follow.is_some(), now)
    }

    /// Opens the log again at once, or once the status may have told why a follow ended.
    fn reopen_after_end(&mut self, at_once: bool, followed: bool, now: Duration) -> Effect {
        if at_once {
            return self.close(Why::Ended, now);
        }
        if !followed {
            return self.close_for_a_while(Why::Ended, now);
        }
        let due = now + self.reopen.delay();
        self.state = TailState::AwaitingStatus {
            until: due.max(now + self.ends.retry_after()),
            look_at: now,
        };
        Effect::Close(Why::Ended)
    }

    fn failed(&mut self, failure: Failure, instance: Instance, now: Duration) -> Effect {
        let purpose = match &self.state {
            TailState::Opening { purpose, .. } => Some(*purpose),
            TailState::Reading(reading) => Some(reading.purpose),
            TailState::Waiting { .. } | TailState::AwaitingStatus { .. } => None,
            TailState::Ended(_) => return Effect::Wait,
        };
        let failure = match failure {
            Failure::CannotFollow if purpose == Some(Purpose::Follow) => {
                self.can_follow = false;
                return self.close_for_a_while(Why::CannotFollow, now);
            }
            Failure::CannotFollow => Failure::Refused,
            failure => failure,
        };
        let is_removed = failure == Failure::Refused && purpose == Some(Purpose::Drain) && {
            let had_all = self.ends.reached_the_end(now);
            let refusal = *self.refusal.get_or_insert(Refusal {
                since: now,
                had_all,
            });
            now.saturating_sub(refusal.since) >= REMOVED_AFTER
        };
        let (reason, end) = match failure {
            _ if !instance.exists => (Reason::PodGone, End::Gone),
            Failure::Replaced => (Reason::Restarted, End::Complete),
            Failure::Refused if is_removed => (Reason::Removed, End::Gone),
            // A kubelet that restarts knows no pods at first, so Gone alone proves nothing.
            _ => {
                self.ends.not_read();
                return self.close_for_a_while(Why::Ended, now);
            }
        };
        self.state = TailState::Ended(end);
        let had_all = self.ends.is_told() || self.refusal.is_some_and(|r| r.had_all);
        if had_all {
            Effect::Wait
        } else {
            self.gap(reason)
        }
    }

    fn probed(&mut self, found_more: bool, now: Duration) -> Effect {
        let TailState::Reading(reading) = &mut self.state else {
            return Effect::Wait;
        };
        if !std::mem::take(&mut reading.is_probed) {
            return Effect::Wait;
        }
        self.probe_after = (self.probe_after * 2).min(MAX_PROBE_AFTER);
        reading.quiet_at = now + self.probe_after;
        if found_more {
            self.close_for_a_while(Why::MissedLines, now)
        } else {
            Effect::Wait
        }
    }

    /// A gap that no line of the same instance follows.
    fn gap(&mut self, reason: Reason) -> Effect {
        let from = self.place.take();
        let gap = Gap {
            reason,
            from: from.as_ref().and_then(Place::time),
            to: None,
            place: None,
        };
        Effect::Gap(gap, None)
    }

    fn close_for_a_while(&mut self, why: Why, now: Duration) -> Effect {
        self.missing.log_interrupted();
        let due = now + self.reopen.delay();
        self.close(why, due)
    }

    fn close(&mut self, why: Why, due: Duration) -> Effect {
        self.state = TailState::Waiting { due, decide: false };
        Effect::Close(why)
    }

    /// The place that an open log must come to before something new.
    fn sought(&self) -> Option<Place> {
        let place = self.place.as_ref();
        place.filter(|_| self.missing != Missing::Rotated).cloned()
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
