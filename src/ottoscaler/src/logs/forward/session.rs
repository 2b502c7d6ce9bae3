//! One worker's log, from its first byte to its last acknowledgement.
//!
//! A session is two nested loops. The outer loop opens streams to otto-handler. The inner loop
//! reads lines, sends them, and receives answers.
//!
//! Invariants: a broken stream loses nothing, because entries that were not answered stay in the
//! window and are sent again with the same sequence numbers. Reading goes on meanwhile: what
//! does not fit into the window waits in the spool (`backlog.rs`).
use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::state::{Counts, SessionState};
use super::{
    backlog::Backlog,
    checkpoint::Checkpoint,
    context::Context,
    entry::{Maker, Outgoing},
    epochs::EpochStore,
    shards::Checkpoints,
};
use crate::{
    domain::pod::Pod,
    election::Term,
    handler::{Answers, Drained, HandlerClient},
    logs::read::{follow::Source, pods::PodLookup, tail::Tail},
};

mod answers;
mod intake;
mod state;

/// The longest delay between two attempts to reach otto-handler or the API server. A thousand
/// sessions make 200 attempts a second, and lines flow within seconds after an outage.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// After so many consecutive streams of which otto-handler took nothing, the next one gets a
/// connection of its own. One such stream may have been cut off by chance.
const UNREAD: u32 = 2;
/// How long a drain waits for answers to what is in flight, within HANDOVER_TIMEOUT. What is not
/// answered by then is sent again by the next leader.
const LAST_ANSWERS: Duration = Duration::from_secs(8);
/// How long otto-handler may take to end a stream after it has answered everything. Nothing is lost
/// when it is cut off then.
const HALF_CLOSED: Duration = Duration::from_secs(3);

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Every line is acknowledged.
    Drained,
    /// The session was handed over to the next leader.
    HandedOver,
    /// The pod is gone, and a gap tells of what was missing.
    Gone,
}

/// A session that has ended.
pub(super) struct Ended {
    pub(super) end: End,
    /// The last instance of the container that it read.
    pub(super) restart: i32,
}

/// Why a stream to otto-handler was given up.
enum Broken {
    Finished(End),
    /// The stream broke; open another one.
    Stream(String),
    /// otto-handler answered nothing; open another one.
    Mute,
}

/// Forwards the log of one worker.
pub(super) struct Session<S, P> {
    pub(super) pod: Arc<Pod>,
    pub(super) source: Arc<S>,
    pub(super) pods: P,
    pub(super) drained: Drained,
    pub(super) checkpoints: Checkpoints,
    pub(super) handler: HandlerClient,
    pub(super) context: Context,
    pub(super) term: Term,
    pub(super) drain: CancellationToken,
}

impl<S: Source + EpochStore, P: PodLookup> Session<S, P> {
    /// Runs until the session ends. It is dropped when the term is lost.
    pub(super) async fn run(self) -> Ended {
        let from = self.resume_point();
        self.checkpoints.begin(&self.pod.uid, &from);
        let mut state = self.state(from);
        let follow = self.context.metrics.follow();
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
            // The instance before is complete.
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

    /// Returns the furthest checkpoint that is stored for this pod's log, or the log's start.
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
            // The node keeps the log of the instance before the newest, too.
            Checkpoint::start((self.pod.restart_count - 1).max(0))
        })
    }

    fn state(&self, from: Checkpoint) -> SessionState<S, P> {
        let now = Instant::now();
        SessionState {
            backlog: Backlog::new(&self.context),
            maker: Maker::new(self.pod.clone(), &self.context.namespace, &self.term),
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

    /// Opens streams, with a growing backoff, until the session ends.
    async fn streams(&self, state: &mut SessionState<S, P>) -> End {
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

    /// Goes on reading until that time, without a stream.
    async fn between(&self, state: &mut SessionState<S, P>, until: Instant) -> Option<End> {
        loop {
            if state.end == Some(End::Gone) && state.is_stale(self.context.drain_timeout) {
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

    /// Sends lines and receives answers until the stream breaks or the session ends.
    async fn stream(&self, state: &mut SessionState<S, P>, apart: bool) -> Broken {
        state.backlog.window.restart();
        let (entries, mut answers) = self.handler.forward(self.pod.traceparent.as_deref(), apart);
        let mut draining: Option<Instant> = None;
        loop {
            let all_is_settled = state.backlog.window.is_empty() && state.backlog.is_empty();
            // A log that the next leader goes on with is not ended here.
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
            let mute_at = state.last_answer + self.context.ack_timeout;
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
}

/// Ends our side of a stream of which everything is acknowledged, and waits for otto-handler to
/// end its own. What it says now does not matter.
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
