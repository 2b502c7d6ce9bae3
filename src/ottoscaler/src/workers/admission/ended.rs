//! What the end of a create means: for its worker, for those that would be refused as well,
//! and for how many are tried next.
use std::{sync::Arc, time::Duration};

use super::{Admission, InFlight};
use crate::{
    domain::{
        gates,
        quantity::Quantity,
        queue::{Attempt, Gate, Shape},
        refusal::{By, Refusal, Scope, Verdict},
    },
    workers::{outcome::WriteResult, tuning::UNANSWERED},
};

/// What the end of a create means for its task, and maybe for others.
#[derive(Debug, Default)]
pub(in crate::workers) struct CreateOutcome {
    /// Workers that get no pod any more, and why.
    pub(in crate::workers) failed: Vec<(Arc<str>, Attempt, String)>,
    /// When this worker's next try is due, if not with its task.
    pub(in crate::workers) again: Duration,
}

impl Admission {
    /// A create has ended.
    pub(in crate::workers) fn ended(
        &mut self,
        name: &Arc<str>,
        attempt: Attempt,
        result: &WriteResult,
    ) -> CreateOutcome {
        let Some(one) = self.in_flight.remove(&(name.clone(), attempt)) else {
            return CreateOutcome::default();
        };
        self.asking -= usize::from(one.asks);
        if let Some(gate) = &one.lane {
            self.gates.returned(gate);
        }
        let (sent, now) = (one.sent, self.now());
        match result {
            WriteResult::Busy { why, .. } => {
                self.undecided(&one, now);
                if let Some(Gate::Shape(_)) = &one.lane {
                    // Nobody who waits for a quota waits for this task's answers too.
                    let gate = Gate::Task(name.clone());
                    let busy = Refusal::new(By::Server, Verdict::Waits, why);
                    self.close(&gate, &busy, sent, now);
                }
                self.unanswered(name, attempt, &one, why, now)
            }
            WriteResult::Refused(refusal) => self.refused(name, attempt, &one, refusal, now),
            WriteResult::Done => {
                self.passed(name, attempt, sent, now);
                CreateOutcome::default()
            }
            WriteResult::Retry(_) => {
                self.undecided(&one, now);
                CreateOutcome {
                    again: gates::FIRST,
                    ..CreateOutcome::default()
                }
            }
        }
    }

    /// A create told nothing of the gates that it went through: the next asks there.
    fn undecided(&mut self, one: &InFlight, now: Duration) {
        self.gates.undecided(&Gate::All, now);
        if let Some(gate) = &one.lane {
            self.gates.undecided(gate, now);
        }
    }

    fn passed(&mut self, name: &Arc<str>, attempt: Attempt, sent: Duration, now: Duration) {
        self.last_made = Some(now);
        self.open(&Gate::Attempt(name.clone(), attempt));
        self.pass(&Gate::All, sent);
        if let Some(demand) = self.demands.get_mut(name) {
            demand.since.remove(&attempt);
            let shape = Gate::Shape(demand.shape.clone());
            self.pass(&Gate::Task(name.clone()), sent);
            self.pass(&shape, sent);
        }
    }

    fn pass(&mut self, gate: &Gate, sent: Duration) {
        if !self.gates.is_closed(gate) {
            return;
        }
        self.gates.passed(gate, sent);
        if self.gates.next_of(gate).is_some() {
            return;
        }
        let nobody_waits = match gate {
            Gate::All => self.queue.is_empty(),
            gate => self.queue.is_lane_empty(&Some(gate.clone())),
        };
        if nobody_waits || !self.gates.is_closed(gate) {
            self.open(gate);
        } else {
            // What is over is told no more.
            self.shared.waits().refusals.remove(gate);
        }
    }

    /// Whoever waited there goes on.
    pub(super) fn open(&mut self, gate: &Gate) {
        self.gates.forget(gate);
        self.shared.waits().refusals.remove(gate);
        for task in self.queue.tasks_in(&Some(gate.clone())) {
            self.replace(&task);
        }
    }

    /// Lets a task wait where it belongs now.
    fn replace(&mut self, task: &Arc<str>) {
        let lane = self.lane_of(task);
        self.told(task, lane.clone());
        self.queue.move_to(task, lane);
    }

    fn close(&mut self, gate: &Gate, refusal: &Refusal, sent: Duration, now: Duration) {
        let is_new = !self.gates.is_closed(gate);
        self.gates.refused(gate, refusal, sent, now);
        let mut waits = self.shared.waits();
        waits.refusals.insert(gate.clone(), refusal.clone());
        drop(waits);
        match gate {
            Gate::Task(task) => self.replace(task),
            Gate::Attempt(task, _) => self.told(task, Some(gate.clone())),
            Gate::Shape(shape) if is_new => {
                for task in self.queue.tasks_in(&None) {
                    if self.demands.get(&task).is_some_and(|a| a.shape == *shape) {
                        self.replace(&task);
                    }
                }
            }
            Gate::Shape(_) | Gate::All => {}
        }
    }

    fn refused(
        &mut self,
        name: &Arc<str>,
        attempt: Attempt,
        one: &InFlight,
        refusal: &Refusal,
        now: Duration,
    ) -> CreateOutcome {
        if refusal.verdict == Verdict::Final {
            // It got as far as those who judge the pod itself.
            self.pass(&Gate::All, one.sent);
            self.undecided(one, now);
            return CreateOutcome {
                failed: vec![(name.clone(), attempt, refusal.text.clone())],
                ..CreateOutcome::default()
            };
        }
        let gate = self.gate_of(name, attempt, refusal);
        if gate != Gate::All {
            self.pass(&Gate::All, one.sent);
        }
        if refusal.by == By::Quota && gate != Gate::Task(name.clone()) {
            // Quotas are asked last: all others let it pass.
            self.pass(&Gate::Task(name.clone()), one.sent);
        }
        if let Some(lane) = one.lane.as_ref().filter(|lane| **lane != gate) {
            self.gates.undecided(lane, now);
        }
        self.close(&gate, refusal, one.sent, now);
        if gate != Gate::All {
            self.told(name, Some(gate.clone()));
        }
        let again = match &gate {
            Gate::Attempt(..) => self.gates.next_of(&gate).unwrap_or(now) - now,
            _ => Duration::ZERO,
        };
        let failed = self.given_up(&gate, refusal, now);
        CreateOutcome { failed, again }
    }

    /// Who would be refused as well.
    fn gate_of(&self, name: &Arc<str>, attempt: Attempt, refusal: &Refusal) -> Gate {
        let shape = self.demands.get(name).map(|demand| &demand.shape);
        match (refusal.scope(), shape) {
            (Scope::All, _) => Gate::All,
            (Scope::Shape, Some(shape)) if is_counted_as(refusal, shape) => {
                Gate::Shape(shape.clone())
            }
            (Scope::Attempt, _) => Gate::Attempt(name.clone(), attempt),
            (Scope::Shape | Scope::Task, _) => Gate::Task(name.clone()),
        }
    }

    /// Those at a gate that have been refused for REFUSED_TIMEOUT.
    fn given_up(
        &mut self,
        gate: &Gate,
        refusal: &Refusal,
        now: Duration,
    ) -> Vec<(Arc<str>, Attempt, String)> {
        let limit = self.shared.limits.refused_timeout;
        let since = self.gates.get(gate).map_or(now, |closed| closed.since);
        if refusal.verdict != Verdict::Repeats || since + limit > now {
            return Vec::new();
        }
        let tasks: Vec<Arc<str>> = match gate {
            Gate::Task(task) | Gate::Attempt(task, _) => vec![task.clone()],
            Gate::All | Gate::Shape(_) => self.demands.keys().cloned().collect(),
        };
        let mut failed = Vec::new();
        for task in tasks {
            let Some(demand) = self.demands.get(&task) else {
                continue;
            };
            let is_there = |attempt: &Attempt| match gate {
                Gate::Attempt(_, only) => only == attempt,
                _ => !self.in_flight.contains_key(&(task.clone(), *attempt)),
            };
            let over = demand
                .since
                .iter()
                .filter(|(attempt, asked)| is_there(attempt) && since.max(**asked) + limit <= now);
            let over = over.map(|(attempt, _)| (task.clone(), *attempt, refusal.text.clone()));
            let before = failed.len();
            failed.extend(over);
            if failed.len() > before {
                // Until its plan knows.
                self.queue.remove(&task);
            }
        }
        failed
    }

    /// An attempt that the API server did not answer, or answered that it is busy. Where
    /// others get their pods meanwhile it waits longer and longer. Where none does, and the
    /// Lease is renewed all the time, it is not the API server that is silent, but somebody
    /// whom it asks.
    fn unanswered(
        &mut self,
        name: &Arc<str>,
        attempt: Attempt,
        one: &InFlight,
        why: &str,
        now: Duration,
    ) -> CreateOutcome {
        let gate = Gate::Attempt(name.clone(), attempt);
        let refusal = if now - one.sent > UNANSWERED {
            let text = format!(
                "the API server does not answer the create in time; an admission webhook may not answer ({why})"
            );
            Refusal::new(By::Silence, Verdict::Repeats, text)
        } else {
            Refusal::new(By::Server, Verdict::Waits, why)
        };
        self.close(&gate, &refusal, one.sent, now);
        let since = self.gates.get(&gate).map_or(now, |closed| closed.since);
        if self.last_made.is_some_and(|made| made >= since) {
            let next = self.gates.next_of(&gate).unwrap_or(now);
            return CreateOutcome {
                again: next - now,
                ..CreateOutcome::default()
            };
        }
        self.gates.retry_at(&gate, now + gates::FIRST);
        CreateOutcome {
            failed: self.given_up(&gate, &refusal, now),
            again: gates::FIRST,
        }
    }
}

/// Whether a quota counted what we think that pods of this shape ask for: who changes pods on
/// their way may have added to one of them.
fn is_counted_as(refusal: &Refusal, shape: &Shape) -> bool {
    refusal.requested().iter().all(|(name, amount)| {
        let name = name.strip_prefix("requests.").unwrap_or(name);
        let ours = match name {
            "cpu" => shape.cpu_request,
            "limits.cpu" => shape.cpu_limit,
            "memory" => shape.memory_request,
            "limits.memory" => shape.memory_limit,
            "pods" | "count/pods" => 1_000,
            _ => return false,
        };
        amount.as_ref().map(Quantity::milli) == Some(ours)
    })
}
