//! A worker's log from where we stand, line by line, whatever breaks on the way.
//!
//! What holds: lines come in file order, each once; where some may be missing, one gap
//! is told before what comes after; the end is told when the log was read to it by an
//! open that began after the container's end, or a follow came to it and such an open finds
//! nothing later, or one that followed and ended at once. The API server serves a container's
//! newest file only, so a line that is not in it any more was rotated away.
use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::Instrument as _;

use super::{
    checkpoint::{Anchor, Place, Resume, Step},
    ends::Ends,
    follow::{Error, Open, Piece, Reader, Source},
    gap::{Gap, Reason},
    line::Line,
    reopen::Reopen,
    settings::Pods,
};
use crate::{cluster::Loggable, domain::pod::Pod};

/// How long a log may give later lines than the one looked for, until it is read to
/// its end to decide whether that one is gone.
const DOUBT: Duration = Duration::from_secs(2);
/// Silence of a log until a read is given up; of a followed one, until it is looked whether there is more: a follow can
/// miss a rotation (kubernetes/kubernetes#126564), or hang on a dead connection.
const QUIET: Duration = Duration::from_secs(30);
/// The same of a log that has been silent for long.
const QUIETEST: Duration = Duration::from_secs(300);
/// What is on its way to a follow arrives in so long.
const ARRIVES: Duration = Duration::from_secs(2);
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks of a kubelet whether a log is to be rotated: nothing was before the
/// container had run for so long.
const ROTATES_AFTER: i64 = 10;
/// Between two looks at the status as the watch has it.
const TOLD_LOOK: Duration = Duration::from_millis(100);
/// How the kubelet says, in place of the log, that a node has no inotify instance left.
const CANNOT_FOLLOW: [&str; 2] = [
    "failed to create fsnotify watcher",
    "failed to watch directory",
];
/// A log of a container that has ended is given up when its node has refused to serve it for
/// so long: one whose runtime or kubelet is starting refuses likewise. As long as any log may
/// be silent until a read is given up.
const REFUSED: Duration = QUIET;

/// What comes next of a log.
#[derive(Debug)]
pub(super) enum Next {
    Line(Line, Anchor),
    /// Lines may be missing here.
    Gap(Gap),
    /// There is no more, and will be none.
    End,
    /// The pod went, and its log with it.
    Gone,
}

/// One at most.
type Opening = JoinSet<Result<Reader, Error>>;
type Look = Pin<Box<dyn Future<Output = bool> + Send>>;

/// How a log is open.
#[derive(Debug, Clone, Copy)]
struct Mode {
    follow: bool,
    /// The container had ended before.
    over: bool,
    /// And another one runs in its place.
    previous: bool,
}

pub(super) struct Tail<S, P> {
    pod: Arc<Pod>,
    source: Arc<S>,
    pods: P,
    /// Which of the container's instances; the first is 0.
    restart: i32,
    /// After the last line that was handed on.
    at: Option<Place>,
    /// Its line is not in the file any more: all that is there is new, after a gap.
    lost: bool,
    /// A line that was read, after the gap that was told.
    ready: Option<(Line, Anchor)>,
    resume: Resume,
    mode: Mode,
    reader: Option<Reader>,
    /// A log being opened: goes on while nobody waits for it, for it has a place that others
    /// wait for.
    opening: Opening,
    next_open: Instant,
    reopen: Reopen,
    /// Later lines than the one looked for came; decided then.
    doubt_at: Option<Instant>,
    /// The next open reads to the end and decides.
    decide: bool,
    /// The node cannot follow: its logs are read again and again.
    poll: bool,
    quiet: Duration,
    quiet_at: Instant,
    look: Option<Look>,
    /// Followed to an end after the container's.
    caught_up: bool,
    opened: Instant,
    ends: Ends,
    /// And no byte of the file is left.
    is_whole: bool,
    /// A follow ended, and the status has yet to tell why.
    awaits_status: bool,
    gone: bool,
    /// Since when its node refuses to serve the log of the container, which has ended, and
    /// whether all of it had been read before.
    refusal: Option<(Instant, bool)>,
    /// Later instances have taken its place, and its log is gone.
    replaced: bool,
    /// The container's start (Unix seconds), where its first line may have been rotated
    /// away before anybody read it.
    late_since: Option<i64>,
}

impl<S: Source, P: Pods> Tail<S, P> {
    /// From that place on.
    pub(super) fn new(
        pod: Arc<Pod>,
        source: Arc<S>,
        pods: P,
        restart: i32,
        at: Option<Place>,
    ) -> Self {
        let now = Instant::now();
        Self {
            pod,
            source,
            pods,
            restart,
            resume: Resume::new(at.clone()),
            at,
            lost: false,
            ready: None,
            mode: Mode {
                follow: false,
                over: false,
                previous: false,
            },
            reader: None,
            opening: JoinSet::new(),
            next_open: now,
            reopen: Reopen::default(),
            doubt_at: None,
            decide: false,
            poll: false,
            quiet: QUIET,
            quiet_at: now + QUIET,
            look: None,
            caught_up: false,
            opened: now,
            ends: Ends::default(),
            is_whole: false,
            awaits_status: false,
            gone: false,
            refusal: None,
            replaced: false,
            late_since: None,
        }
    }

    /// Read by whoever must tell what is missing at `now` (Unix seconds), also before the
    /// first line that there is.
    pub(super) fn begun_at(mut self, now: i64) -> Self {
        let is_new = self.at.is_none() && self.restart == self.pod.restart_count;
        let started = self.pod.started.filter(|_| is_new);
        self.late_since = started.filter(|at| now - at > ROTATES_AFTER);
        self
    }

    /// Waits for it as long as the pod lives. Cancel safe: an open log stays open.
    pub(super) async fn next(&mut self) -> Next {
        loop {
            if let Some(next) = self.ready() {
                return next;
            }
            if self.gone {
                return Next::Gone;
            }
            if self.replaced {
                return Next::End;
            }
            let next = match self.piece().await {
                Ok(Piece::Line(line)) => self.line(line),
                // Of a log cut off in the middle of a line, only the rest tells.
                Ok(Piece::Unended(line)) if self.mode.over => self.line(line),
                Ok(Piece::Refused(words)) => self.refused(&words),
                Ok(end) => {
                    self.is_whole = matches!(end, Piece::End);
                    self.at_end()
                }
                Err(error) => self.not_read(&error),
            };
            if let Some(next) = next {
                return next;
            }
        }
    }

    /// What was read already, if anything.
    pub(super) fn ready(&mut self) -> Option<Next> {
        if let Some((line, anchor)) = self.ready.take() {
            return Some(self.hand_on(line, anchor));
        }
        loop {
            let line = self.reader.as_mut()?.ready()?;
            if let Some(next) = self.line(line) {
                return Some(next);
            }
        }
    }

    /// Nothing was taken for long: what has come meanwhile may be no more than a part,
    /// for a reader that hangs over two rotations misses the file between.
    pub(super) fn was_held_up(&mut self) {
        if self.reader.is_some() || !self.opening.is_empty() {
            self.opening = JoinSet::new();
            self.rewind();
            self.next_open = Instant::now();
        }
    }

    /// Nothing more is read: who serves it is free at once.
    pub(super) fn close(&mut self) {
        self.opening = JoinSet::new();
        self.reader = None;
        self.look = None;
    }

    async fn piece(&mut self) -> Result<Piece, Error> {
        loop {
            let Some(reader) = &mut self.reader else {
                if !self.open().await? {
                    return Ok(Piece::End);
                }
                continue;
            };
            let doubts = self.mode.follow && self.doubt_at.is_some();
            tokio::select! {
                biased;
                piece = reader.next() => return piece,
                () = sleep_until(self.doubt_at.unwrap_or(self.quiet_at)), if doubts => {
                    self.rewind();
                    self.decide = true;
                    self.next_open = Instant::now();
                }
                () = sleep_until(self.quiet_at), if self.look.is_none() => {
                    if !self.mode.follow {
                        return Err(Error::Timeout);
                    }
                    let (source, pod, at) = (self.source.clone(), self.pod.clone(), self.sought());
                    let previous = self.mode.previous;
                    self.look = Some(Box::pin(async move {
                        let more = timeout(LOOK_TIMEOUT, has_more(&*source, &pod, at, previous)).await;
                        sleep(ARRIVES).await;
                        more.unwrap_or(false)
                    }));
                }
                more = async { match &mut self.look { Some(look) => look.await, None => false } }, if self.look.is_some() => {
                    self.look = None;
                    self.quiet = (self.quiet * 2).min(QUIETEST);
                    self.quiet_at = Instant::now() + self.quiet;
                    if more {
                        tracing::info!(pod = &*self.pod.name, "a followed log misses lines; opened again");
                        self.rewind();
                    }
                }
            }
        }
    }

    /// False: as if it had been, and had nothing later.
    async fn open(&mut self) -> Result<bool, Error> {
        if self.opening.is_empty() && !self.begin_to_open().await? {
            return Ok(false);
        }
        let opened = self.opening.join_next().await;
        let opened = opened.ok_or(Error::Timeout)?;
        let opened = opened.map_err(std::io::Error::other)??;
        // By its name; it may be another pod's by now.
        if !self.pods.is_current(&self.pod) {
            return Err(Error::Gone);
        }
        self.opened = Instant::now();
        self.quiet_at = self.opened + self.quiet;
        self.reader = Some(opened);
        Ok(true)
    }

    async fn begin_to_open(&mut self) -> Result<bool, Error> {
        self.wait_to_open().await;
        if !self.pods.is_current(&self.pod) {
            return Err(Error::Gone);
        }
        let over = self.is_over();
        let later = self.later_instances();
        // The node keeps the log of the one before.
        if later > 1 {
            return Err(Error::Replaced);
        }
        // A log that has ended is read to its last byte.
        let follow = !over && !self.decide && !self.poll;
        let previous = later == 1;
        self.mode = Mode {
            follow,
            over,
            previous,
        };
        if over && later == 0 && self.is_whole && self.ends.are_proven() {
            return Ok(false);
        }
        let how = Open {
            since: self.sought().as_ref().and_then(Place::since),
            follow,
            previous,
        };
        let (source, pod) = (self.source.clone(), self.pod.clone());
        let open = async move { source.open(&pod, how).await };
        self.opening.spawn(open.in_current_span());
        Ok(true)
    }

    async fn wait_to_open(&mut self) {
        if !self.awaits_status {
            sleep_until(self.next_open).await;
        }
        while Instant::now() < self.next_open && !self.is_over() {
            sleep_until(self.next_open.min(Instant::now() + TOLD_LOOK)).await;
        }
        self.awaits_status = false;
    }

    fn line(&mut self, line: Line) -> Option<Next> {
        match self.resume.step(&line) {
            Step::Held => {
                if self.resume.is_flowing() {
                    self.doubt_at = None;
                }
                None
            }
            Step::Late => {
                self.ends.doubt();
                self.doubt_at.get_or_insert_with(|| Instant::now() + DOUBT);
                None
            }
            Step::New(anchor) if self.lost || self.is_late(&line) => {
                let reason = if self.lost {
                    Reason::Rotated
                } else {
                    Reason::Late
                };
                self.lost = false;
                let gap = self.gap(reason, line.time(), Some(Place::Before(anchor.clone())));
                self.ready = Some((line, anchor));
                Some(gap)
            }
            Step::New(anchor) => Some(self.hand_on(line, anchor)),
        }
    }

    /// Whether lines may have been before that first one. A container that was silent for
    /// so long looks the same.
    fn is_late(&mut self, line: &Line) -> bool {
        let since = self.late_since.take();
        since
            .zip(line.time())
            .is_some_and(|(at, line)| line.as_second() - at > ROTATES_AFTER)
    }

    fn hand_on(&mut self, line: Line, anchor: Anchor) -> Next {
        self.at = Some(Place::After(anchor.clone()));
        self.reopen.fruitful();
        self.look = None;
        self.quiet = QUIET;
        self.quiet_at = Instant::now() + QUIET;
        self.caught_up = false;
        self.refusal = None;
        self.ends.forget();
        Next::Line(line, anchor)
    }

    /// The kubelet's own words in place of a log. Where it cannot follow, the log is read
    /// without following.
    fn refused(&mut self, words: &str) -> Option<Next> {
        let cannot_follow = CANNOT_FOLLOW.iter().any(|begin| words.starts_with(begin));
        if !self.mode.follow || !cannot_follow {
            return self.not_read(&Error::Refused);
        }
        tracing::warn!(
            pod = &*self.pod.name,
            "its node cannot follow logs; reading them again and again"
        );
        self.poll = true;
        self.rewind();
        None
    }

    /// A log that ended: for good if the container had, else it is opened again.
    fn at_end(&mut self) -> Option<Next> {
        self.refusal = None;
        let over = self.is_over();
        if self.resume.is_flowing() {
            if self.mode.over {
                let lost = std::mem::take(&mut self.lost);
                return Some(if lost {
                    self.gap(Reason::Rotated, None, None)
                } else {
                    Next::End
                });
            }
            if self.mode.follow && !self.lost {
                self.caught_up = over;
                self.ends.note(Some(self.opened));
            }
            self.ask_again(over);
            return None;
        }
        // What a follow had read to the end was rotated then, and nothing is after it.
        if (self.caught_up || self.ends.reached_the_end()) && self.doubt_at.is_none() {
            if self.mode.over {
                return Some(Next::End);
            }
            self.ends.note(self.mode.follow.then_some(self.opened));
        }
        // Only who reads to the end knows that the line is not there.
        let to_the_end = !self.mode.follow && (self.mode.over || self.doubt_at.is_some());
        self.lost = to_the_end && !self.may_be_its_successors();
        let lost = self.lost;
        self.ask_again(lost);
        None
    }

    /// After an end: at once, or once the status may have told why a follow ended.
    fn ask_again(&mut self, at_once: bool) {
        self.rewind();
        if at_once {
            self.next_open = Instant::now();
        } else if self.mode.follow {
            self.awaits_status = true;
            self.next_open = self.next_open.max(Instant::now() + self.ends.wait());
        }
    }

    fn not_read(&mut self, error: &Error) -> Option<Next> {
        let is_there = self.pods.is_current(&self.pod);
        let is_refused = matches!(error, Error::Refused) && self.mode.over;
        if is_refused && self.refusal.is_none() {
            let had_all = self.caught_up || self.ends.reached_the_end();
            self.refusal = Some((Instant::now(), had_all));
        }
        let refusal = self.refusal.filter(|_| is_refused);
        let is_removed = refusal.is_some_and(|(since, _)| since.elapsed() >= REFUSED);
        let reason = match error {
            Error::Replaced if is_there => Reason::Restarted,
            Error::Refused if is_there && is_removed => Reason::Removed,
            // Also where it is said to be gone: a kubelet that restarts knows no pods at first.
            error if is_there => {
                self.ends.not_read();
                tracing::debug!(pod = &*self.pod.name, error = %Loggable(error), "log not read; trying again");
                self.rewind();
                return None;
            }
            _ => Reason::PodGone,
        };
        self.replaced = reason == Reason::Restarted;
        self.gone = !self.replaced;
        let had_all = self.caught_up || self.refusal.is_some_and(|(_, had_all)| had_all);
        (!had_all).then(|| self.gap(reason, None, None))
    }

    fn gap(&mut self, reason: Reason, to: Option<jiff::Timestamp>, place: Option<Place>) -> Next {
        tracing::warn!(
            pod = &*self.pod.name,
            reason = reason.as_str(),
            "log lines may be missing"
        );
        let from = self.at.as_ref().and_then(Place::time);
        self.at.clone_from(&place);
        Next::Gap(Gap {
            reason,
            from,
            to,
            place,
        })
    }

    /// The log is opened again, and what is behind us held back.
    fn rewind(&mut self) {
        self.resume = Resume::new(self.sought());
        self.reader = None;
        // It is read again.
        self.ready = None;
        self.doubt_at = None;
        self.decide = false;
        self.look = None;
        self.next_open = Instant::now() + self.reopen.delay();
    }

    /// What an open log must have before something new.
    fn sought(&self) -> Option<Place> {
        self.at.clone().filter(|_| !self.lost)
    }

    fn is_over(&self) -> bool {
        self.pods.latest(&self.pod).is_none_or(|p| {
            let ended = p.finished.is_some() && !p.restarts;
            p.worker_has_ended() || ended || p.restart_count > self.restart
        })
    }

    /// Whether what is served now is of a container that took this one's place: the status
    /// tells only that this one has ended.
    fn may_be_its_successors(&self) -> bool {
        let latest = self.pods.latest(&self.pod);
        !self.mode.over && latest.is_some_and(|p| p.restarts && p.finished.is_some())
    }

    /// Of the container, after the one whose log this is.
    fn later_instances(&self) -> i32 {
        let latest = self.pods.latest(&self.pod);
        latest.map_or(0, |p| p.restart_count + i32::from(p.reran) - self.restart)
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
