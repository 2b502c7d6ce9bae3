//! Handling of otto-handler's answers.
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;

use super::{Session, state::SessionState};
use crate::{
    args::AckMode,
    handler::{Answered, Answers, loggable},
    logs::{
        forward::window::Answer,
        read::{follow::Source, pods::PodLookup},
    },
    proto::{LogForwardResponse, log_forward_response::Status},
};

impl<S: Source, P: PodLookup> Session<S, P> {
    /// Handles that answer, and those that have arrived after it.
    pub(super) fn all_answered(
        &self,
        state: &mut SessionState<S, P>,
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

    fn answered(&self, state: &mut SessionState<S, P>, answer: &LogForwardResponse) {
        let now = Instant::now();
        state.last_answer = now;
        let throttle = u64::try_from(answer.throttle_ms).unwrap_or(0);
        let status = answer.status();
        let settled = match (self.context.ack, status) {
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
                self.context.metrics.retried.inc();
                state.backlog.window.answer(Answer::Retry);
                Vec::new()
            }
        };
        let pause = match status {
            // A short backoff keeps repeated RETRY answers from becoming a busy loop.
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
                self.context.metrics.dropped.inc();
            } else {
                self.context.metrics.acknowledged.inc();
                if let Some(time) = entry.printed() {
                    self.context.metrics.took(time);
                }
            }
            state.backlog.settled(&entry);
            state.acked = entry.then;
        }
    }
}
