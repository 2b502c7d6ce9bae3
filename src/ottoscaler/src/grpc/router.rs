//! Every call to the leader, wherever it is.
//!
//! What holds: a call crosses at most one hop; a replica never dials itself; a
//! call that meets no leader, or one that is just leaving, is held and replayed
//! (requests are idempotent) until shortly before its deadline.
use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tonic::Status;

use super::{
    call::{Answer, Call, Verb},
    deadline::LONGEST_CALL,
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

#[derive(Debug)]
pub struct Router {
    /// A leader that runs in this process. Set and cleared by the app, read by
    /// calls.
    local: watch::Sender<Option<Arc<dyn Scale>>>,
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
            local: watch::channel(None).0,
            leadership,
            forward: Forward::new(pod_name),
            address: address.to_owned(),
        }
    }

    /// Calls are answered here from now on.
    pub fn lead(&self, scale: Arc<dyn Scale>) {
        self.local.send_replace(Some(scale));
    }

    /// Calls are answered elsewhere from now on.
    pub fn follow(&self) {
        self.local.send_replace(None);
    }

    pub(super) fn deadline(timeout: Option<Duration>) -> Instant {
        let timeout = timeout.map_or(DEFAULT_DEADLINE, |t| t.min(LONGEST_CALL));
        Instant::now() + timeout.saturating_sub(MARGIN).max(timeout / 2)
    }

    pub(super) async fn route(&self, call: Call) -> Result<Answer, Status> {
        let mut changes = self.leadership.watch();
        let mut local = self.local.subscribe();
        let mut last = None;
        loop {
            changes.borrow_and_update();
            local.borrow_and_update();
            let attempt = timeout_at(call.deadline, self.attempt(&call, &mut changes)).await;
            let nobody = match attempt {
                Ok(Try::Answered(answer)) => return Ok(*answer),
                Ok(Try::Refused(status)) => return Err(status),
                Ok(Try::Nobody(status)) => status,
                // What was said before tells more than that time is over.
                Err(_) => last.take().unwrap_or_else(|| self.nobody_in_time()),
            };
            // A marked call goes back: the follower that sent it looks again.
            if call.forwarded.is_some() || call.deadline <= Instant::now() + LOOK_AGAIN {
                return Err(nobody);
            }
            last = Some(nobody).filter(errors::is_leaders_word);
            let changed = timeout(LOOK_AGAIN, async {
                tokio::select! {
                    changed = changes.changed() => changed,
                    led = local.changed() => led,
                }
            });
            if let Ok(Err(_)) = changed.await {
                return Err(errors::not_leader("this replica stops; try again"));
            }
        }
    }

    async fn attempt(
        &self,
        call: &Call,
        changes: &mut tokio::sync::watch::Receiver<Option<Arc<crate::election::Leader>>>,
    ) -> Try {
        if let Some(local) = self.local().await
            && self.is_meant_for_us(call)
        {
            return self.here(&*local, call).await;
        }
        if call.forwarded.is_some() {
            return Try::Nobody(errors::not_leader("this replica does not lead that term"));
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
            answer = self.forward.send(&leader, call) => match answer {
                Ok(answer) => Try::Answered(Box::new(answer)),
                Err(status) if errors::is_passing(status.code()) => Try::Nobody(errors::of_hop(status)),
                Err(status) => Try::Refused(status),
            },
            () = moved => Try::Nobody(errors::not_leader("the leader changed")),
        }
    }

    fn nobody_in_time(&self) -> Status {
        let leader = self.leadership.current();
        let why = leader.and_then(|l| self.forward.why(&l.address));
        errors::not_leader(match why {
            Some(why) => format!("no leader answered in time ({why}); try again"),
            None => "no leader answered in time; try again".to_owned(),
        })
    }

    /// Not for another leader that was at this address.
    fn is_meant_for_us(&self, call: &Call) -> bool {
        call.forwarded.as_ref().is_none_or(|term| {
            let current = self.leadership.current();
            current.is_some_and(|l| l.here && l.term.to_string() == *term)
        })
    }

    /// The leader that runs here; waits a moment for one whose term has just begun.
    async fn local(&self) -> Option<Arc<dyn Scale>> {
        let mut local = self.local.subscribe();
        let now = local.borrow_and_update().clone();
        if now.is_some() || !self.leadership.current().is_some_and(|l| l.here) {
            return now;
        }
        let begun = timeout(LOOK_AGAIN, local.wait_for(Option::is_some));
        begun.await.ok()?.ok()?.clone()
    }

    async fn here(&self, local: &dyn Scale, call: &Call) -> Try {
        let started_at = jiff::Timestamp::now();
        let request = super::convert::request(
            call.request.clone(),
            call.request_id.clone(),
            call.traceparent.clone(),
        );
        let result = match call.verb {
            Verb::Up => local.scale_up(request, call.deadline).await,
            Verb::Down => local.scale_down(request).await,
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
