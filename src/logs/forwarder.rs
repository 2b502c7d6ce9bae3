//! One session for every worker that has something to say.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tracing::{Instrument as _, field::Empty};

use super::{
    follow::Cluster,
    handler::HandlerClient,
    session::{End, Session},
    settings::Settings,
};
use crate::{domain::pod::Pod, election::Tenure, index::Index, telemetry, workers::Drained};

/// Beside changes, everything is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Changes of so long are one look at their task's pods: all of a task change
/// together, and each look takes time in proportion to them.
const GATHER: Duration = Duration::from_millis(10);

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
        let mut sessions: JoinSet<(Arc<Pod>, (End, i32))> = JoinSet::new();
        let mut running: HashMap<String, AbortHandle> = HashMap::new();
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
                    for pod in self.index.pods() {
                        self.follow(pod, &source, tenure, &mut sessions, &mut running);
                    }
                }
                change = changes.recv() => match change {
                    Ok(task) => {
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
                            self.follow(pod, &source, tenure, &mut sessions, &mut running);
                        }
                    }
                }
                Some(ended) = sessions.join_next() => self.ended(ended, &mut running),
            }
        }
        tokio::select! {
            () = tenure.lost.cancelled() => {}
            () = async { while let Some(ended) = sessions.join_next().await { self.ended(ended, &mut running); } } => {}
        }
    }

    fn follow(
        &self,
        pod: Arc<Pod>,
        source: &Arc<Cluster>,
        tenure: &Tenure,
        sessions: &mut JoinSet<(Arc<Pod>, (End, i32))>,
        running: &mut HashMap<String, AbortHandle>,
    ) {
        if !pod.has_logs() || running.contains_key(&pod.uid) || self.drained.is_drained(&pod) {
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
        let handle = sessions.spawn(async move { (pod, session.run().await) }.instrument(span));
        running.insert(uid, handle);
    }

    fn ended(
        &self,
        ended: Result<(Arc<Pod>, (End, i32)), tokio::task::JoinError>,
        running: &mut HashMap<String, AbortHandle>,
    ) {
        match ended {
            Ok((pod, (end, restart))) => {
                running.remove(&pod.uid);
                match end {
                    End::Drained | End::Gone => self.drained.drained(&pod, restart),
                    End::HandedOver => {}
                }
            }
            Err(error) => {
                // Started again at the next look.
                tracing::error!(%error, "a log session panicked");
                running.retain(|_, handle| !handle.is_finished());
            }
        }
    }
}
