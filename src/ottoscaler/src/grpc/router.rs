//! Routes ScaleUp and ScaleDown to the leader, in this replica or another one.
//!
//! Invariants:
//! - A call crosses at most one hop.
//! - A replica never connects to itself.
//! - A call that finds no leader, or one that steps down, is held and sent again until shortly
//!   before its deadline. Requests are idempotent.
//! - A call whose time passes is answered with what a leader said of it; else with
//!   DEADLINE_EXCEEDED when a leader works on it, and with UNAVAILABLE when none was found.
use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tonic::Status;

use super::{
    call::{Checked, RoutedResponse, ScaleCall},
    deadline::MAX_UNARY_CALL,
    errors,
    forward::ForwardingClient,
};
use crate::{domain::request::Refusal, election::Leadership, tls::TlsPeer, workers::Scale};

/// The timeout of a call whose client gives no deadline. It is longer than a change of leader after
/// a lost node takes, so that such a call survives one.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// The part of the client's timeout that is reserved for the response to reach it, over one hop and
/// a slow network.
const RESPONSE_MARGIN: Duration = Duration::from_millis(200);
/// The time after which a held call looks for a leader again when no change was reported. It finds
/// what a broadcast could miss; a look reads memory only.
const LEADER_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A `Router` sends each call to the leader and holds it while there is none.
#[derive(Debug)]
pub struct Router {
    /// The leader that runs in this process, if any. The app sets and clears it, calls read it.
    local: watch::Sender<Option<Arc<dyn Scale>>>,
    leadership: Leadership,
    forwarding_client: ForwardingClient,
    /// The address of this replica, to which no call is forwarded.
    address: String,
}

/// The outcome of one attempt to have a call answered.
enum RouteAttempt {
    Answered(Box<RoutedResponse>),
    /// The call was refused for good.
    Refused(Status),
    /// No leader could take the call now.
    Unavailable(Status),
}

impl Router {
    pub fn new(
        leadership: Leadership,
        pod_name: &str,
        address: &str,
        tls: Option<TlsPeer>,
    ) -> Self {
        Self {
            local: watch::channel(None).0,
            leadership,
            forwarding_client: ForwardingClient::new(pod_name, tls),
            address: address.to_owned(),
        }
    }

    /// Starts to answer calls with the leader of this process.
    pub fn lead(&self, scale: Arc<dyn Scale>) {
        self.local.send_replace(Some(scale));
    }

    /// Stops answering calls in this process.
    pub fn follow(&self) {
        self.local.send_replace(None);
    }

    /// Returns the deadline of a call, somewhat earlier than its client's.
    pub(super) fn deadline(timeout: Option<Duration>) -> Instant {
        let timeout = timeout.map_or(DEFAULT_DEADLINE, |t| t.min(MAX_UNARY_CALL));
        Instant::now() + timeout.saturating_sub(RESPONSE_MARGIN).max(timeout / 2)
    }

    /// Has a call answered by the leader, in as many attempts as its deadline allows.
    pub(super) async fn route(&self, call: ScaleCall) -> Result<RoutedResponse, Status> {
        let mut changes = self.leadership.watch();
        let mut local = self.local.subscribe();
        let mut last = None;
        loop {
            changes.borrow_and_update();
            local.borrow_and_update();
            let mut leader_works = false;
            let attempt = self.attempt(&call, &mut changes, &mut leader_works);
            let attempt = timeout_at(call.deadline, attempt).await;
            let unavailable = match attempt {
                Ok(RouteAttempt::Answered(answer)) => return Ok(*answer),
                Ok(RouteAttempt::Refused(status)) => return Err(status),
                Ok(RouteAttempt::Unavailable(status)) => status,
                // What a leader answered before is more useful than a report of the timeout.
                Err(_) => last.take().unwrap_or_else(|| {
                    if leader_works {
                        errors::not_finished_in_time()
                    } else {
                        self.no_leader_in_time()
                    }
                }),
            };
            // A forwarded call is given back: the follower that sent it looks for the leader again.
            if call.target_term.is_some() || call.deadline <= Instant::now() + LEADER_POLL_INTERVAL
            {
                return Err(unavailable);
            }
            last = Some(unavailable).filter(errors::is_from_leader);
            let changed = timeout(LEADER_POLL_INTERVAL, async {
                tokio::select! {
                    changed = changes.changed() => changed,
                    led = local.changed() => led,
                }
            });
            if let Ok(Err(_)) = changed.await {
                return Err(errors::stopping());
            }
        }
    }

    /// Has a call answered once. It sets `leader_works` when the leader of this process begins.
    async fn attempt(
        &self,
        call: &ScaleCall,
        changes: &mut tokio::sync::watch::Receiver<Option<Arc<crate::election::Leader>>>,
        leader_works: &mut bool,
    ) -> RouteAttempt {
        if let Some(local) = self.local_leader().await
            && self.is_for_local_term(call)
        {
            *leader_works = true;
            return self.answer_locally(&*local, call).await;
        }
        if call.target_term.is_some() {
            return RouteAttempt::Unavailable(errors::not_leader(
                "this replica does not lead that term",
            ));
        }
        let Some(leader) = self
            .leadership
            .current()
            .filter(|l| !l.is_local && l.address.as_ref().is_some_and(|a| *a != self.address))
        else {
            return RouteAttempt::Unavailable(errors::not_leader(
                "there is no leader yet; try again",
            ));
        };
        // Once another leader is known, the former one will not answer.
        let leader_changed = async {
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
            answer = self.forwarding_client.send(&leader, call) => match answer {
                Ok(answer) => RouteAttempt::Answered(Box::new(answer)),
                Err(status) if errors::is_retryable(status.code()) => RouteAttempt::Unavailable(errors::from_hop(status)),
                Err(status) if errors::is_about_the_hop(status.code()) => {
                    RouteAttempt::Unavailable(errors::hop_refused(&status))
                }
                Err(status) => RouteAttempt::Refused(status),
            },
            () = leader_changed => RouteAttempt::Unavailable(errors::not_leader("the leader changed")),
        }
    }

    fn no_leader_in_time(&self) -> Status {
        let leader = self.leadership.current();
        let why = leader.and_then(|l| self.forwarding_client.last_error(l.address.as_deref()?));
        errors::not_leader(match why {
            Some(why) => format!("no leader answered in time ({why}); try again"),
            None => "no leader answered in time; try again".to_owned(),
        })
    }

    /// Reports whether a call is for the term of this process, rather than for another leader that
    /// had the same address.
    fn is_for_local_term(&self, call: &ScaleCall) -> bool {
        call.target_term.as_ref().is_none_or(|term| {
            let current = self.leadership.current();
            current.is_some_and(|l| l.is_local && l.term.to_string() == *term)
        })
    }

    /// Returns the leader that runs in this process. If its term has just begun, this waits a
    /// moment for its work to start.
    async fn local_leader(&self) -> Option<Arc<dyn Scale>> {
        let mut local = self.local.subscribe();
        let now = local.borrow_and_update().clone();
        if now.is_some() || !self.leadership.current().is_some_and(|l| l.is_local) {
            return now;
        }
        let begun = timeout(LEADER_POLL_INTERVAL, local.wait_for(Option::is_some));
        begun.await.ok()?.ok()?.clone()
    }

    async fn answer_locally(&self, local: &dyn Scale, call: &ScaleCall) -> RouteAttempt {
        let started_at = jiff::Timestamp::now();
        let result = match call.checked.clone() {
            Checked::Up(request) => local.scale_up(*request, call.deadline).await,
            Checked::Down(request) => local.scale_down(request).await,
        };
        match result {
            Ok(outcome) => RouteAttempt::Answered(Box::new(RoutedResponse {
                task_version: outcome.task_version,
                pod_version: outcome.pod_version,
                response: super::convert::scale_response(outcome, started_at),
            })),
            Err(refusal @ (Refusal::NotLeader | Refusal::Unavailable(_))) => {
                RouteAttempt::Unavailable(errors::from_refusal(refusal))
            }
            Err(refusal) => RouteAttempt::Refused(errors::from_refusal(refusal)),
        }
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
