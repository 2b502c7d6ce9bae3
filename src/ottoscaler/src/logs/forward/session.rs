//! One worker's log, from its first byte to its last acknowledgement.
//!
//! Two nested loops: the outer opens streams to otto-handler, the inner pumps
//! lines in and answers out. A broken stream loses nothing: what was not
//! answered stays in the window and goes out again with the same sequence. Reading goes
//! on meanwhile: what the window has no room for waits in the spool, behind it.
use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    backlog::Backlog,
    checkpoint::{Checkpoint, MAX_EPOCH},
    context::Settings,
    entry::{Entry, Maker, Outgoing},
    epochs::EpochStore,
    shards::Checkpoints,
    window::Answer,
};
use crate::{
    cluster::Loggable,
    config::AckMode,
    domain::pod::Pod,
    election::Term,
    logs::{
        handler::{Answered, Answers, HandlerClient, loggable},
        read::{
            follow::{Error, Source},
            pods::Pods,
            tail::{Next, Tail},
        },
    },
    proto::{LogForwardResponse, log_forward_response::Status},
    workers::Drained,
};

const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Without room to read on, after which the log is opened again.
const HELD_UP: Duration = Duration::from_secs(10);
/// Streams in a row that otto-handler took nothing of, until the next one gets a
/// connection of its own.
const UNREAD: u32 = 2;
/// Of a drain, for answers to what is under way: what is not answered by then is sent
/// again by the next leader.
const LAST_ANSWERS: Duration = Duration::from_secs(8);
/// For otto-handler to end a stream of which all is answered.
const HALF_CLOSED: Duration = Duration::from_secs(3);
/// For an epoch to be stored; it is tried again, for without it no line after a gap may go.
const RESERVED_WITHIN: Duration = Duration::from_secs(10);

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Every line is acknowledged.
    Drained,
    /// Handed over to the next leader.
    HandedOver,
    /// The pod went; what was missing was told.
    Gone,
}

/// A session that has ended.
pub(super) struct Ended {
    pub(super) end: End,
    /// Which instance of the container.
    pub(super) restart: i32,
}

/// Why a stream to otto-handler was given up.
enum Broken {
    Finished(End),
    /// Open another one.
    Stream(String),
    /// The same; it answered nothing.
    Mute,
}

pub(super) struct Session<S, P> {
    pub(super) pod: Arc<Pod>,
    pub(super) source: Arc<S>,
    pub(super) pods: P,
    pub(super) drained: Drained,
    pub(super) checkpoints: Checkpoints,
    pub(super) handler: HandlerClient,
    pub(super) settings: Settings,
    pub(super) term: Term,
    pub(super) drain: CancellationToken,
}

/// What moves while a session runs.
struct State<S, P> {
    backlog: Backlog,
    maker: Maker,
    /// After the last line read, and after the last one acknowledged.
    read: Checkpoint,
    acked: Checkpoint,
    tail: Tail<S, P>,
    /// The last epoch that this session has stored.
    reserved: u32,
    /// There is no more to read.
    end: Option<End>,
    /// Since when nothing is read, for want of room.
    held_up: Option<Instant>,
    pause_until: Option<Instant>,
    last_answer: Instant,
    /// When otto-handler last settled an entry.
    settled: Instant,
    counts: Counts,
}

impl<S: Source, P: Pods> State<S, P> {
    /// There is more to read, and room for it.
    fn may_read(&mut self) -> bool {
        let now = Instant::now();
        if !self.backlog.has_room(now) {
            self.held_up.get_or_insert(now);
            return false;
        }
        if self.held_up.take().is_some_and(|at| now - at > HELD_UP) {
            self.tail.was_held_up();
        }
        self.end.is_none()
    }

    /// The next entry, if there is one that may go.
    fn send(&mut self, permit: mpsc::Permit<'_, Outgoing>) -> bool {
        let Some(entry) = self.backlog.window.next() else {
            return false;
        };
        permit.send(self.maker.message(entry));
        self.backlog.window.sent();
        true
    }

    /// otto-handler took nothing for so long.
    fn is_stale(&self, limit: Duration) -> bool {
        self.settled.elapsed() > limit
    }
}

#[derive(Default)]
struct Counts {
    lines: u64,
    gaps: u64,
    dropped: u64,
    retried: u64,
}

impl<S: Source + EpochStore, P: Pods> Session<S, P> {
    /// Runs to an [`End`]; dropped when the term is lost.
    pub(super) async fn run(self) -> Ended {
        let from = self.resume_point();
        self.checkpoints.begin(&self.pod.uid, &from);
        let mut state = self.state(from);
        let follow = self.settings.metrics.follow();
        let end = loop {
            let end = self.streams(&mut state).await;
            let restarts = self.pods.latest(&self.pod).map_or(0, |p| p.restart_count);
            if end != End::Drained || restarts <= state.acked.restart {
                break end;
            }
            let next = (state.acked.restart + 1).max(restarts - 1);
            let counts = std::mem::take(&mut state.counts);
            state = self.state(Checkpoint::start(next));
            state.counts = counts;
            // The one before is done with.
            self.checkpoints.note(&self.pod.uid, &state.acked);
        };
        drop(follow);
        let Counts {
            lines,
            gaps,
            dropped,
            retried,
        } = state.counts;
        let span = tracing::Span::current();
        span.record("lines", lines).record("gaps", gaps);
        span.record("dropped", dropped).record("retried", retried);
        tracing::info!(
            pod = &*self.pod.name,
            ?end,
            lines,
            gaps,
            dropped,
            retried,
            "log session ended"
        );
        Ended {
            end,
            restart: state.acked.restart,
        }
    }

    /// The furthest checkpoint that is stored of this pod's log, or the log's start.
    fn resume_point(&self) -> Checkpoint {
        let noted = self.checkpoints.get(&self.pod.uid);
        // An earlier version stored it there, and may have led since the shards were written.
        let annotation = self.pod.checkpoint.as_deref();
        let annotated = annotation.and_then(Checkpoint::of_annotation);
        if annotation.is_some() && annotated.is_none() {
            tracing::warn!(
                pod = &*self.pod.name,
                "the checkpoint in its annotation is none: somebody changed it; it is left out of account"
            );
        }
        let can_be = |c: &Checkpoint| c.restart <= self.pod.restart_count;
        let stored = noted.into_iter().chain(annotated).filter(can_be);
        stored.max_by_key(Checkpoint::progress).unwrap_or_else(|| {
            // A container that restarted is begun with what the node still has of it.
            Checkpoint::start((self.pod.restart_count - 1).max(0))
        })
    }

    fn state(&self, from: Checkpoint) -> State<S, P> {
        let now = Instant::now();
        State {
            backlog: Backlog::new(&self.settings),
            maker: Maker::new(self.pod.clone(), &self.settings.namespace, &self.term),
            tail: self.tail(&from),
            read: from.clone(),
            acked: from,
            reserved: 0,
            end: None,
            held_up: None,
            pause_until: None,
            last_answer: now,
            settled: now,
            counts: Counts::default(),
        }
    }

    fn tail(&self, from: &Checkpoint) -> Tail<S, P> {
        let (pod, source, pods) = (self.pod.clone(), self.source.clone(), self.pods.clone());
        Tail::new(pod, source, pods, from.restart, from.place.clone()).of_first_reader()
    }

    /// Opens streams until one ends well; the wait between two grows.
    async fn streams(&self, state: &mut State<S, P>) -> End {
        let (mut failures, mut unread) = (0_u32, 0);
        loop {
            let before = state.acked.next;
            let why = match self.stream(state, unread >= UNREAD).await {
                Broken::Finished(end) => return end,
                Broken::Stream(why) => why,
                Broken::Mute => {
                    unread += 1;
                    "it answers nothing".to_owned()
                }
            };
            if state.acked.next > before {
                (failures, unread) = (0, 0);
            }
            if failures == 0 {
                tracing::warn!(
                    pod = &*self.pod.name,
                    why,
                    "log stream to otto-handler broke; trying again"
                );
            }
            let delay = Duration::from_millis(50 << failures.min(7)).min(MAX_BACKOFF);
            failures += 1;
            if let Some(end) = self.between(state, Instant::now() + delay).await {
                return end;
            }
        }
    }

    /// Reads on until then, without a stream.
    async fn between(&self, state: &mut State<S, P>, until: Instant) -> Option<End> {
        loop {
            if state.end == Some(End::Gone) && state.is_stale(self.settings.drain_timeout) {
                tracing::warn!(
                    pod = &*self.pod.name,
                    "its last lines are given up: otto-handler took none for too long, and its pod is gone"
                );
                return state.end;
            }
            if until <= Instant::now() {
                return None;
            }
            let may_read = state.may_read();
            let wake = state
                .backlog
                .has_room_at()
                .map_or(until, |at| at.min(until));
            tokio::select! {
                () = self.drain.cancelled() => return Some(End::HandedOver),
                () = sleep_until(wake) => {}
                next = state.tail.next(), if may_read => self.take_all(state, next).await,
            }
        }
    }

    /// Lines in, answers out, until the stream breaks or all is done.
    async fn stream(&self, state: &mut State<S, P>, apart: bool) -> Broken {
        state.backlog.window.restart();
        let (entries, mut answers) = self.handler.forward(self.pod.traceparent.as_deref(), apart);
        let mut draining: Option<Instant> = None;
        loop {
            let all_is_settled = state.backlog.window.is_empty() && state.backlog.is_empty();
            // Whose log goes on elsewhere is not ended here.
            let ends = |end: &End| all_is_settled && *end != End::HandedOver;
            if let Some(end) = state.end.filter(ends) {
                half_close(entries, answers).await;
                return Broken::Finished(end);
            }
            if draining.is_some() && !state.backlog.window.awaits_answers() {
                return Broken::Finished(End::HandedOver);
            }
            if draining.is_none() {
                self.refill(state).await;
            }
            let now = Instant::now();
            let paused = state.pause_until.filter(|at| *at > now);
            let goes_on = draining.is_none();
            let may_send = goes_on && paused.is_none() && state.backlog.window.next().is_some();
            let may_read = goes_on && state.may_read();
            let mute_at = state.last_answer + self.settings.ack_timeout;
            let wake = [
                paused,
                state.backlog.window.awaits_answers().then_some(mute_at),
                draining,
                state.backlog.has_room_at(),
            ];
            let wake = wake
                .into_iter()
                .flatten()
                .min()
                .unwrap_or_else(|| now + Duration::from_secs(60));
            tokio::select! {
                biased;
                () = self.drain.cancelled(), if goes_on => {
                    draining = Some(Instant::now() + LAST_ANSWERS);
                    state.tail.close();
                }
                answer = answers.next() => {
                    let answered = self.all_answered(state, answer, &mut answers);
                    self.checkpoints.note(&self.pod.uid, &state.acked);
                    if let Err(why) = answered {
                        return Broken::Stream(why);
                    }
                }
                permit = entries.reserve(), if may_send => match permit {
                    Ok(permit) => {
                        if !state.backlog.window.awaits_answers() {
                            state.last_answer = Instant::now();
                        }
                        state.send(permit);
                        while let Ok(permit) = entries.try_reserve() {
                            if !state.send(permit) {
                                break;
                            }
                        }
                    }
                    Err(_) => return Broken::Stream("otto-handler closed it".to_owned()),
                },
                next = state.tail.next(), if may_read => self.take_all(state, next).await,
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if draining.is_some_and(|at| at <= now) {
                        tracing::warn!(
                            pod = &*self.pod.name,
                            "handed over without all answers; the next leader sends some lines again"
                        );
                        return Broken::Finished(End::HandedOver);
                    }
                    if state.backlog.window.awaits_answers() && mute_at <= now {
                        answers.abandon_connection();
                        return Broken::Mute;
                    }
                }
            }
        }
    }

    /// What was read together is taken together: a turn of the loop for each line would
    /// cost more than the line.
    async fn take_all(&self, state: &mut State<S, P>, next: Next) {
        self.take(state, next).await;
        while state.may_read() {
            let Some(next) = state.tail.ready() else {
                return;
            };
            self.take(state, next).await;
        }
    }

    async fn take(&self, state: &mut State<S, P>, next: Next) {
        let metrics = &self.settings.metrics;
        let entry = match next {
            Next::Line(line, anchor) => {
                if let Some(time) = line.time().filter(|_| state.read.next == 1) {
                    self.drained.began(&self.pod.uid, time.as_second());
                }
                state.counts.lines += 1;
                metrics.lines.inc();
                metrics.bytes.inc_by(line.text.len() as u64);
                Entry::line(&mut state.read, line, anchor)
            }
            Next::Gap(gap) => {
                let Some(epoch) = self.new_epoch(state).await else {
                    // The next leader finds this gap, too.
                    state.tail.close();
                    return state.end = Some(End::HandedOver);
                };
                state.counts.gaps += 1;
                metrics.gap(gap.reason);
                Entry::gap(&mut state.read, gap, epoch)
            }
            Next::End => return state.end = Some(End::Drained),
            Next::Gone => {
                if !state.backlog.is_empty() {
                    metrics.cut.inc();
                }
                return state.end = Some(End::Gone);
            }
        };
        state.backlog.push(entry).await;
    }

    /// An epoch that no reader of this log has used, nor will: it is stored before its first
    /// use. None: there is no time left for it.
    async fn new_epoch(&self, state: &mut State<S, P>) -> Option<u32> {
        let transitions = u32::try_from(self.term.transitions).unwrap_or(0);
        let mut failures = 0_u32;
        loop {
            let pod = self.pods.latest(&self.pod);
            let pod = pod.unwrap_or_else(|| self.pod.clone());
            let written = [self.pod.log_epoch, pod.log_epoch];
            let written = written.into_iter().filter(|epoch| *epoch < MAX_EPOCH);
            let known = written.fold(state.reserved, u32::max);
            let least = state.read.next_epoch(known, transitions);
            let reserve = timeout(RESERVED_WITHIN, self.source.reserve(&pod, least));
            let stored = self.drain.run_until_cancelled(reserve).await?;
            let error = match stored.unwrap_or(Err(Error::Timeout)) {
                Ok(epoch) => {
                    state.reserved = epoch;
                    return Some(epoch);
                }
                // Whose pod is gone has no reader after this one.
                Err(Error::Gone) => {
                    state.reserved = least;
                    return Some(least);
                }
                Err(error) => error,
            };
            if failures == 0 {
                tracing::warn!(pod = &*self.pod.name, error = %Loggable(&error), "the epoch of a gap was not stored; trying again");
            }
            let delay = Duration::from_millis(200 << failures.min(5)).min(MAX_BACKOFF);
            failures = failures.saturating_add(1);
            self.drain.run_until_cancelled(sleep(delay)).await?;
        }
    }

    async fn refill(&self, state: &mut State<S, P>) {
        let Err(error) = state.backlog.refill().await else {
            return;
        };
        tracing::error!(pod = &*self.pod.name, %error, "the spool lost lines; they are read again (LOG_SPOOL_DIR)");
        let last = state.backlog.window.last().map(|e| e.then.clone());
        state.read = last.unwrap_or_else(|| state.acked.clone());
        state.tail = self.tail(&state.read);
        state.end = None;
    }

    /// That answer, and those that have come behind it.
    fn all_answered(
        &self,
        state: &mut State<S, P>,
        mut answer: Answered,
        answers: &mut Answers,
    ) -> Result<(), String> {
        loop {
            match answer {
                Ok(Some(answer)) => self.answered(state, &answer),
                Ok(None) => return Err("otto-handler ended it".to_owned()),
                Err(status) => return Err(loggable(&status)),
            }
            match answers.next().now_or_never() {
                Some(next) => answer = next,
                None => return Ok(()),
            }
        }
    }

    fn answered(&self, state: &mut State<S, P>, answer: &LogForwardResponse) {
        let now = Instant::now();
        state.last_answer = now;
        let throttle = u64::try_from(answer.throttle_ms).unwrap_or(0);
        let status = answer.status();
        let settled = match (self.settings.ack, status) {
            (AckMode::Cumulative, Status::Ack) => {
                let up_to = u64::try_from(answer.sequence).unwrap_or(0);
                state.backlog.window.answer_up_to(|e| e.sequence() <= up_to)
            }
            (_, Status::Ack) => state
                .backlog
                .window
                .answer(Answer::Ack)
                .into_iter()
                .collect(),
            (_, Status::Drop) => state
                .backlog
                .window
                .answer(Answer::Drop)
                .into_iter()
                .collect(),
            (_, Status::Retry) => {
                state.counts.retried += 1;
                self.settings.metrics.retried.inc();
                state.backlog.window.answer(Answer::Retry);
                Vec::new()
            }
        };
        let pause = match status {
            // A backoff of its own, so that a storm is no busy loop.
            Status::Retry => throttle.max(5),
            Status::Ack | Status::Drop => throttle,
        };
        if pause > 0 {
            state.pause_until = Some(now + Duration::from_millis(pause.min(60_000)));
        }
        if !settled.is_empty() {
            state.settled = now;
        }
        for entry in settled {
            if status == Status::Drop {
                state.counts.dropped += 1;
                self.settings.metrics.dropped.inc();
            } else {
                self.settings.metrics.acknowledged.inc();
                if let Some(time) = entry.printed() {
                    self.settings.metrics.took(time);
                }
            }
            state.backlog.settled(&entry);
            state.acked = entry.then;
        }
    }
}

/// All is acknowledged: ends our side, waits for otto-handler's. Whatever it says now,
/// it has answered every entry.
async fn half_close(entries: mpsc::Sender<Outgoing>, mut answers: Answers) {
    drop(entries);
    let _ = timeout(HALF_CLOSED, async {
        while let Ok(Some(_)) = answers.next().await {}
    })
    .await;
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
