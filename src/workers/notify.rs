//! Tells otto-handler of each transition: at least once, in order per worker.
//!
//! What holds: of a worker at most one notification is under way; one that is
//! not taken is tried again with backoff, and the worker's later ones wait for
//! it; what was taken is stored with the task's next status write, so a new
//! leader repeats at most what was not.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    shared::{Shared, span_of},
    timetable::Timetable,
};
use crate::{
    domain::{
        names,
        task::{Notified, NotifiedState, Task, WorkerRecord},
        transition,
    },
    proto::{WorkerStatusNotification, worker_status_notification::StatusType},
};

/// Offers that wait for the courier.
const INBOX: usize = 1_024;
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
    name: Arc<str>,
    task: Arc<Task>,
    record: WorkerRecord,
}

/// The loop's way to the courier: of each worker a transition is offered once,
/// however often its task is planned.
#[derive(Debug)]
pub(super) struct Offers {
    inbox: mpsc::Sender<Offer>,
    /// The last transition that was offered.
    offered: HashMap<Arc<str>, HashMap<u32, Notified>>,
}

pub(super) fn channel() -> (Offers, mpsc::Receiver<Offer>) {
    let (inbox, offers) = mpsc::channel(INBOX);
    let offered = HashMap::new();
    (Offers { inbox, offered }, offers)
}

impl Offers {
    /// Offers what there is to tell, and says whether that is an end of a worker, too;
    /// waits while the courier has its hands full. Of the workers in `unstored`
    /// ([`crate::domain::plan::Plan::unstored_ends`]) nothing is told yet.
    pub(super) async fn offer(
        &mut self,
        name: &Arc<str>,
        task: &Arc<Task>,
        workers: &[WorkerRecord],
        unstored: &BTreeSet<u32>,
    ) -> bool {
        let mut ends = false;
        let may_tell = |w: &&WorkerRecord| transition::next(w).is_some();
        let news = workers.iter().filter(may_tell);
        for record in news.filter(|w| !unstored.contains(&w.index)) {
            let Some(latest) = transition::latest(record) else {
                continue;
            };
            let known = self.offered.entry(name.clone()).or_default();
            if known.insert(record.index, latest) == Some(latest) {
                continue;
            }
            ends |= latest.state.is_end();
            let offer = Offer {
                name: name.clone(),
                task: task.clone(),
                record: record.clone(),
            };
            // The courier ends only with the loop.
            let _ = self.inbox.send(offer).await;
        }
        ends
    }

    /// Of a task that went.
    pub(super) fn forget(&mut self, name: &Arc<str>) {
        self.offered.remove(name);
    }
}

type Worker = (Arc<str>, u32);

struct Waiting {
    offer: Offer,
    failures: u32,
}

pub(super) struct Courier {
    shared: Arc<Shared>,
    tell: Arc<dyn Tell>,
    inbox: mpsc::Receiver<Offer>,
    waiting: HashMap<Worker, Waiting>,
    /// Those that wait for their turn; the others are under way.
    due: Timetable<Worker>,
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
            due: Timetable::default(),
            under_way: JoinSet::new(),
        }
    }

    pub(super) async fn run(mut self, drain: CancellationToken) {
        loop {
            self.dispatch();
            let next = self.due.next();
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
                self.due.by(key.clone(), Instant::now());
                self.waiting.insert(key, Waiting { offer, failures: 0 });
            }
        }
    }

    fn dispatch(&mut self) {
        let now = Instant::now();
        while self.under_way.len() < UNDER_WAY
            && let Some(key) = self.due.pop(now)
        {
            let Some(waiting) = self.waiting.get(&key) else {
                continue;
            };
            let Some(next) = transition::next(&waiting.offer.record) else {
                self.waiting.remove(&key);
                continue;
            };
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
                waiting.offer.record.notified = newest(waiting.offer.record.notified, Some(told));
                match transition::next(&waiting.offer.record) {
                    Some(_) => self.due.by(key.clone(), Instant::now()),
                    None => drop(self.waiting.remove(&key)),
                }
                self.shared.took(&key.0, key.1, told);
            }
            Err(error) => {
                if waiting.failures == 0 {
                    tracing::warn!(task = %key.0, worker = key.1, error, "otto-handler did not take a notification; trying again");
                }
                let delay = Duration::from_millis(100 << waiting.failures.min(8)).min(MAX_BACKOFF);
                waiting.failures += 1;
                self.due.by(key, Instant::now() + delay);
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
    if told.state.is_end() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::task::WorkerPhase;

    #[tokio::test]
    async fn a_transition_is_offered_once_however_often_it_is_planned() {
        let (mut offers, mut inbox) = channel();
        let all_stored = BTreeSet::new();
        let (name, task) = (Arc::from("t"), Arc::default());
        let mut worker = WorkerRecord {
            index: 1,
            attempt: 1,
            uid: Some("u".into()),
            phase: WorkerPhase::Pending,
            ..WorkerRecord::default()
        };
        let mut offered = Vec::new();
        for phase in [
            WorkerPhase::Pending,
            WorkerPhase::Running,
            WorkerPhase::Failed,
        ] {
            worker.phase = phase;
            let ended = offers
                .offer(&name, &task, &[worker.clone()], &all_stored)
                .await;
            assert_eq!(ended, phase == WorkerPhase::Failed);
            assert!(
                !offers
                    .offer(&name, &task, &[worker.clone()], &all_stored)
                    .await
            );
            while let Ok(offer) = inbox.try_recv() {
                offered.push(offer.record.phase);
            }
        }
        let each = [
            WorkerPhase::Pending,
            WorkerPhase::Running,
            WorkerPhase::Failed,
        ];
        assert_eq!(offered, each);
        // A new attempt is news, and so is a task of this name after it went.
        worker.attempt = 2;
        worker.phase = WorkerPhase::Pending;
        offers
            .offer(&name, &task, &[worker.clone()], &all_stored)
            .await;
        offers.forget(&name);
        offers.offer(&name, &task, &[worker], &all_stored).await;
        assert_eq!(
            (inbox.try_recv().is_ok(), inbox.try_recv().is_ok()),
            (true, true)
        );
    }
}
