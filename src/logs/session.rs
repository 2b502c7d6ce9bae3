//! One worker's log, from its first byte to its last acknowledgement.
//!
//! Two nested loops: the outer opens streams to otto-handler, the inner pumps
//! lines in and answers out. A broken stream loses nothing: what was not
//! answered stays in the window and goes out again with the same sequence.
use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Streaming};

use super::{
    checkpoint::{Checkpoint, Resume, Step, Tracker},
    entry::{Entry, Maker},
    follow::{Error, Reader, Source},
    handler::HandlerClient,
    line::Line,
    reopen::Reopen,
    settings::{Pods, Settings},
    window::{Answer, Window},
};
use crate::{
    config::AckMode,
    domain::pod::Pod,
    proto::{
        LogForwardResponse, WorkerLogEntry, log_forward_response::Status,
        otto_handler_log_service_client::OttoHandlerLogServiceClient,
    },
    telemetry,
    workers::Drained,
};

/// Bytes of a worker's entries under way.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Between two checkpoints of a pod.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Of a drain, for answers to what is under way.
const LAST_ANSWERS: Duration = Duration::from_secs(3);

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Every line is acknowledged.
    Drained,
    /// Handed over to the next leader, checkpoint stored.
    HandedOver,
    /// The pod went; what was missing was told.
    Gone,
}

/// Why a stream to otto-handler was given up.
enum Broken {
    Finished(End),
    /// Open another one.
    Stream(String),
}

pub(super) struct Session<S, P> {
    pub(super) pod: Arc<Pod>,
    pub(super) labels: HashMap<String, String>,
    pub(super) source: Arc<S>,
    pub(super) pods: P,
    pub(super) drained: Drained,
    pub(super) handler: HandlerClient,
    pub(super) settings: Settings,
    pub(super) term: String,
    pub(super) drain: CancellationToken,
}

type Opening = Pin<Box<dyn Future<Output = Result<Reader, Error>> + Send>>;

/// What moves while a session runs.
struct State {
    window: Window<Entry>,
    bytes: usize,
    /// Lines read, and lines acknowledged.
    read: Tracker,
    acked: Tracker,
    reader: Option<Reader>,
    /// A log being opened; kept, so that other events do not start it over.
    opening: Option<Opening>,
    /// Where the open log was, or is to be, opened.
    from: Checkpoint,
    /// Holds lines back until the reader is past `from`; None once it is.
    resume: Option<Resume>,
    /// The log was read to its end after the container ended.
    ended: bool,
    gone: bool,
    /// Where the log ended when it was last read after the container's end.
    lines_at_end: Option<u64>,
    next_open: Instant,
    reopen: Reopen,
    pause_until: Option<Instant>,
    last_answer: Instant,
    saved: Instant,
    saved_next: u64,
    lines: u64,
    dropped: u64,
    retried: u64,
}

impl<S: Source, P: Pods> Session<S, P> {
    /// Runs to an [`End`]; dropped when the term is lost.
    pub(super) async fn run(self) -> End {
        let from = self.pod.checkpoint.as_deref().and_then(Checkpoint::parse);
        let from = from
            .filter(|c| c.restart == self.pod.restart_count)
            .unwrap_or_else(|| Checkpoint::start(self.pod.restart_count));
        let now = Instant::now();
        let mut state = State {
            window: Window::new(self.settings.window),
            bytes: 0,
            read: Tracker::resume(&from),
            acked: Tracker::resume(&from),
            reader: None,
            opening: None,
            resume: Some(Resume::new(from.clone())),
            from: from.clone(),
            ended: false,
            gone: false,
            lines_at_end: None,
            next_open: now,
            reopen: Reopen::default(),
            pause_until: None,
            last_answer: now,
            saved: now,
            saved_next: from.next,
            lines: 0,
            dropped: 0,
            retried: 0,
        };
        let end = self.streams(&mut state).await;
        if end == End::HandedOver {
            self.save(&mut state).await;
        }
        let State {
            lines,
            dropped,
            retried,
            ..
        } = state;
        tracing::info!(
            pod = &*self.pod.name,
            ?end,
            lines,
            dropped,
            retried,
            "log session ended"
        );
        end
    }

    /// Opens streams until one ends well; the wait between two grows.
    async fn streams(&self, state: &mut State) -> End {
        let mut failures = 0_u32;
        loop {
            let before = state.acked.next();
            match self.stream(state).await {
                Broken::Finished(end) => return end,
                Broken::Stream(why) => {
                    if state.acked.next() > before {
                        failures = 0;
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
                    tokio::select! {
                        () = self.drain.cancelled() => return End::HandedOver,
                        () = sleep(delay) => {}
                    }
                }
            }
        }
    }

    async fn stream(&self, state: &mut State) -> Broken {
        state.window.restart();
        let place = self.handler.place();
        let (entries, outgoing) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        telemetry::inject(request.metadata_mut(), self.pod.traceparent.as_deref());
        let mut client = OttoHandlerLogServiceClient::new(place.channel.clone())
            .max_decoding_message_size(64 * 1024);
        let opening = client.forward_worker_logs(request);
        let answers = tokio::select! {
            () = self.drain.cancelled() => return Broken::Finished(End::HandedOver),
            // A handler may hold its headers back until the first entry: pump
            // while it opens.
            opened = timeout(self.settings.ack_timeout, opening) => match opened {
                Err(_) => return Broken::Stream("no answer in time".to_owned()),
                Ok(Err(status)) => return Broken::Stream(format!("{:?}: {}", status.code(), status.message())),
                Ok(Ok(answers)) => answers.into_inner(),
            }
        };
        state.last_answer = Instant::now();
        self.pump(state, entries, answers).await
    }

    async fn pump(
        &self,
        state: &mut State,
        entries: mpsc::Sender<WorkerLogEntry>,
        mut answers: Streaming<LogForwardResponse>,
    ) -> Broken {
        let mut draining: Option<Instant> = None;
        loop {
            if state.window.is_empty() {
                if state.ended || state.gone {
                    return self.half_close(state, entries, answers).await;
                }
                if draining.is_some() {
                    return Broken::Finished(End::HandedOver);
                }
            }
            let now = Instant::now();
            let paused = state.pause_until.filter(|at| *at > now);
            let may_send = paused.is_none() && state.window.next().is_some();
            let may_read = draining.is_none()
                && !state.ended
                && !state.gone
                && !state.window.is_full()
                && state.bytes < MAX_BYTES;
            let mute_at = state.last_answer + self.settings.ack_timeout;
            let wake = [
                paused,
                state.window.awaits_answers().then_some(mute_at),
                draining,
                Some(state.saved + CHECKPOINT_EVERY)
                    .filter(|_| state.acked.next() != state.saved_next),
            ];
            let wake = wake
                .into_iter()
                .flatten()
                .min()
                .unwrap_or_else(|| now + Duration::from_secs(60));
            tokio::select! {
                biased;
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => self.answered(state, &answer),
                    Ok(None) => return Broken::Stream("otto-handler ended it".to_owned()),
                    Err(status) => return Broken::Stream(format!("{:?}: {}", status.code(), status.message())),
                },
                permit = entries.reserve(), if may_send => match permit {
                    Ok(permit) => {
                        if !state.window.awaits_answers() {
                            state.last_answer = Instant::now();
                        }
                        if let Some(entry) = state.window.next() {
                            permit.send(entry.wire.clone());
                            state.window.sent();
                        }
                    }
                    Err(_) => return Broken::Stream("otto-handler closed it".to_owned()),
                },
                line = self.next_line(state), if may_read => match line {
                    Ok(Some(line)) => self.take(state, line),
                    Ok(None) => self.at_end(state),
                    Err(error) => self.not_read(state, &error),
                },
                () = self.drain.cancelled(), if draining.is_none() => draining = Some(Instant::now() + LAST_ANSWERS),
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if draining.is_some_and(|at| at <= now) {
                        return Broken::Finished(End::HandedOver);
                    }
                    if state.window.awaits_answers() && mute_at <= now {
                        return Broken::Stream("it answers nothing".to_owned());
                    }
                    if state.saved + CHECKPOINT_EVERY <= now {
                        self.save(state).await;
                    }
                }
            }
        }
    }

    /// The next line that we have not read before. Cancel safe: an open log
    /// stays open.
    async fn next_line(&self, state: &mut State) -> Result<Option<Line>, Error> {
        loop {
            if state.reader.is_none() {
                let opening = match &mut state.opening {
                    Some(opening) => opening,
                    None => {
                        sleep_until(state.next_open).await;
                        let since = state.from.since;
                        // A log that has ended is read to its last byte.
                        let follow = !self.is_over();
                        let (source, pod) = (self.source.clone(), self.pod.clone());
                        state.opening.insert(Box::pin(async move {
                            source.open(&pod, since, follow).await
                        }))
                    }
                };
                let opened = opening.await;
                state.opening = None;
                state.reader = Some(opened?);
                if !self.pods.is_current(&self.pod) {
                    return Err(Error::Gone);
                }
            }
            let Some(reader) = &mut state.reader else {
                continue;
            };
            let Some(line) = reader.next().await? else {
                return Ok(None);
            };
            let Some(resume) = &mut state.resume else {
                state.reopen.fruitful();
                return Ok(Some(line));
            };
            match resume.step(&line) {
                Step::Held => {
                    if resume.is_flowing() {
                        self.flow(state);
                    }
                }
                Step::New => {
                    self.flow(state);
                    state.reopen.fruitful();
                    return Ok(Some(line));
                }
                Step::Mismatch => {
                    self.gap(state, "rotated");
                }
            }
        }
    }

    /// The reader has passed what was behind us.
    #[expect(clippy::unused_self, reason = "one place for the rules of a session")]
    fn flow(&self, state: &mut State) {
        if let Some(resume) = state.resume.take() {
            let tracker = resume.into_tracker();
            // On the first open nothing is between read and acknowledged.
            if state.window.is_empty() && state.acked.next() == state.read.next() {
                state.acked = tracker.clone();
            }
            state.read = tracker;
        }
    }

    /// Lines are missing: says so, and goes on with what there is.
    fn gap(&self, state: &mut State, reason: &str) {
        tracing::warn!(pod = &*self.pod.name, reason, "log lines are missing");
        let entry = self.maker().gap(&state.read, reason);
        state.read.pass_gap();
        // From what the file has now, everything is new.
        state.resume = None;
        self.rewind(state);
        state.bytes += entry.bytes;
        state.window.push(entry);
    }

    /// A log that ended: for good if the container has, else it is opened again.
    fn at_end(&self, state: &mut State) {
        let over = self.is_over();
        if state.resume.as_ref().is_some_and(|r| !r.is_flowing()) {
            // It has fewer lines than are behind us.
            if over {
                self.gap(state, "rotated");
            } else {
                self.rewind(state);
            }
            return;
        }
        self.flow(state);
        // Ended means: read to the end by an open that began after the end.
        let read = state.read.next();
        state.ended = over && state.lines_at_end == Some(read);
        state.lines_at_end = over.then_some(read);
        self.rewind(state);
        if over {
            state.next_open = Instant::now();
        }
    }

    /// The log is opened again, and what is behind us held back.
    #[expect(clippy::unused_self, reason = "one place for the rules of a session")]
    fn rewind(&self, state: &mut State) {
        // A reader that had not come past its start has moved nothing.
        if state.resume.is_none() {
            state.from = state.read.checkpoint();
        }
        state.resume = Some(Resume::new(state.from.clone()));
        state.reader = None;
        state.next_open = Instant::now() + state.reopen.delay();
    }

    fn not_read(&self, state: &mut State, error: &Error) {
        self.rewind(state);
        if matches!(error, Error::Gone) || !self.pods.is_current(&self.pod) {
            // Its logs went with it.
            if state.lines_at_end != Some(state.read.next()) {
                self.gap(state, "pod gone");
            }
            state.gone = true;
        } else {
            tracing::debug!(pod = &*self.pod.name, %error, "log not read; trying again");
        }
    }

    fn is_over(&self) -> bool {
        self.pods
            .latest(&self.pod)
            .is_none_or(|p| p.phase.is_terminal() || p.finished.is_some())
    }

    fn take(&self, state: &mut State, line: Line) {
        if let Some(second) = line.second.filter(|_| state.read.next() == 1) {
            self.drained.began(&self.pod.uid, second);
        }
        let entry = self.maker().line(&state.read, line);
        if let Some((second, hash)) = entry.line {
            state.read.pass(second, hash);
        }
        state.bytes += entry.bytes;
        state.lines += 1;
        state.window.push(entry);
    }

    fn maker(&self) -> Maker<'_> {
        Maker {
            pod: &self.pod,
            labels: &self.labels,
            namespace: &self.settings.namespace,
            term: &self.term,
        }
    }

    fn answered(&self, state: &mut State, answer: &LogForwardResponse) {
        let now = Instant::now();
        state.last_answer = now;
        let throttle = u64::try_from(answer.throttle_ms).unwrap_or(0);
        let status = answer.status();
        let settled = match (self.settings.ack, status) {
            (AckMode::Cumulative, Status::Ack) => {
                let up_to = u64::try_from(answer.sequence).unwrap_or(0);
                state.window.answer_up_to(|e| e.sequence <= up_to)
            }
            (_, Status::Ack) => state.window.answer(Answer::Ack).into_iter().collect(),
            (_, Status::Drop) => state.window.answer(Answer::Drop).into_iter().collect(),
            (_, Status::Retry) => {
                state.retried += 1;
                state.window.answer(Answer::Retry);
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
        for entry in settled {
            state.dropped += u64::from(status == Status::Drop);
            state.bytes -= entry.bytes;
            match entry.line {
                Some((second, hash)) => state.acked.pass(second, hash),
                None => state.acked.pass_gap(),
            }
        }
    }

    /// All is acknowledged: ends our side, waits for otto-handler's.
    async fn half_close(
        &self,
        state: &mut State,
        entries: mpsc::Sender<WorkerLogEntry>,
        mut answers: Streaming<LogForwardResponse>,
    ) -> Broken {
        drop(entries);
        // Whatever it says now, it has answered every entry.
        let _ = timeout(LAST_ANSWERS, async {
            while let Ok(Some(_)) = answers.message().await {}
        })
        .await;
        Broken::Finished(if state.gone { End::Gone } else { End::Drained })
    }

    async fn save(&self, state: &mut State) {
        state.saved = Instant::now();
        if state.acked.next() == state.saved_next {
            return;
        }
        let checkpoint = state.acked.checkpoint();
        match self.source.save(&self.pod, checkpoint.encode()).await {
            Ok(()) => state.saved_next = checkpoint.next,
            // The next one covers it.
            Err(error) => tracing::debug!(pod = &*self.pod.name, %error, "checkpoint not stored"),
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
