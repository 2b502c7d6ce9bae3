//! Shows a task's lines to people, on any replica (ShowLogs).
//!
//! Invariants: nothing is written. All work is done when the connection asks for the next line,
//! so a client that is slow or gone costs nothing. The number of open logs is bounded.
use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::Arc,
};

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream, SelectAll},
};
use kube::Api;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    domain::{pod::Pod, request::Selection, view::ClientState},
    index::{Index, TaskChanged},
    logs::read::{
        follow::Cluster,
        pods::PodLookup,
        tail::{Next, Tail},
    },
    proto::{ShownLine, shown_line::Kind},
};

/// The most logs that a replica shows at once. Each is a request that the API server and the
/// kubelet keep open, and up to one long line in memory; a task of so many workers can be watched
/// as a whole.
const LOGS_AT_ONCE: usize = 256;

/// Reads logs from their nodes. It is cheap to clone.
#[derive(Debug, Clone)]
pub struct LogViewer {
    source: Arc<Cluster>,
    index: Index,
    /// There is an otto-handler.
    forwarded: bool,
    places: Arc<Semaphore>,
}

impl LogViewer {
    pub fn new(client: kube::Client, namespace: &str, index: Index, forwarded: bool) -> Self {
        Self {
            source: Arc::new(Cluster::new(Api::namespaced(client, namespace))),
            index,
            forwarded,
            places: Arc::new(Semaphore::new(LOGS_AT_ONCE)),
        }
    }

    /// Returns the lines of the selected task: those that there are now, or with `follow` all
    /// until the task has ended.
    ///
    /// # Errors
    /// NOT_FOUND if there is no such task. The stream ends with RESOURCE_EXHAUSTED if too many
    /// logs are open, and with UNAVAILABLE at `drain`.
    pub fn lines(
        &self,
        selection: Selection,
        follow: bool,
        drain: CancellationToken,
    ) -> Result<impl Stream<Item = Result<ShownLine, Status>> + Send + 'static, Status> {
        // Subscribed before the first look, so that no change is missed.
        let changes = self.index.subscribe();
        let workers = self.index.workers(&selection);
        let Some(task) = workers.first().map(|w| w.task.clone()) else {
            return Err(Status::not_found("no such task, or no such worker of it"));
        };
        let mut showing = Showing {
            show: self.clone(),
            task: Arc::from(task.name.as_str()),
            task_uid: task.uid.clone(),
            selection,
            follow,
            drain,
            changes,
            logs: SelectAll::new(),
            seen: HashSet::new(),
            ready: VecDeque::new(),
        };
        let ended = |s| matches!(s, ClientState::Succeeded | ClientState::Failed);
        let gone = workers
            .iter()
            .filter(|w| ended(w.view.state()) && self.index.pod(&w.view.pod_name).is_none())
            .count();
        if gone > 0 {
            let lines = if self.forwarded {
                "their lines are with otto-handler"
            } else {
                "their lines went with them, for there is no otto-handler"
            };
            showing.ready.push_back(Ok(ShownLine {
                kind: Kind::Note.into(),
                message: format!("the pods of {gone} worker(s) are gone: {lines}"),
                ..ShownLine::default()
            }));
        }
        showing.look();
        Ok(stream::unfold(Some(showing), |showing| async move {
            let mut showing = showing?;
            let next = showing.next().await?;
            // An error ends the stream.
            let rest = next.is_ok().then_some(showing);
            Some((next, rest))
        }))
    }
}

struct Showing {
    show: LogViewer,
    task: Arc<str>,
    /// Another task may get the same name later.
    task_uid: String,
    selection: Selection,
    follow: bool,
    drain: CancellationToken,
    changes: broadcast::Receiver<TaskChanged>,
    logs: SelectAll<BoxStream<'static, ShownLine>>,
    /// The uids of pods whose logs were opened.
    seen: HashSet<String>,
    ready: VecDeque<Result<ShownLine, Status>>,
}

impl fmt::Debug for Showing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Showing")
            .field("task", &self.task)
            .field("logs", &self.logs.len())
            .finish_non_exhaustive()
    }
}

impl Showing {
    async fn next(&mut self) -> Option<Result<ShownLine, Status>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            if self.logs.is_empty() && self.has_ended() {
                return None;
            }
            tokio::select! {
                () = self.drain.cancelled() => {
                    return Some(Err(Status::unavailable("this replica stops; ask again")));
                }
                // None means that the last log has ended.
                line = self.logs.next(), if !self.logs.is_empty() => {
                    if let Some(line) = line {
                        return Some(Ok(line));
                    }
                }
                change = self.changes.recv(), if self.follow => match change {
                    Ok(change) if change.task != self.task => {}
                    // After a lag everything is looked at.
                    Ok(_) | Err(_) => self.look(),
                },
            }
        }
    }

    fn has_ended(&self) -> bool {
        !self.follow
            || self
                .show
                .index
                .task(&self.task)
                .is_none_or(|task| task.uid != self.task_uid || task.status.phase.is_finished())
    }

    /// Opens the logs that exist by now.
    fn look(&mut self) {
        for pod in self.show.index.pods_of(&self.task).0 {
            let is_selected = |name: &String| **name == *pod.name;
            if !pod.has_logs()
                || *pod.task_uid != *self.task_uid
                || !self.selection.pod_name.as_ref().is_none_or(is_selected)
                || !self.seen.insert(pod.uid.clone())
            {
                continue;
            }
            let Ok(place) = self.show.places.clone().try_acquire_owned() else {
                self.ready.push_back(Err(Status::resource_exhausted(format!(
                    "this replica shows {LOGS_AT_ONCE} logs already; ask another one, or later"
                ))));
                return;
            };
            let (source, index) = (self.show.source.clone(), self.show.index.clone());
            let now = pod.restart_count;
            self.logs.push(if self.follow {
                log(Tail::new(pod.clone(), source, index, now, None), pod, place)
            } else {
                log(
                    Tail::new(pod.clone(), source, EndedView(index), now, None),
                    pod,
                    place,
                )
            });
        }
    }
}

fn log<P: PodLookup>(
    tail: Tail<Cluster, P>,
    pod: Arc<Pod>,
    place: OwnedSemaphorePermit,
) -> BoxStream<'static, ShownLine> {
    let next = |(mut tail, pod, place): (Tail<Cluster, P>, Arc<Pod>, OwnedSemaphorePermit)| async move {
        let mut shown = ShownLine {
            worker_pod_name: pod.name.to_string(),
            ..ShownLine::default()
        };
        match tail.next().await {
            Next::Line(line, _) => {
                shown.message = line.message().0;
                line.level().clone_into(&mut shown.level);
                shown.timestamp = line.timestamp;
            }
            Next::Gap(gap) => {
                shown.set_kind(Kind::Gap);
                shown.message = gap.to_string();
            }
            Next::End | Next::Gone => return None,
        }
        Some((shown, (tail, pod, place)))
    };
    stream::unfold((tail, pod, place), next).boxed()
}

/// Looks up pods as if they had ended, so that their logs are read to their present end.
#[derive(Debug, Clone)]
struct EndedView(Index);

impl PodLookup for EndedView {
    fn latest(&self, pod: &Pod) -> Option<Arc<Pod>> {
        let mut pod = self.0.latest(pod)?;
        Arc::make_mut(&mut pod).finished.get_or_insert(0);
        Some(pod)
    }
}

#[cfg(test)]
#[path = "viewer_tests.rs"]
mod tests;
