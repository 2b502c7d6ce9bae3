//! Every call to the leader, wherever it is.
//!
//! What holds: a call crosses at most one hop; a replica never dials itself; a
//! call that meets no leader, or one that is just leaving, is held and replayed
//! (requests are idempotent) until shortly before its deadline.
use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::{
    call::{Answer, Call, Verb},
    errors,
    forward::Forward,
};
use crate::{domain::request::Refusal, election::Leadership, workers::Scale};

/// Held so long when the client gives no deadline.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// Left to the client for our answer.
const MARGIN: Duration = Duration::from_millis(200);
/// Between two looks for a leader when nothing tells of a change.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A leader that runs in this process. Set and cleared by the app, read by calls.
#[derive(Debug)]
struct Local(Arc<dyn Scale>);

#[derive(Debug)]
pub struct Router {
    local: ArcSwapOption<Local>,
    leadership: Leadership,
    forward: Forward,
    /// Our own address, which is never dialled.
    address: String,
}

enum Try {
    Answered(Box<Answer>),
    /// For good.
    Refused(Status),
    /// Nobody could take it now.
    Nobody(Status),
}

impl Router {
    pub fn new(leadership: Leadership, pod_name: &str, address: &str) -> Self {
        Self {
            local: ArcSwapOption::empty(),
            leadership,
            forward: Forward::new(pod_name),
            address: address.to_owned(),
        }
    }

    /// Calls are answered here from now on.
    pub fn lead(&self, scale: Arc<dyn Scale>) {
        self.local.store(Some(Arc::new(Local(scale))));
    }

    /// Calls are answered elsewhere from now on.
    pub fn follow(&self) {
        self.local.store(None);
    }

    pub(super) fn deadline(timeout: Option<Duration>) -> Instant {
        let timeout = timeout.unwrap_or(DEFAULT_DEADLINE);
        Instant::now() + timeout.saturating_sub(MARGIN).max(timeout / 2)
    }

    pub(super) async fn route(&self, call: Call) -> Result<Answer, Status> {
        let mut changes = self.leadership.watch();
        loop {
            changes.borrow_and_update();
            let attempt = timeout_at(call.deadline, self.attempt(&call, &mut changes)).await;
            let nobody = match attempt {
                Ok(Try::Answered(answer)) => return Ok(*answer),
                Ok(Try::Refused(status)) => return Err(status),
                Ok(Try::Nobody(status)) => status,
                Err(_) => errors::not_leader("no leader answered in time; try again"),
            };
            // A marked call goes back: the follower that sent it looks again.
            if call.forwarded || call.deadline <= Instant::now() + LOOK_AGAIN {
                return Err(nobody);
            }
            let wait = tokio::time::timeout(LOOK_AGAIN, changes.changed());
            if let Ok(Err(_)) = wait.await {
                return Err(nobody);
            }
        }
    }

    async fn attempt(
        &self,
        call: &Call,
        changes: &mut tokio::sync::watch::Receiver<Option<Arc<crate::election::Leader>>>,
    ) -> Try {
        if let Some(local) = self.local.load_full() {
            return self.here(&local, call).await;
        }
        if call.forwarded {
            return Try::Nobody(errors::not_leader("this replica does not lead"));
        }
        let Some(leader) = self
            .leadership
            .current()
            .filter(|l| !l.here && l.address != self.address)
        else {
            return Try::Nobody(errors::not_leader("there is no leader yet; try again"));
        };
        // A new leader means that the old one will not answer.
        let moved = async {
            while changes.changed().await.is_ok() {
                if changes
                    .borrow_and_update()
                    .as_ref()
                    .is_some_and(|l| l.term != leader.term)
                {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = self.forward.send(&leader.address, call) => match answer {
                Ok(answer) => Try::Answered(Box::new(answer)),
                Err(status) if errors::is_passing(status.code()) => Try::Nobody(status),
                Err(status) => Try::Refused(status),
            },
            () = moved => Try::Nobody(errors::not_leader("the leader changed")),
        }
    }

    async fn here(&self, local: &Local, call: &Call) -> Try {
        let started_at = jiff::Timestamp::now();
        let request = super::convert::request(
            call.request.clone(),
            call.request_id.clone(),
            call.traceparent.clone(),
        );
        let result = match call.verb {
            Verb::Up => local.0.scale_up(request).await,
            Verb::Down => local.0.scale_down(request).await,
        };
        match result {
            Ok(outcome) => Try::Answered(Box::new(Answer {
                task_version: outcome.task_version,
                pod_version: outcome.pod_version,
                response: super::convert::response(outcome, started_at),
            })),
            Err(refusal @ (Refusal::NotLeader | Refusal::Unavailable(_))) => {
                Try::Nobody(errors::status(refusal))
            }
            Err(refusal) => Try::Refused(errors::status(refusal)),
        }
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
