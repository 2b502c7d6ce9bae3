//! One session for every worker that has something to say.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tracing::{Instrument as _, field::Empty};

use super::{
    follow::Cluster,
    handler::HandlerClient,
    session::{End, Ended, Session},
    settings::Settings,
};
use crate::{
    domain::pod::Pod,
    election::Tenure,
    index::{Change, Index},
    telemetry,
    workers::Drained,
};

/// Beside changes, everything is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Changes of so long are one look at their task's pods: all of a task change
/// together, and each look takes time in proportion to them.
const GATHER: Duration = Duration::from_millis(10);

/// Sessions that run, and what is left of those that have ended, by the pod's uid.
#[derive(Default)]
struct Sessions {
    all: JoinSet<(Arc<Pod>, Ended<Cluster>)>,
    running: HashMap<String, AbortHandle>,
    /// Whose pods are still there: another leader must know where they ended.
    ended: HashMap<String, Ended<Cluster>>,
}

/// The leader's log forwarder.
#[derive(Debug)]
pub struct Forwarder {
    pub handler: HandlerClient,
    pub settings: Settings,
    pub index: Index,
    pub drained: Drained,
}

impl Forwarder {
    /// Runs until the tenure drains (sessions finish what is under way and store
    /// their checkpoints) or is lost (they stop at once).
    pub async fn run(self, tenure: &Tenure) {
        let mut sessions = Sessions::default();
        let source = Arc::new(Cluster::of_leader(&tenure.client));
        let mut changes = self.index.subscribe();
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut changed: HashSet<Arc<str>> = HashSet::new();
        let gathered = sleep(Duration::ZERO);
        tokio::pin!(gathered);
        loop {
            tokio::select! {
                () = tenure.lost.cancelled() => return,
                () = tenure.drain.cancelled() => break,
                _ = look.tick() => {
                    let live: HashSet<String> =
                        self.index.pods().iter().map(|p| p.uid.clone()).collect();
                    self.drained.retain(|uid| live.contains(uid));
                    sessions.ended.retain(|uid, _| live.contains(uid));
                    for pod in self.index.pods() {
                        self.follow(pod, &source, tenure, &mut sessions);
                    }
                }
                change = changes.recv() => match change {
                    Ok(Change { task, .. }) => {
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
                            self.follow(pod, &source, tenure, &mut sessions);
                        }
                    }
                }
                Some(ended) = sessions.all.join_next() => self.ended(ended, &mut sessions),
            }
        }
        tokio::select! {
            () = tenure.lost.cancelled() => {}
            () = self.hand_over(sessions) => {}
        }
    }

    /// Sessions end by themselves; what they came to is stored.
    async fn hand_over(&self, mut sessions: Sessions) {
        while let Some(ended) = sessions.all.join_next().await {
            self.ended(ended, &mut sessions);
        }
        let live: HashSet<String> = self.index.pods().iter().map(|p| p.uid.clone()).collect();
        let left = sessions.ended.into_iter();
        let left = left.filter(|(uid, _)| live.contains(uid));
        join_all(left.map(|(_, ended)| ended.store())).await;
    }

    fn follow(
        &self,
        pod: Arc<Pod>,
        source: &Arc<Cluster>,
        tenure: &Tenure,
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
            handler: self.handler.clone(),
            settings: self.settings.clone(),
            term: tenure.term.clone(),
            drain: tenure.drain.clone(),
        };
        let uid = pod.uid.clone();
        let run = async move { (pod, session.run().await) };
        let handle = sessions.all.spawn(run.instrument(span));
        sessions.running.insert(uid, handle);
    }

    fn ended(
        &self,
        ended: Result<(Arc<Pod>, Ended<Cluster>), tokio::task::JoinError>,
        sessions: &mut Sessions,
    ) {
        match ended {
            Ok((pod, ended)) => {
                sessions.running.remove(&pod.uid);
                // What was handed over was stored.
                if ended.end != End::HandedOver {
                    self.drained.drained(&pod, ended.restart);
                    sessions.ended.insert(pod.uid.clone(), ended);
                }
            }
            Err(error) => {
                // Started again at the next look.
                tracing::error!(%error, "a log session panicked");
                sessions.running.retain(|_, handle| !handle.is_finished());
            }
        }
    }
}
