//! Tells otto-handler of each transition: at least once, in order per worker.
//!
//! Invariants: of a worker at most one notification is under way; one that is
//! not taken is tried again with backoff, and the worker's later ones wait for
//! it; what was taken is stored with the task's next status write, so a new
//! leader repeats at most what was not. A worker is known by its task's uid: a task
//! that was made anew under its id has workers of its own. What otto-handler refuses
//! for TASK_TTL is given up, and so is what it cannot be told for so long of a task
//! that is gone.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
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
    tuning::{MAX_WAITERS, NOTIFICATIONS_IN_FLIGHT, NOTIFY_BACKOFF, NOTIFY_DRAIN},
};
use crate::{
    domain::{
        names,
        task::{Notified, NotifiedState, Task, WorkerRecord},
        transition,
    },
    handler::{NotificationSink, Untold},
    proto::{WorkerStatusNotification, worker_status_notification::StatusType},
};

/// A worker with something to tell.
#[derive(Debug)]
pub(super) struct Offer {
    name: Arc<str>,
    task: Arc<Task>,
    record: WorkerRecord,
}

/// The loop's way to the notifier: of each worker a transition is offered once,
/// however often its task is planned.
#[derive(Debug)]
pub(super) struct Outbox {
    inbox: mpsc::Sender<Offer>,
    /// The last transition that was offered, by the task's uid.
    offered: HashMap<String, HashMap<u32, Notified>>,
}

pub(super) fn channel() -> (Outbox, mpsc::Receiver<Offer>) {
    let (inbox, offers) = mpsc::channel(MAX_WAITERS);
    let offered = HashMap::new();
    (Outbox { inbox, offered }, offers)
}

impl Outbox {
    /// Offers what there is to tell, and says whether that is an end of a worker, too;
    /// waits while the notifier's inbox is full. Of the workers in `unstored`
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
            let known = self.offered.entry(task.uid.clone()).or_default();
            if known.insert(record.index, latest) == Some(latest) {
                continue;
            }
            ends |= latest.state.is_end();
            let offer = Offer {
                name: name.clone(),
                task: task.clone(),
                record: record.clone(),
            };
            // The notifier ends only with the loop.
            let _ = self.inbox.send(offer).await;
        }
        ends
    }

    /// Forgets tasks that went, by uid.
    pub(super) fn retain(&mut self, is_remembered: impl Fn(&str) -> bool) {
        self.offered.retain(|uid, _| is_remembered(uid));
    }
}

/// The task's uid, and the worker's index.
type Worker = (Arc<str>, u32);

struct PendingOffer {
    offer: Offer,
    /// Of the next notification, in a row.
    failures: u32,
    /// Since when it fails, and since when otto-handler refuses it.
    failing: Option<Instant>,
    refused: Option<Instant>,
}

/// Tells otto-handler what is offered.
pub(super) struct Notifier {
    shared: Arc<Shared>,
    sink: Arc<dyn NotificationSink>,
    inbox: mpsc::Receiver<Offer>,
    waiting: HashMap<Worker, PendingOffer>,
    /// Those that wait for their turn; the others are under way.
    due: Timetable<Worker>,
    in_flight: JoinSet<(Worker, Notified, Result<(), Untold>)>,
}

impl Notifier {
    pub(super) fn new(
        shared: Arc<Shared>,
        sink: Arc<dyn NotificationSink>,
        inbox: mpsc::Receiver<Offer>,
    ) -> Self {
        Self {
            shared,
            sink,
            inbox,
            waiting: HashMap::new(),
            due: Timetable::default(),
            in_flight: JoinSet::new(),
        }
    }

    pub(super) async fn run(mut self, drain: CancellationToken) {
        loop {
            self.dispatch();
            let next = self.due.next();
            let next = next.filter(|_| self.in_flight.len() < NOTIFICATIONS_IN_FLIGHT);
            tokio::select! {
                offer = self.inbox.recv() => match offer {
                    Some(offer) => self.take(offer),
                    // The manager has stopped.
                    None => break,
                },
                Some(ended) = self.in_flight.join_next() => self.ended(ended),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            if drain.is_cancelled() && self.inbox.is_closed() {
                break;
            }
        }
        let _ = tokio::time::timeout(NOTIFY_DRAIN, async {
            while let Some(ended) = self.in_flight.join_next().await {
                self.ended(ended);
            }
        })
        .await;
    }

    /// A newer record replaces an older one; what is under way goes on.
    fn take(&mut self, offer: Offer) {
        let key = (Arc::from(offer.task.uid.as_str()), offer.record.index);
        match self.waiting.get_mut(&key) {
            Some(waiting) => {
                let known = waiting.offer.record.notified;
                let notified = Notified::latest(known, offer.record.notified);
                waiting.offer = offer;
                waiting.offer.record.notified = notified;
            }
            None => {
                self.due.by(key.clone(), Instant::now());
                let waiting = PendingOffer {
                    offer,
                    failures: 0,
                    failing: None,
                    refused: None,
                };
                self.waiting.insert(key, waiting);
            }
        }
    }

    fn dispatch(&mut self) {
        let now = Instant::now();
        while self.in_flight.len() < NOTIFICATIONS_IN_FLIGHT
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
            let sink = self.sink.clone();
            use tracing::Instrument as _;
            self.in_flight
                .spawn(async move { (key, next, sink.tell(message).await) }.instrument(span));
        }
    }

    fn ended(
        &mut self,
        ended: Result<(Worker, Notified, Result<(), Untold>), tokio::task::JoinError>,
    ) {
        let Ok((key, told, result)) = ended else {
            return;
        };
        match result {
            Ok(()) => self.took(&key, told),
            Err(error) => self.not_taken(&key, &error),
        }
    }

    /// The worker is told of up to that transition.
    fn took(&mut self, key: &Worker, told: Notified) {
        let Some(waiting) = self.waiting.get_mut(key) else {
            return;
        };
        waiting.failures = 0;
        (waiting.failing, waiting.refused) = (None, None);
        let record = &mut waiting.offer.record;
        record.notified = Notified::latest(record.notified, Some(told));
        let name = waiting.offer.name.clone();
        match transition::next(record) {
            Some(_) => self.due.by(key.clone(), Instant::now()),
            None => drop(self.waiting.remove(key)),
        }
        self.shared.took(&name, &key.0, key.1, told);
    }

    fn not_taken(&mut self, key: &Worker, error: &Untold) {
        let Some(waiting) = self.waiting.get_mut(key) else {
            return;
        };
        let now = Instant::now();
        let failing = *waiting.failing.get_or_insert(now);
        let refused = match error {
            Untold::Refused(_) => Some(*waiting.refused.get_or_insert(now)),
            Untold::Away(_) => None,
        };
        let task = self.shared.index.task(&waiting.offer.name);
        let is_gone = task.is_none_or(|t| t.uid != waiting.offer.task.uid);
        // A task that is there waits for an otto-handler that is away.
        let since = refused.or_else(|| is_gone.then_some(failing));
        let name = &waiting.offer.name;
        if since.is_some_and(|since| now - since >= self.shared.limits.task_ttl) {
            let latest = transition::latest(&waiting.offer.record);
            tracing::error!(task = %name, worker = key.1, %error, "otto-handler was told of a worker in vain until TASK_TTL; given up");
            self.shared.metrics.given_up.inc();
            match latest {
                Some(latest) => self.took(key, latest),
                None => drop(self.waiting.remove(key)),
            }
            return;
        }
        if waiting.failures == 0 {
            tracing::warn!(task = %name, worker = key.1, %error, "otto-handler did not take a notification; trying again");
        }
        waiting.failures = waiting.failures.saturating_add(1);
        let delay = NOTIFY_BACKOFF.after(waiting.failures);
        self.due.by(key.clone(), now + delay);
    }
}

/// What is told of a transition: of the attempt that passed it, which may be one before
/// the newest.
fn notification(task: &Task, record: &WorkerRecord, told: Notified) -> WorkerStatusNotification {
    let past = record.past.iter().find(|p| p.attempt == told.attempt);
    let past = past.filter(|_| told.attempt != record.attempt);
    let [created, started, finished] = match past {
        Some(past) => [past.created, past.started, past.finished],
        None => [record.created, record.started, record.finished],
    };
    let (status, at) = match told.state {
        NotifiedState::Created => (StatusType::Created, created),
        NotifiedState::Running => (StatusType::Running, started),
        NotifiedState::Completed => (StatusType::Completed, finished),
        NotifiedState::Failed => (StatusType::Failed, finished),
        NotifiedState::Terminated => (StatusType::Terminated, finished),
    };
    // Of an attempt that is long gone at least when the next one was queued is known.
    let at = at.or_else(|| past.and(record.queued));
    let at = at
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .unwrap_or_else(jiff::Timestamp::now);
    let (reason, exit_code) = match past {
        Some(_) if told.state.is_end() => ("ScaledDown", None),
        Some(_) => ("", None),
        None => (record.reason.as_str(), record.exit_code),
    };
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
        metadata.extend(exit_code.map(|code| ("exit-code".to_owned(), code.to_string())));
        if !reason.is_empty() {
            metadata.insert("reason".to_owned(), reason.to_owned());
        }
    }
    WorkerStatusNotification {
        worker_id: names::pod_name(&task.spec.task_id, record.index, told.attempt),
        task_id: task.spec.task_id.clone(),
        status: status.into(),
        timestamp: at.to_string(),
        reason: reason.to_owned(),
        metadata,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::task::WorkerPhase;

    #[tokio::test]
    async fn a_transition_is_offered_once_however_often_it_is_planned() {
        let (mut outbox, mut inbox) = channel();
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
            let ended = outbox
                .offer(&name, &task, &[worker.clone()], &all_stored)
                .await;
            assert_eq!(ended, phase == WorkerPhase::Failed);
            assert!(
                !outbox
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
        outbox
            .offer(&name, &task, &[worker.clone()], &all_stored)
            .await;
        let anew = Arc::new(Task {
            uid: "another".into(),
            ..Task::default()
        });
        outbox.offer(&name, &anew, &[worker], &all_stored).await;
        outbox.retain(|uid| uid == "another");
        assert_eq!(outbox.offered.len(), 1);
        assert_eq!(
            (inbox.try_recv().is_ok(), inbox.try_recv().is_ok()),
            (true, true)
        );
    }
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod history_tests;
