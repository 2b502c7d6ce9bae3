//! ScaleUp and ScaleDown on the leader: write what is wanted, wait until it is.
use std::{collections::BTreeSet, time::Duration};

use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    caller,
    manager::Manager,
    outcome,
    scheduler::{Class, Permit},
    shared::Shared,
    tuning::MAX_CONFLICTS,
};
use crate::{
    cluster::{
        convert,
        crd::{WorkerTask, WorkerTaskSpec},
        error::ErrorMessage,
        events::Note,
    },
    domain::{
        refusal::Verdict,
        request::{Outcome, OutcomeKind, Refusal, ScaleDown, ScaleUp},
        task::{Task, Verb, WORKER_BYTES, WorkerPhase},
        victims,
        view::WorkerView,
    },
    index::StorageRoom,
};

/// ScaleUp answers when all workers are created, or after this. It is below the deadline that a
/// client usually gives, and the answer says what the rest waits for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The part of the caller's time, of a short one a quarter, that is left for the answer to be made
/// and to arrive.
const ANSWERING: Duration = Duration::from_millis(100);
/// The time between two looks whether history has made room. A look reads memory only.
const SHED_LOOK: Duration = Duration::from_millis(100);

/// The leader's side of ScaleUp and ScaleDown.
#[tonic::async_trait]
pub trait Scale: Send + Sync + std::fmt::Debug + 'static {
    /// Answers before `deadline`, after which nobody waits for the answer.
    async fn scale_up(&self, request: ScaleUp, deadline: Instant) -> Result<Outcome, Refusal>;
    async fn scale_down(&self, request: ScaleDown) -> Result<Outcome, Refusal>;
}

/// What a request changed of its task.
enum Applied {
    Made(Task),
    Grown(Task),
    /// This very request was applied before.
    Repeated(Task),
    Unchanged(Task),
    /// None: the task is being deleted, and its workers with it.
    Ending(Task),
}

impl Manager {
    /// Until the drain: a call that waits then is the next leader's.
    async fn while_leading<T>(
        &self,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        tokio::select! {
            result = work => result,
            () = self.shared.drain.cancelled() => Err(Refusal::NotLeader),
            () = self.shared.lost.cancelled() => Err(Refusal::NotLeader),
        }
    }

    async fn up(&self, request: ScaleUp, deadline: Instant) -> Result<Outcome, Refusal> {
        let last = last_moment(Instant::now(), deadline);
        let room_by = last.min(Instant::now() + ANSWER_WITHIN);
        self.wait_for_room(&request, room_by).await?;
        let change = loop {
            let change = {
                let _permit = self.task_write().await?;
                self.want(&request).await?
            };
            match change {
                Applied::Ending(task) => self.wait_gone(task, last).await?,
                change => break change,
            }
        };
        let made = matches!(change, Applied::Made(_));
        if let Applied::Made(task) | Applied::Grown(task) = &change {
            caller::tell(&self.shared, task, "ScaleUp", request.caller());
        }
        let (task, changed) = match change {
            Applied::Made(task) | Applied::Grown(task) | Applied::Repeated(task) => (task, true),
            Applied::Unchanged(task) | Applied::Ending(task) => (task, false),
        };
        if made {
            self.shared.made(&task);
        }
        self.shared.index.wrote_task(task.clone());
        let answer_by = last.min(Instant::now() + ANSWER_WITHIN);
        if !made
            && timeout_at(answer_by, self.shared.caught_up.cancelled())
                .await
                .is_err()
        {
            return Err(Refusal::Unavailable(
                "this leader does not know its predecessor's workers yet; try again".to_owned(),
            ));
        }
        let outcome = self.created(&task, changed, answer_by).await;
        if outcome.kind == OutcomeKind::Partial {
            let note = Note {
                warning: true,
                reason: "WorkersWait",
                action: "ScaleUp".into(),
                text: outcome.message.clone(),
            };
            self.shared.tell(&task, note);
        }
        Ok(outcome)
    }

    /// Waits for a slot among the leader's writes of tasks.
    async fn task_write(&self) -> Result<Permit, Refusal> {
        let permit = self.shared.scheduler.enter(Class::TaskWrite).await;
        permit.ok_or_else(|| {
            Refusal::Unavailable("the leader has too many requests to write; try again".to_owned())
        })
    }

    /// Until there is room in etcd for what the request adds; finished tasks make some, the
    /// oldest first. What stays as it is needs none.
    async fn wait_for_room(&self, request: &ScaleUp, deadline: Instant) -> Result<(), Refusal> {
        let Shared { index, limits, .. } = &*self.shared;
        let most = limits.max_stored_bytes;
        let known = index.task(&request.task_name());
        let more = match known {
            Some(task) => {
                let grown = request.spec().workers;
                grown.saturating_sub(task.spec.top()) as usize * WORKER_BYTES
            }
            None => request.stored_bytes(),
        };
        loop {
            let held = index.stored_bytes();
            match held.room(more, most) {
                StorageRoom::Available => return Ok(()),
                StorageRoom::AfterCleanup if Instant::now() < deadline => {}
                StorageRoom::AfterCleanup | StorageRoom::Exhausted => {
                    let held = held.unfinished + held.finished;
                    return Err(Refusal::Exhausted(format!(
                        "tasks hold {held} bytes of {most} that they may in all \
                         (MAX_STORED_TASK_BYTES), and this one may come to {more}; wait until \
                         others have finished, end some, send less in build_config, metadata \
                         and reason, or raise the setting"
                    )));
                }
            }
            self.shared.shed.notify_one();
            sleep_until(deadline.min(Instant::now() + SHED_LOOK)).await;
        }
    }

    /// Returns once a task that is being deleted is gone: its name is free then.
    async fn wait_gone(&self, task: Task, last: Instant) -> Result<(), Refusal> {
        let (name, uid, id) = (
            task.name.clone(),
            task.uid.clone(),
            task.spec.task_id.clone(),
        );
        let mut changes = self.shared.index.follow(&name);
        self.shared.index.wrote_task(task);
        let gone = async {
            while self.shared.index.task(&name).is_some_and(|t| t.uid == uid) {
                // Its other end is kept for as long as somebody follows.
                let _ = changes.changed().await;
            }
        };
        timeout_at(last, gone).await.map_err(|_| {
            Refusal::Unavailable(format!(
                "task {id:?} is being deleted, and its workers with it; try again once it is gone"
            ))
        })
    }

    async fn down(&self, request: ScaleDown) -> Result<Outcome, Refusal> {
        let wanted = request.workers();
        let name = request.task_name();
        // Which workers end is told by what runs.
        self.shared.caught_up.cancelled().await;
        let _permit = self.task_write().await?;
        for _ in 0..MAX_CONFLICTS {
            let object = self.tasks().get_opt(&name).await.map_err(|e| refusal(&e))?;
            let Some(task) = object
                .and_then(convert::task)
                .filter(|t| t.spec.task_id == request.task_id())
            else {
                return Err(Refusal::NoSuchTask(request.task_id().to_owned()));
            };
            self.shared.index.wrote_task(task.clone());
            let nothing = |message: &str| {
                let (kind, message) = (OutcomeKind::AlreadyProcessed, message.to_owned());
                Ok(outcome_of(&task, kind, message, vec![], 0))
            };
            if task.deleting {
                return nothing("the task is being deleted: all of its workers are ending");
            }
            let workers = self.shared.index.workers_of(&task);
            if task
                .spec
                .has_applied(request.request_id(), Verb::Down, wanted)
            {
                return Ok(ended_before(&task, workers, wanted));
            }
            let victims = if task.status.phase.is_finished() {
                Vec::new()
            } else {
                victims::victims(&task, &workers, wanted)
            };
            let ends = wanted == 0 && task.spec.workers > 0 && !task.status.phase.is_finished();
            if victims.is_empty() && !ends {
                return nothing("nothing to end");
            }
            let mut ended = task.spec.ended.clone();
            ended.extend(&victims);
            let stay = match wanted {
                // For good.
                0 => 0,
                _ => task.spec.workers - u32::try_from(victims.len()).unwrap_or(0),
            };
            let ids = task
                .spec
                .with_applied(request.request_id(), Verb::Down, wanted);
            let change = self.change_wanted(&task, stay, ended, ids, request.caller());
            if let Some(task) = change.await? {
                self.shared.index.wrote_task(task.clone());
                caller::tell(&self.shared, &task, "ScaleDown", request.caller());
                let message = ending(victims.len(), wanted);
                let names = workers
                    .into_iter()
                    .filter(|w| victims.contains(&w.record.index))
                    .map(|w| w.pod_name);
                return Ok(outcome_of(
                    &task,
                    OutcomeKind::Success,
                    message,
                    names.collect(),
                    0,
                ));
            }
        }
        Err(Refusal::Unavailable(
            "the task changes too fast; try again".to_owned(),
        ))
    }

    fn tasks(&self) -> Api<WorkerTask> {
        self.shared.client.api()
    }

    /// Makes or grows the task.
    async fn want(&self, request: &ScaleUp) -> Result<Applied, Refusal> {
        let name = request.task_name();
        let wanted = request.spec().workers;
        for _ in 0..MAX_CONFLICTS {
            let known = match self.make(&name, request).await {
                Ok(task) => return Ok(Applied::Made(task)),
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => self
                    .tasks()
                    .get_opt(&name)
                    .await
                    .map_err(|e| refusal(&e))?
                    .and_then(convert::task),
                Err(error) => return Err(refusal(&error)),
            };
            // None: deleted meanwhile; make it.
            let Some(task) = known else { continue };
            let same = request.check_same(&task.spec);
            if same.is_ok()
                && task
                    .spec
                    .has_applied(request.request_id(), Verb::Up, wanted)
            {
                return Ok(Applied::Repeated(task));
            }
            if task.deleting {
                return Ok(Applied::Ending(task));
            }
            same?;
            if wanted <= task.spec.workers
                || task.status.phase.is_finished()
                || task.spec.workers == 0
            {
                return Ok(Applied::Unchanged(task));
            }
            let ended = task.spec.ended_after_growth(wanted);
            let ids = task
                .spec
                .with_applied(request.request_id(), Verb::Up, wanted);
            let change = self.change_wanted(&task, wanted, ended, ids, request.caller());
            if let Some(task) = change.await? {
                return Ok(Applied::Grown(task));
            }
        }
        Err(Refusal::Unavailable(
            "the task changes too fast; try again".to_owned(),
        ))
    }

    #[tracing::instrument(level = "info", name = "create task", skip_all, fields(task = name))]
    async fn make(&self, name: &str, request: &ScaleUp) -> kube::Result<Task> {
        let object = WorkerTask {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                annotations: Some(caller::annotations(request.caller())),
                ..ObjectMeta::default()
            },
            spec: WorkerTaskSpec(request.spec().clone()),
            status: None,
        };
        let answer = self.tasks().create(&PostParams::default(), &object).await?;
        convert::task(answer).ok_or_else(|| kube::Error::Service("a task without a name".into()))
    }

    /// Changes which workers are wanted and remembers the request in one write; None
    /// when somebody else's write came first.
    #[tracing::instrument(level = "info", name = "change task", skip_all, fields(task = task.name, workers))]
    async fn change_wanted(
        &self,
        task: &Task,
        workers: u32,
        ended: BTreeSet<u32>,
        request_ids: Vec<String>,
        caller: Option<&str>,
    ) -> Result<Option<Task>, Refusal> {
        let patch = json!({
            "metadata": {
                "uid": task.uid,
                "resourceVersion": task.resource_version.to_string(),
                "annotations": caller::annotations(caller),
            },
            "spec": { "workers": workers, "ended": ended, "requestIds": request_ids },
        });
        match self
            .tasks()
            .patch(&task.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(object) => Ok(convert::task(object)),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
            Err(error) => Err(refusal(&error)),
        }
    }
}

#[tonic::async_trait]
impl Scale for Manager {
    async fn scale_up(&self, request: ScaleUp, deadline: Instant) -> Result<Outcome, Refusal> {
        self.while_leading(self.up(request, deadline)).await
    }

    async fn scale_down(&self, request: ScaleDown) -> Result<Outcome, Refusal> {
        self.while_leading(self.down(request)).await
    }
}

/// Until when an answer can be made that arrives before `deadline`.
fn last_moment(now: Instant, deadline: Instant) -> Instant {
    let left = deadline.saturating_duration_since(now);
    now + left.saturating_sub(ANSWERING).max(left - left / 4)
}

fn ending(workers: usize, wanted: u32) -> String {
    format!("ending {workers} worker(s), {wanted} go on")
}

/// What a repeat of a ScaleDown is answered: the workers that are taken by now.
fn ended_before(task: &Task, workers: Vec<WorkerView>, wanted: u32) -> Outcome {
    let is_taken = |w: &WorkerView| {
        let was_stopped = w.record.stopping || w.record.phase == WorkerPhase::Terminated;
        !task.spec.wants(w.record.index) && (was_stopped || !w.record.phase.is_final())
    };
    let taken = workers.into_iter().filter(is_taken);
    let names: Vec<String> = taken.map(|w| w.pod_name).collect();
    let message = ending(names.len(), wanted);
    outcome_of(task, OutcomeKind::Success, message, names, 0)
}

pub(super) fn outcome_of(
    task: &Task,
    kind: OutcomeKind,
    message: String,
    pod_names: Vec<String>,
    pod_version: u64,
) -> Outcome {
    Outcome {
        kind,
        message,
        processed: u32::try_from(pod_names.len()).unwrap_or(u32::MAX),
        pod_names,
        task_version: task.resource_version,
        pod_version,
    }
}

/// What a failed write of a task means for the client.
fn refusal(error: &kube::Error) -> Refusal {
    match error {
        kube::Error::Api(status) if outcome::judge(status).verdict == Verdict::Final => {
            Refusal::Failed(status.message.clone())
        }
        kube::Error::SerdeError(_) => Refusal::Failed(format!(
            "the stored task is not understood by this version ({}); mend its WorkerTask, \
             delete it or upgrade",
            ErrorMessage(error)
        )),
        error => Refusal::Unavailable(format!(
            "the API server did not take the task ({}); try again",
            ErrorMessage(error)
        )),
    }
}

#[cfg(test)]
#[path = "scale_tests.rs"]
mod tests;
