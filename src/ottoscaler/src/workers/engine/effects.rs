//! Effects of the loop: what is under way, at most one of each key, and what their ends mean.
use super::*;

impl Engine {
    /// Stores a status now, or when the task's next write is due.
    pub(super) fn store(
        &mut self,
        name: Arc<str>,
        task: Arc<Task>,
        status: TaskStatus,
        urgent: bool,
        waits_for_answer: bool,
    ) {
        let now = Instant::now();
        let lacks_places = self.shared.lacks_places(&name);
        let put_off = put_off(&task.status, &status, urgent, lacks_places);
        let mut next = self.paces.next(&name, urgent, now, put_off);
        if waits_for_answer {
            next = next.max(self.paces.answer(&name, now));
        }
        next = next.max(self.held.get(&name).map_or(now, |held| held.until));
        let key = Key::Status(name.clone());
        if next > now {
            self.due.by(name, next);
        } else if !self.busy.contains(&key) {
            self.paces.wrote(&name, status.counts.total, now);
            let shared = self.shared.clone();
            self.start(&name, key, || {
                Box::pin(async move { status::write(&shared, &task, status).await })
            });
        }
    }

    pub(super) fn hold(&mut self, name: &Arc<str>) {
        let before = self.held.get(name).map_or(Duration::ZERO, |held| held.wait);
        let wait = (before * 2).clamp(RETRY_DELAY, MAX_RETRY_DELAY);
        let until = Instant::now() + wait;
        self.held.insert(name.clone(), Held { until, wait });
    }

    /// Starts an effect unless it is under way.
    pub(super) fn start(&mut self, name: &Arc<str>, key: Key, effect: impl FnOnce() -> Running) {
        if !self.busy.insert(key.clone()) {
            return;
        }
        let (name, effect) = (name.clone(), effect());
        self.effects.spawn(async move { (key, name, effect.await) });
    }

    pub(super) fn ended(&mut self, ended: Result<(Key, Arc<str>, End), tokio::task::JoinError>) {
        let (key, name, end) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // Its key stays busy until the term ends; say so loudly.
                tracing::error!(%error, "an effect panicked");
                return;
            }
        };
        self.busy.remove(&key);
        let mut of = BTreeSet::from([name.clone()]);
        let mut again = Instant::now();
        match &key {
            Key::Create(task, which) => {
                let outcome = self.admission.ended(task, *which, &end);
                again += NOT_SOON.max(outcome.again);
                for (task, Attempt { index, attempt }, why) in outcome.failed {
                    self.due.by(task.clone(), Instant::now());
                    let mut refused = self.shared.refused();
                    refused
                        .entry(task)
                        .or_default()
                        .insert((index, attempt), why);
                }
            }
            Key::Delete(_) | Key::Forget(_) => self.removals.ended(&key, &end),
            Key::DeleteEnded(call) => of.extend(self.batch.ended(*call, &end)),
            Key::Seal(_) | Key::Status(_) => {}
        }
        match end {
            End::Done if matches!(key, Key::Status(_)) => {
                self.held.remove(&name);
            }
            End::Done => {}
            // What else was said is told in the task.
            End::Refused(refusal) => {
                let Refusal { by, verdict, .. } = refusal;
                tracing::info!(task = %name, ?key, ?by, ?verdict, "the API server refused a create");
            }
            end @ (End::Later(_) | End::Busy { .. }) => {
                tracing::info!(task = %name, ?key, why = end.loggable(), "waiting");
                if !matches!(key, Key::Create(..)) {
                    again += RETRY_DELAY;
                }
                if matches!(key, Key::Status(_)) {
                    self.hold(&name);
                }
            }
        }
        for task in of {
            self.due.by(task, again);
        }
    }
}
