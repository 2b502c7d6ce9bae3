//! A container's log, line by line, whatever breaks on the way.
//!
//! What to do next is decided by [`TailMachine`]. This driver opens the log, reads it and
//! waits, and tells the machine what came of it.
//!
//! Invariants: at most one log is open or being opened, and at most one probe is in flight;
//! both end with this reader. [`Tail::next`] is cancel safe.
use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::Instrument as _;

use super::{
    follow::{Error, Open, Piece, Reader, Source, cannot_follow},
    gap::Gap,
    line::Line,
    machine::TailMachine,
    pods::PodLookup,
    position::{Anchor, Place, Resume, Step},
    signals::{Effect, End, Failure, Input, Instance, Why},
};
use crate::{cluster::Loggable, domain::pod::Pod};

/// The time within which a probe must tell what the log has. A probe that fails is made again after
/// the next silence.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a follow has to give what a probe found, before it counts as dead. A follow that lives
/// gives a line within milliseconds.
const PROBE_GRACE: Duration = Duration::from_secs(2);

/// What comes next of a log.
#[derive(Debug)]
pub(crate) enum Next {
    Line(Line, Anchor),
    /// Lines may be missing here.
    Gap(Gap),
    /// There is no more, and will be none.
    End,
    /// The pod went, and its log with it.
    Gone,
}

type Opened = Result<Reader, Error>;
type Probe = Pin<Box<dyn Future<Output = bool> + Send>>;

/// A reader of one container's log.
pub(crate) struct Tail<S, P> {
    pod: Arc<Pod>,
    source: Arc<S>,
    pods: P,
    /// Which of the container's instances; the first is 0.
    restart: i32,
    machine: TailMachine,
    /// What the machine's Durations count from.
    began: Instant,
    /// The log being opened. It goes on while nobody waits for [`Self::next`], because it
    /// has a place in the queue of all opens (`gate.rs`).
    opening: JoinSet<Opened>,
    reader: Option<Reader>,
    probe: Option<Probe>,
    /// The line after a gap that was handed on.
    after_gap: Option<Next>,
}

impl<S: Source, P: PodLookup> Tail<S, P> {
    /// Reads on after `place`; None: from the log's first byte on.
    pub(crate) fn new(
        pod: Arc<Pod>,
        source: Arc<S>,
        pods: P,
        restart: i32,
        place: Option<Place>,
    ) -> Self {
        Self {
            pod,
            source,
            pods,
            restart,
            machine: TailMachine::new(place),
            began: Instant::now(),
            opening: JoinSet::new(),
            reader: None,
            probe: None,
            after_gap: None,
        }
    }

    /// Tells of a gap before the first line, too, where the log is opened so late that lines
    /// may have been rotated away.
    pub(crate) fn of_first_reader(mut self) -> Self {
        let is_newest = self.restart == self.pod.restart_count;
        let started = self.pod.started.filter(|_| is_newest);
        self.machine = self.machine.of_container_started(started);
        self
    }

    /// Waits for it as long as the pod lives.
    pub(crate) async fn next(&mut self) -> Next {
        loop {
            if let Some(next) = self.ready() {
                return next;
            }
            match self.machine.end() {
                Some(End::Complete) => return Next::End,
                Some(End::Gone) => return Next::Gone,
                None => {}
            }
            let input = self.input().await;
            if let Some(next) = self.step(input) {
                return next;
            }
        }
    }

    /// What was read already, if anything.
    pub(crate) fn ready(&mut self) -> Option<Next> {
        if let Some(next) = self.after_gap.take() {
            return Some(next);
        }
        loop {
            let line = self.reader.as_mut()?.ready()?;
            if let Some(next) = self.step(Input::Line(line)) {
                return Some(next);
            }
        }
    }

    /// Nothing was read for long, for want of room.
    pub(crate) fn was_held_up(&mut self) {
        self.step(Input::HeldUp);
    }

    /// Closes the log, so that who serves it is free at once. Nothing more is read.
    pub(crate) fn close(&mut self) {
        self.opening = JoinSet::new();
        self.reader = None;
        self.probe = None;
    }

    /// Carries out what the machine makes of an input.
    fn step(&mut self, input: Input) -> Option<Next> {
        let effect = self.machine.next(input, self.began.elapsed());
        if self.machine.end().is_some() {
            self.close();
        }
        match effect {
            Effect::Wait => None,
            Effect::Line(line, anchor) => {
                self.probe = None;
                Some(Next::Line(line, anchor))
            }
            Effect::Gap(gap, line) => {
                tracing::warn!(
                    pod = &*self.pod.name,
                    reason = gap.reason.as_str(),
                    "log lines may be missing"
                );
                self.probe = None;
                self.after_gap = line.map(|(line, anchor)| Next::Line(line, anchor));
                Some(Next::Gap(gap))
            }
            Effect::Open {
                since,
                follow,
                previous,
            } => {
                let how = Open {
                    since,
                    follow,
                    previous,
                };
                let (source, pod) = (self.source.clone(), self.pod.clone());
                let open = async move { source.open(&pod, how).await };
                self.opening.spawn(open.in_current_span());
                None
            }
            Effect::Probe { sought, previous } => {
                let (source, pod) = (self.source.clone(), self.pod.clone());
                self.probe = Some(Box::pin(async move {
                    let probe = has_more(&*source, &pod, sought, previous);
                    let found_more = timeout(PROBE_TIMEOUT, probe).await;
                    sleep(PROBE_GRACE).await;
                    found_more.unwrap_or(false)
                }));
                None
            }
            Effect::Close(why) => {
                self.tell(why);
                self.close();
                None
            }
        }
    }

    fn tell(&self, why: Why) {
        let pod = &*self.pod.name;
        match why {
            Why::CannotFollow => {
                tracing::warn!(pod, "its node cannot follow logs; its log is polled");
            }
            Why::MissedLines => {
                tracing::info!(pod, "a followed log misses lines; opened again");
            }
            Why::Ended | Why::Doubt | Why::HeldUp => {}
        }
    }

    /// What happens next. Cancel safe.
    async fn input(&mut self) -> Input {
        let deadline = self.machine.deadline().map(|at| self.began + at);
        let (reader, probe) = (&mut self.reader, &mut self.probe);
        tokio::select! {
            biased;
            Some(piece) = async { Some(reader.as_mut()?.next().await) } => self.read(piece),
            Some(opened) = self.opening.join_next() => self.opened(opened),
            Some(found_more) = async { Some(probe.as_mut()?.await) } => {
                self.probe = None;
                Input::Probed { found_more }
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                Input::Tick(self.instance())
            }
            // The log was closed for good.
            else => std::future::pending().await,
        }
    }

    fn opened(&mut self, opened: Result<Opened, JoinError>) -> Input {
        match opened.unwrap_or_else(|error| Err(std::io::Error::other(error).into())) {
            Ok(reader) => {
                self.reader = Some(reader);
                Input::Opened(self.instance())
            }
            Err(error) => self.failed(&error),
        }
    }

    fn read(&self, piece: Result<Piece, Error>) -> Input {
        let ended = |rest| Input::Ended {
            rest,
            instance: self.instance(),
        };
        match piece {
            Ok(Piece::Line(line)) => Input::Line(line),
            Ok(Piece::Unended(line)) => ended(Some(line)),
            Ok(Piece::End) => ended(None),
            Ok(Piece::Refused(words)) if cannot_follow(&words) => {
                Input::Failed(Failure::CannotFollow, self.instance())
            }
            Ok(Piece::Refused(_)) => self.failed(&Error::Refused),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &Error) -> Input {
        tracing::debug!(pod = &*self.pod.name, error = %Loggable(error), "log not read");
        let failure = match error {
            Error::Gone => Failure::Gone,
            Error::Replaced => Failure::Replaced,
            Error::Refused => Failure::Refused,
            Error::Timeout | Error::Api(_) | Error::Read(_) => Failure::Broken,
        };
        Input::Failed(failure, self.instance())
    }

    fn instance(&self) -> Instance {
        Instance::of(self.pods.latest(&self.pod).as_deref(), self.restart)
    }
}

/// Whether the file has lines after that place, or does not have it, or is gone.
async fn has_more<S: Source>(source: &S, pod: &Pod, at: Option<Place>, previous: bool) -> bool {
    let how = Open {
        since: at.as_ref().and_then(Place::since),
        follow: false,
        previous,
    };
    let mut reader = match source.open(pod, how).await {
        Ok(reader) => reader,
        Err(error) => return matches!(error, Error::Gone),
    };
    let mut resume = Resume::new(at);
    while let Ok(Piece::Line(line)) = reader.next().await {
        match resume.step(&line) {
            Step::Held => {}
            Step::Late | Step::New(_) => return true,
        }
    }
    false
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
