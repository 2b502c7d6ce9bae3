//! ScaleUp and ScaleDown on the leader: write what is wanted, wait until it is.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{manager::Manager, shared::Shared};
use crate::{
    cluster::{
        convert,
        crd::{WorkerTask, WorkerTaskSpec},
        error::Brief,
        events::Note,
    },
    domain::{
        names,
        request::{Outcome, OutcomeKind, Refusal, ScaleRequest},
        task::{REMEMBERED_REQUESTS, Task, TaskSpec, WORKER_BYTES, WorkerPhase},
        victims,
        view::WorkerView,
    },
    election::is_fenced,
    index::Room,
};

/// ScaleUp answers when all workers are created, or after this.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// For each worker, between two looks whether all are created: a look costs so
/// much the more, the more there are.
const LOOK: Duration = Duration::from_micros(50);
/// Between two looks whether history has made room.
const SHED_LOOK: Duration = Duration::from_millis(100);
/// Tries of a write that meets somebody else's.
const CONFLICTS: usize = 8;

/// The leader's side of ScaleUp and ScaleDown.
#[tonic::async_trait]
pub trait Scale: Send + Sync + std::fmt::Debug + 'static {
    async fn scale_up(&self, request: ScaleRequest) -> Result<Outcome, Refusal>;
    async fn scale_down(&self, request: ScaleRequest) -> Result<Outcome, Refusal>;
}

/// What a request changed of its task.
enum Change {
    Made(Task),
    Grown(Task),
    /// This very request was applied before.
    Repeated(Task),
    Nothing(Task),
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

    async fn up(&self, request: ScaleRequest) -> Result<Outcome, Refusal> {
        request.check_scale_up(&self.shared.policy)?;
        let deadline = Instant::now() + ANSWER_WITHIN;
        self.wait_for_room(&request, deadline).await?;
        let change = {
            // Never closed.
            let _asks = self.shared.asks.acquire().await;
            self.want(&request).await?
        };
        let made = matches!(change, Change::Made(_));
        let (task, changed) = match change {
            Change::Made(task) | Change::Grown(task) | Change::Repeated(task) => (task, true),
            Change::Nothing(task) => (task, false),
        };
        if made {
            self.shared.made(&task);
        }
        self.shared.index.wrote_task(task.clone());
        if !made
            && timeout_at(deadline, self.shared.caught_up.cancelled())
                .await
                .is_err()
        {
            return Err(Refusal::Unavailable(
                "this leader does not know its predecessor's workers yet; try again".to_owned(),
            ));
        }
        let workers = self.wait_created(&task, deadline).await;
        let outcome = self.outcome(&task, &workers, changed);
        if outcome.kind == OutcomeKind::Partial {
            let note = Note {
                warning: true,
                reason: "WorkersWait",
                action: "ScaleUp",
                text: outcome.message.clone(),
            };
            self.shared.tell(&task, note);
        }
        Ok(outcome)
    }

    /// Until there is room in etcd for what the request adds; finished tasks make some, the
    /// oldest first. What stays as it is needs none.
    async fn wait_for_room(
        &self,
        request: &ScaleRequest,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let Shared { index, limits, .. } = &*self.shared;
        let most = limits.max_stored_bytes;
        let known = index.task(&names::task_name(&request.task_id));
        let more = match known {
            Some(task) => {
                let grown = request.worker_count.unsigned_abs();
                grown.saturating_sub(task.spec.top()) as usize * WORKER_BYTES
            }
            None => request.stored_bytes(),
        };
        loop {
            let held = index.stored_bytes();
            match held.room(more, most) {
                Room::Now => return Ok(()),
                Room::OnceShed if Instant::now() < deadline => {}
                Room::OnceShed | Room::No => {
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

    async fn down(&self, request: ScaleRequest) -> Result<Outcome, Refusal> {
        request.check_scale_down()?;
        let wanted = request.worker_count.unsigned_abs();
        let name = names::task_name(&request.task_id);
        // Which workers end is told by what runs.
        self.shared.caught_up.cancelled().await;
        for _ in 0..CONFLICTS {
            let object = self.tasks().get_opt(&name).await.map_err(|e| refusal(&e))?;
            let Some(task) = object
                .and_then(convert::task)
                .filter(|t| t.spec.task_id == request.task_id)
            else {
                return Err(Refusal::NoSuchTask(request.task_id));
            };
            self.shared.index.wrote_task(task.clone());
            let applied = task.spec.request_ids.contains(&request.request_id);
            let workers = self.shared.index.workers_of(&task);
            let victims = if applied || task.status.phase.is_finished() {
                Vec::new()
            } else {
                victims::victims(&task, &workers, wanted)
            };
            let ends = wanted == 0 && task.spec.workers > 0 && !task.status.phase.is_finished();
            if victims.is_empty() && !ends {
                return Ok(outcome_of(
                    &task,
                    OutcomeKind::AlreadyProcessed,
                    "nothing to end".to_owned(),
                    vec![],
                    0,
                ));
            }
            let mut ended = task.spec.ended.clone();
            ended.extend(&victims);
            let stay = match wanted {
                // For good.
                0 => 0,
                _ => task.spec.workers - u32::try_from(victims.len()).unwrap_or(0),
            };
            if let Some(task) = self
                .change_wanted(&task, stay, ended, &request.request_id)
                .await?
            {
                self.shared.index.wrote_task(task.clone());
                let message = format!("ending {} worker(s), {wanted} go on", victims.len());
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
    async fn want(&self, request: &ScaleRequest) -> Result<Change, Refusal> {
        let name = names::task_name(&request.task_id);
        let wanted = request.worker_count.unsigned_abs();
        for _ in 0..CONFLICTS {
            let known = match self.make(&name, request).await {
                Ok(task) => return Ok(Change::Made(task)),
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
            same_request(&task.spec, request)?;
            if task.spec.request_ids.contains(&request.request_id) {
                return Ok(Change::Repeated(task));
            }
            if wanted <= task.spec.workers
                || task.status.phase.is_finished()
                || task.spec.workers == 0
            {
                return Ok(Change::Nothing(task));
            }
            let ended = task.spec.ended_after_growth(wanted);
            if let Some(task) = self
                .change_wanted(&task, wanted, ended, &request.request_id)
                .await?
            {
                return Ok(Change::Grown(task));
            }
        }
        Err(Refusal::Unavailable(
            "the task changes too fast; try again".to_owned(),
        ))
    }

    #[tracing::instrument(level = "info", name = "create task", skip_all, fields(task = name))]
    async fn make(&self, name: &str, request: &ScaleRequest) -> kube::Result<Task> {
        let spec = TaskSpec {
            task_id: request.task_id.clone(),
            repository: request.repository.clone(),
            commit_sha: request.commit_sha.clone(),
            workers: request.worker_count.unsigned_abs(),
            ended: BTreeSet::new(),
            digest: TaskSpec::digest_of(
                &request.repository,
                &request.commit_sha,
                &request.build_config,
            ),
            build_config: request.build_config.clone(),
            triggered_by: request.triggered_by.clone(),
            reason: request.reason.clone(),
            metadata: request.metadata.clone(),
            request_ids: vec![request.request_id.clone()],
            traceparent: request.traceparent.clone(),
        };
        let object = WorkerTask {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            spec: WorkerTaskSpec(spec),
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
        request_id: &str,
    ) -> Result<Option<Task>, Refusal> {
        let mut request_ids = task.spec.request_ids.clone();
        request_ids.push(request_id.to_owned());
        let surplus = request_ids.len().saturating_sub(REMEMBERED_REQUESTS);
        request_ids.drain(..surplus);
        let patch = json!({
            "metadata": { "uid": task.uid, "resourceVersion": task.resource_version.to_string() },
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

    /// Until each wanted worker has (had) its pod, or can have none.
    async fn wait_created(&self, task: &Task, deadline: Instant) -> Vec<WorkerView> {
        let mut changes = self.shared.index.follow(&task.name);
        let between = LOOK * task.spec.workers;
        loop {
            let next_look = Instant::now() + between;
            changes.mark_unchanged();
            let current = self
                .shared
                .index
                .task(&task.name)
                .filter(|t| t.uid == task.uid);
            let current = current.unwrap_or_else(|| Arc::new(task.clone()));
            let mut workers = self.shared.index.workers_of(&current);
            workers.retain(|w| task.spec.wants(w.record.index));
            let waiting = workers
                .iter()
                .any(|w| w.record.uid.is_none() && !w.record.phase.is_final());
            if !waiting {
                return workers;
            }
            // Its other end is kept for as long as somebody follows; time ends the wait.
            let change = timeout_at(deadline, async {
                let _ = changes.changed().await;
                sleep_until(next_look).await;
            });
            if change.await.is_err() {
                return workers;
            }
        }
    }

    fn why_missing(&self, workers: &[WorkerView]) -> String {
        let refused = workers
            .iter()
            .find(|w| w.record.uid.is_none() && w.record.phase == WorkerPhase::Failed);
        match refused {
            Some(w) => format!("were refused: {}", w.record.message),
            None => self.shared.lacks(),
        }
    }

    fn outcome(&self, task: &Task, workers: &[WorkerView], changed: bool) -> Outcome {
        let made = workers.iter().filter(|w| w.record.uid.is_some());
        let names: Vec<String> = made.map(|w| w.pod_name.clone()).collect();
        let missing = workers.len() - names.len();
        let versions = names
            .iter()
            .filter_map(|n| self.shared.index.pod(n))
            .map(|p| p.resource_version);
        let pod_version = versions.max().unwrap_or(0);
        let (kind, message) = if missing > 0 {
            (
                OutcomeKind::Partial,
                format!(
                    "{missing} of {} workers {}",
                    workers.len(),
                    self.why_missing(workers)
                ),
            )
        } else if changed {
            (
                OutcomeKind::Success,
                format!("{} worker(s) created", names.len()),
            )
        } else {
            (
                OutcomeKind::AlreadyProcessed,
                format!("the task has these {} worker(s)", names.len()),
            )
        };
        outcome_of(task, kind, message, names, pod_version)
    }
}

#[tonic::async_trait]
impl Scale for Manager {
    async fn scale_up(&self, request: ScaleRequest) -> Result<Outcome, Refusal> {
        self.while_leading(self.up(request)).await
    }

    async fn scale_down(&self, request: ScaleRequest) -> Result<Outcome, Refusal> {
        self.while_leading(self.down(request)).await
    }
}

fn outcome_of(
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

/// The task id is this request's.
fn same_request(spec: &TaskSpec, request: &ScaleRequest) -> Result<(), Refusal> {
    let digest = TaskSpec::digest_of(
        &request.repository,
        &request.commit_sha,
        &request.build_config,
    );
    if digest == spec.digest && spec.task_id == request.task_id {
        return Ok(());
    }
    let differs = [
        ("task_id", spec.task_id != request.task_id),
        ("repository", spec.repository != request.repository),
        ("commit_sha", spec.commit_sha != request.commit_sha),
        ("build_config", spec.build_config != request.build_config),
    ];
    Err(Refusal::Conflict {
        task_id: request.task_id.clone(),
        fields: differs
            .into_iter()
            .filter(|(_, d)| *d)
            .map(|(f, _)| f)
            .collect(),
    })
}

/// What a failed write of a task means for the client.
fn refusal(error: &kube::Error) -> Refusal {
    match error {
        kube::Error::Api(status)
            if matches!(status.code, 400 | 403 | 422) && !is_fenced(&status.message) =>
        {
            Refusal::Failed(status.message.clone())
        }
        kube::Error::SerdeError(_) => Refusal::Failed(format!(
            "the stored task is not understood by this version ({}); mend its WorkerTask, \
             delete it or upgrade",
            Brief(error)
        )),
        error => Refusal::Unavailable(format!(
            "the API server did not take the task ({}); try again",
            Brief(error)
        )),
    }
}
