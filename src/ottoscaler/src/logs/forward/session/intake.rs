//! Moves lines from the log into the session's backlog.
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{End, MAX_BACKOFF, Session, state::SessionState};
use crate::{
    cluster::Loggable,
    logs::{
        forward::{checkpoint::MAX_EPOCH, entry::Entry, epochs::EpochStore},
        read::{
            follow::{Error, Source},
            pods::PodLookup,
            tail::Next,
        },
    },
};

/// The deadline of one attempt to store an epoch. It is tried again, because no line after a
/// gap may go out without it.
const RESERVED_WITHIN: Duration = Duration::from_secs(10);

impl<S: Source + EpochStore, P: PodLookup> Session<S, P> {
    /// Takes everything that was read together: an iteration of the session's loop for each
    /// line would cost more than the line.
    pub(super) async fn take_all(&self, state: &mut SessionState<S, P>, next: Next) {
        self.take(state, next).await;
        while state.may_read() {
            let Some(next) = state.tail.ready() else {
                return;
            };
            self.take(state, next).await;
        }
    }

    pub(super) async fn take(&self, state: &mut SessionState<S, P>, next: Next) {
        let metrics = &self.context.metrics;
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
                    // The next leader finds this gap as well.
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

    /// Returns an epoch that no other reader of this log uses. It is stored before its first use.
    /// None: the session drains.
    async fn new_epoch(&self, state: &mut SessionState<S, P>) -> Option<u32> {
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
                // No reader follows this one: the pod is gone.
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

    pub(super) async fn refill(&self, state: &mut SessionState<S, P>) {
        let Err(error) = state.backlog.refill().await else {
            return;
        };
        tracing::error!(pod = &*self.pod.name, %error, "the spool lost lines; they are read again (LOG_SPOOL_DIR)");
        let last = state.backlog.window.last().map(|e| e.then.clone());
        state.read = last.unwrap_or_else(|| state.acked.clone());
        state.tail = self.tail(&state.read);
        state.end = None;
    }
}
