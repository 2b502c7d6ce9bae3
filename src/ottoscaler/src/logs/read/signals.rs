//! What the driver of a tail and its state machine tell each other; pure.
use domain::pod::Pod;

use super::{
    gap::Gap,
    line::Line,
    position::{Anchor, Place},
};

/// What the newest known status of the pod says of the instance of the container whose log is
/// read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instance {
    /// The pod exists.
    pub(super) exists: bool,
    /// It has ended.
    pub(super) is_over: bool,
    /// It has ended, and the kubelet starts the next one, which may have begun unnoticed.
    pub(super) may_have_successor: bool,
    /// How many instances were started after it.
    pub(super) successors: i32,
}

impl Instance {
    /// `latest`: the pod as it was last seen; None once it is gone.
    pub(super) fn of(latest: Option<&Pod>, restart: i32) -> Self {
        let Some(pod) = latest else {
            return Self {
                exists: false,
                is_over: true,
                may_have_successor: false,
                successors: 0,
            };
        };
        let has_ended = pod.finished.is_some();
        Self {
            exists: true,
            is_over: pod.worker_has_ended()
                || has_ended && !pod.restarts
                || pod.restart_count > restart,
            may_have_successor: pod.restarts && has_ended,
            successors: pod.restart_count + i32::from(pod.reran) - restart,
        }
    }
}

/// Why a log could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The API server knows no such pod.
    Gone,
    /// The node keeps no log of that instance of the container.
    Replaced,
    /// The kubelet does not serve the log.
    Refused,
    /// The kubelet cannot follow logs.
    CannotFollow,
    /// Anything else: it was not served in time, it broke off, the API server failed.
    Broken,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    /// [`super::machine::TailMachine::deadline`] has passed.
    Tick(Instance),
    /// The log was opened, as [`Effect::Open`] told.
    Opened(Instance),
    /// It could not be opened, or it broke off.
    Failed(Failure, Instance),
    /// A line was read.
    Line(Line),
    /// The open log ended; `rest` is its last line, if that has no newline.
    Ended {
        rest: Option<Line>,
        instance: Instance,
    },
    /// Whether a probe found more than the follow gave ([`Effect::Probe`]).
    Probed { found_more: bool },
    /// Nothing was read for long, for want of room.
    HeldUp,
}

/// What to do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Nothing until the next input.
    Wait,
    /// Hand that line on.
    Line(Line, Anchor),
    /// Hand the gap on, and then the line, if there is one.
    Gap(Gap, Option<(Line, Anchor)>),
    /// Open the log.
    Open {
        /// The Unix second from which on lines are served; None: all.
        since: Option<i64>,
        follow: bool,
        /// Read the instance of the container before the one that is there now.
        previous: bool,
    },
    /// Look whether the file has more than what is after that place. A line makes it
    /// pointless.
    Probe {
        sought: Option<Place>,
        previous: bool,
    },
    /// Close the log, or stop opening it; it is opened again.
    Close(Why),
}

/// Why a log is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It ended, broke off or was not served.
    Ended,
    /// It has to be read to its end to decide what is missing.
    Doubt,
    /// A probe found more.
    MissedLines,
    /// Its node cannot follow.
    CannotFollow,
    /// It was not read for long. A reader that hangs over two rotations misses the file
    /// between them.
    HeldUp,
}

/// How the log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// There is no more of that instance of the container.
    Complete,
    /// The pod went, or the node removed the log.
    Gone,
}
