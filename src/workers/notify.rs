//! Tells otto-handler of each transition: at least once, in order per worker.
//!
//! What holds: of a worker at most one notification is under way; one that is
//! not taken is tried again with backoff, and the worker's later ones wait for
//! it; what was taken is stored with the task's next status write, so a new
//! leader repeats at most what was not.
use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::shared::{Shared, span_of};
use crate::{
    domain::{
        names,
        task::{Notified, NotifiedState, Task, WorkerRecord},
        transition,
    },
    proto::{WorkerStatusNotification, worker_status_notification::StatusType},
};

/// Offers that wait for the courier.
pub(super) const INBOX: usize = 1_024;
/// Notifications under way.
const UNDER_WAY: usize = 64;
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// Of a drain, for what is under way.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Where notifications go.
#[tonic::async_trait]
pub trait Tell: Send + Sync + 'static {
    /// Whether otto-handler took it (RECEIVED or IGNORED).
    ///
    /// # Errors
    /// otto-handler is away or answered ERROR; try again.
    async fn tell(&self, notification: WorkerStatusNotification) -> Result<(), String>;
}

/// A worker with something to tell.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) name: Arc<str>,
    pub(super) task: Arc<Task>,
    pub(super) record: WorkerRecord,
}

type Worker = (Arc<str>, u32);

struct Waiting {
    offer: Offer,
    failures: u32,
    /// None while under way.
    at: Option<Instant>,
}

pub(super) struct Courier {
    shared: Arc<Shared>,
    tell: Arc<dyn Tell>,
    inbox: mpsc::Receiver<Offer>,
    waiting: HashMap<Worker, Waiting>,
    under_way: JoinSet<(Worker, Notified, Result<(), String>)>,
}

impl Courier {
    pub(super) fn new(
        shared: Arc<Shared>,
        tell: Arc<dyn Tell>,
        inbox: mpsc::Receiver<Offer>,
    ) -> Self {
        Self {
            shared,
            tell,
            inbox,
            waiting: HashMap::new(),
            under_way: JoinSet::new(),
        }
    }

    pub(super) async fn run(mut self, drain: CancellationToken) {
        loop {
            self.dispatch();
            let next = self.waiting.values().filter_map(|w| w.at).min();
            let next = next.filter(|_| self.under_way.len() < UNDER_WAY);
            tokio::select! {
                offer = self.inbox.recv() => match offer {
                    Some(offer) => self.take(offer),
                    // The manager has stopped.
                    None => break,
                },
                Some(ended) = self.under_way.join_next() => self.ended(ended),
                () = sleep_until(next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3_600))) => {}
            }
            if drain.is_cancelled() && self.inbox.is_closed() {
                break;
            }
        }
        let _ = tokio::time::timeout(LAST_WORDS, async {
            while let Some(ended) = self.under_way.join_next().await {
                self.ended(ended);
            }
        })
        .await;
    }

    /// A newer record replaces an older one; what is under way goes on.
    fn take(&mut self, offer: Offer) {
        let key = (offer.name.clone(), offer.record.index);
        match self.waiting.get_mut(&key) {
            Some(waiting) => {
                let notified = newest(waiting.offer.record.notified, offer.record.notified);
                waiting.offer = offer;
                waiting.offer.record.notified = notified;
            }
            None => {
                self.waiting.insert(
                    key,
                    Waiting {
                        offer,
                        failures: 0,
                        at: Some(Instant::now()),
                    },
                );
            }
        }
    }

    fn dispatch(&mut self) {
        let now = Instant::now();
        let due: Vec<Worker> = self
            .waiting
            .iter()
            .filter(|(_, w)| w.at.is_some_and(|at| at <= now))
            .take(UNDER_WAY.saturating_sub(self.under_way.len()))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            let Some(waiting) = self.waiting.get_mut(&key) else {
                continue;
            };
            let Some(next) = transition::next(&waiting.offer.record) else {
                self.waiting.remove(&key);
                continue;
            };
            waiting.at = None;
            let span = span_of(&waiting.offer.task, "notify worker status");
            let message = notification(&waiting.offer.task, &waiting.offer.record, next);
            let tell = self.tell.clone();
            use tracing::Instrument as _;
            self.under_way
                .spawn(async move { (key, next, tell.tell(message).await) }.instrument(span));
        }
    }

    fn ended(
        &mut self,
        ended: Result<(Worker, Notified, Result<(), String>), tokio::task::JoinError>,
    ) {
        let Ok((key, told, result)) = ended else {
            return;
        };
        let Some(waiting) = self.waiting.get_mut(&key) else {
            return;
        };
        match result {
            Ok(()) => {
                waiting.failures = 0;
                waiting.at = Some(Instant::now());
                waiting.offer.record.notified = newest(waiting.offer.record.notified, Some(told));
                if transition::next(&waiting.offer.record).is_none() {
                    self.waiting.remove(&key);
                }
                self.shared.took(&key.0, key.1, told);
            }
            Err(error) => {
                if waiting.failures == 0 {
                    tracing::warn!(task = %key.0, worker = key.1, error, "otto-handler did not take a notification; trying again");
                }
                let delay = Duration::from_millis(100 << waiting.failures.min(8)).min(MAX_BACKOFF);
                waiting.failures += 1;
                waiting.at = Some(Instant::now() + delay);
            }
        }
    }
}

fn newest(a: Option<Notified>, b: Option<Notified>) -> Option<Notified> {
    a.into_iter().chain(b).max_by_key(|n| (n.attempt, n.state))
}

fn notification(task: &Task, record: &WorkerRecord, told: Notified) -> WorkerStatusNotification {
    let (status, at) = match told.state {
        NotifiedState::Created => (StatusType::Created, record.created),
        NotifiedState::Running => (StatusType::Running, record.started),
        NotifiedState::Completed => (StatusType::Completed, record.finished),
        NotifiedState::Failed => (StatusType::Failed, record.finished),
        NotifiedState::Terminated => (StatusType::Terminated, record.finished),
    };
    let at = at
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .unwrap_or_else(jiff::Timestamp::now);
    let mut metadata = HashMap::from([
        ("attempt".to_owned(), told.attempt.to_string()),
        // The same on every repeat.
        (
            "event-id".to_owned(),
            format!(
                "{}/{}/{}/{:?}",
                task.uid, record.index, told.attempt, told.state
            ),
        ),
    ]);
    if told.state >= NotifiedState::Completed {
        metadata.extend(
            record
                .exit_code
                .map(|code| ("exit-code".to_owned(), code.to_string())),
        );
        if !record.reason.is_empty() {
            metadata.insert("reason".to_owned(), record.reason.clone());
        }
    }
    WorkerStatusNotification {
        worker_id: names::pod_name(&task.spec.task_id, record.index, told.attempt),
        task_id: task.spec.task_id.clone(),
        status: status.into(),
        timestamp: at.to_string(),
        reason: record.reason.clone(),
        metadata,
    }
}
