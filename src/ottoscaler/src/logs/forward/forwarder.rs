//! Starts a session for each worker that has logs.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, field::Empty};

use super::{
    context::Context,
    session::{End, Ended, Session},
    shards::{self, Checkpoints},
};
use crate::{
    domain::pod::Pod,
    election::LeaderContext,
    handler::{Drained, HandlerClient},
    index::{Index, TaskChanged},
    logs::read::follow::Cluster,
    telemetry,
};

/// The period in which all pods are looked at, in addition to changes. It finds what a change that
/// was missed would leave; a look reads memory only.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The debounce of changes of a task's pods: they often change together, and each look takes
/// time in proportion to their number.
const GATHER: Duration = Duration::from_millis(10);

/// The running sessions, by the pod's uid.
#[derive(Default)]
struct Sessions {
    all: JoinSet<(Arc<Pod>, Ended)>,
    running: HashMap<String, AbortHandle>,
}

/// The leader's log forwarder.
#[derive(Debug)]
pub struct Forwarder {
    pub handler: HandlerClient,
    pub context: Context,
    pub index: Index,
    pub drained: Drained,
}

impl Forwarder {
    /// Runs until the term drains (sessions finish what is in flight, and their checkpoints are
    /// stored) or is lost (everything stops at once).
    pub async fn run(self, leader: &LeaderContext) {
        tokio::select! {
            () = leader.lost.cancelled() => {}
            () = self.forward(leader) => {}
        }
    }

    async fn forward(&self, leader: &LeaderContext) {
        let adopt = shards::adopt(&leader.client, &self.context.metrics);
        let adopted = leader.drain.run_until_cancelled(adopt).await;
        let Some((checkpoints, writers)) = adopted else {
            return;
        };
        let ended = CancellationToken::new();
        let sessions = async {
            self.run_sessions(leader, &checkpoints).await;
            ended.cancel();
        };
        join(sessions, writers.run(&ended)).await;
    }

    /// Starts sessions until the term drains, and returns once they have ended.
    async fn run_sessions(&self, leader: &LeaderContext, checkpoints: &Checkpoints) {
        let mut sessions = Sessions::default();
        let source = Arc::new(Cluster::of_leader(&leader.client));
        let mut changes = self.index.subscribe();
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut changed: HashSet<Arc<str>> = HashSet::new();
        let gathered = sleep(Duration::ZERO);
        tokio::pin!(gathered);
        loop {
            tokio::select! {
                () = leader.drain.cancelled() => break,
                _ = look.tick() => {
                    let pods = self.index.pods();
                    let live: HashSet<String> = pods.iter().map(|p| p.uid.clone()).collect();
                    self.drained.retain(|uid| live.contains(uid));
                    checkpoints.retain(&live);
                    for pod in pods {
                        self.follow(pod, &source, leader, checkpoints, &mut sessions);
                    }
                }
                change = changes.recv() => match change {
                    Ok(TaskChanged { task, .. }) => {
                        if changed.is_empty() {
                            gathered.as_mut().reset(Instant::now() + GATHER);
                        }
                        changed.insert(task);
                    }
                    Err(_) => look.reset_immediately(),
                },
                () = &mut gathered, if !changed.is_empty() => {
                    for task in changed.drain() {
                        for pod in self.index.pods_of(&task).0 {
                            self.follow(pod, &source, leader, checkpoints, &mut sessions);
                        }
                    }
                }
                Some(ended) = sessions.all.join_next() => self.ended(ended, &mut sessions),
            }
        }
        while let Some(ended) = sessions.all.join_next().await {
            self.ended(ended, &mut sessions);
        }
    }

    fn follow(
        &self,
        pod: Arc<Pod>,
        source: &Arc<Cluster>,
        leader: &LeaderContext,
        checkpoints: &Checkpoints,
        sessions: &mut Sessions,
    ) {
        let is_followed = sessions.running.contains_key(&pod.uid) || self.drained.is_drained(&pod);
        if !pod.has_logs() || is_followed {
            return;
        }
        let span = tracing::info_span!(
            "worker",
            otel.name = "forward worker logs",
            pod = &*pod.name,
            task = &*pod.task_id,
            lines = Empty,
            gaps = Empty,
            dropped = Empty,
            retried = Empty
        );
        if let Some(parent) = &pod.traceparent {
            telemetry::set_parent_from(&span, parent);
        }
        let session = Session {
            pod: pod.clone(),
            source: source.clone(),
            pods: self.index.clone(),
            drained: self.drained.clone(),
            checkpoints: checkpoints.clone(),
            handler: self.handler.clone(),
            context: self.context.clone(),
            term: leader.term.clone(),
            drain: leader.drain.clone(),
        };
        let uid = pod.uid.clone();
        let run = async move { (pod, session.run().await) };
        let handle = sessions.all.spawn(run.instrument(span));
        sessions.running.insert(uid, handle);
    }

    fn ended(
        &self,
        ended: Result<(Arc<Pod>, Ended), tokio::task::JoinError>,
        sessions: &mut Sessions,
    ) {
        match ended {
            Ok((pod, ended)) => {
                sessions.running.remove(&pod.uid);
                if ended.end != End::HandedOver {
                    self.drained.drained(&pod, ended.restart);
                }
            }
            Err(error) => {
                // It is started again at the next look.
                tracing::error!(%error, "a log session panicked");
                sessions.running.retain(|_, handle| !handle.is_finished());
            }
        }
    }
}
