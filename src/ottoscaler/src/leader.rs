//! What a leader does: it lists what its predecessor left, manages workers and forwards logs.
//!
//! Invariants:
//! - The router sends calls here only between the start of the term and its drain or loss.
//! - Nothing that a predecessor left is judged before [`Controllers::catch_up`] has listed it.
use std::{sync::Arc, time::Duration};

use kube::{Api, api::ListParams};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Limits,
    cluster::{
        Loggable,
        convert::PodView,
        crd::{UNFINISHED, WorkerTask},
        watch::{self, WatchHandler},
    },
    domain::template::Policy,
    election::{Clocks, LeaderContext, LeaderWork, Pause},
    grpc::Router,
    handler::{Drained, HandlerClient, NoHandler, NotificationSink},
    index::{Index, PodFeed, TaskFeed},
    logs::{self, Forwarder},
    workers::{self, Manager, Parts},
};

/// The time between two attempts to list. A new leader does nothing before a list, so it tries
/// often; one replica makes ten requests a second at most.
const LIST_AGAIN: Duration = Duration::from_millis(100);

/// What a leader runs, in each of its terms: the worker manager and the forwarder of logs.
#[derive(Debug)]
pub(crate) struct Controllers {
    pub(crate) index: Index,
    pub(crate) router: Arc<Router>,
    pub(crate) handler: Option<HandlerClient>,
    pub(crate) logs: logs::Context,
    pub(crate) policy: Arc<Policy>,
    pub(crate) limits: Limits,
    pub(crate) metrics: workers::Metrics,
    pub(crate) pause: Pause,
    pub(crate) clocks: Clocks,
}

impl LeaderWork for Controllers {
    async fn run(&self, leader: LeaderContext) {
        let caught_up = CancellationToken::new();
        let drained = Drained::default();
        let manager = Manager::new(&Parts {
            client: leader.client.clone(),
            index: self.index.clone(),
            drained: drained.clone(),
            policy: self.policy.clone(),
            limits: self.limits.clone(),
            metrics: self.metrics.clone(),
            pause: self.pause.clone(),
            clocks: self.clocks.clone(),
            caught_up: caught_up.clone(),
            drain: leader.drain.clone(),
            lost: leader.lost.clone(),
        });
        let forwarder = self.handler.clone().map(|handler| Forwarder {
            handler,
            context: self.logs.clone(),
            index: self.index.clone(),
            drained,
        });
        let tell: Arc<dyn NotificationSink> = match &self.handler {
            Some(handler) => Arc::new(handler.clone()),
            None => Arc::new(NoHandler),
        };
        self.router.lead(Arc::new(manager.clone()));
        let ended = async {
            tokio::select! {
                () = leader.drain.cancelled() => {}
                () = leader.lost.cancelled() => {}
            }
            self.router.follow();
        };
        // What is new can begin at once; what was there before, only once known.
        let forward = async {
            tokio::select! {
                () = self.catch_up(&leader) => {}
                () = leader.drain.cancelled() => return,
                () = leader.lost.cancelled() => return,
            }
            caught_up.cancel();
            if let Some(forwarder) = forwarder {
                forwarder.run(&leader).await;
            }
        };
        futures::future::join3(ended, manager.run(tell), forward).await;
    }
}

impl Controllers {
    /// Lists what the predecessor left. A new leader judges it by consistent lists: its
    /// watches may lag behind. Of tasks it lists those that are not finished; a
    /// thousand of the past would only hold up the first pods. One that it takes for
    /// unfinished in error is sealed, and the answer is what became of it.
    async fn catch_up(&self, leader: &LeaderContext) {
        self.index.wait_synced().await;
        let tasks = leader.client.api::<WorkerTask>();
        let pods = leader.client.api::<PodView>();
        let (tasks, pods) = futures::future::join(
            list(
                &tasks,
                ListParams::default().fields(UNFINISHED),
                TaskFeed::project,
            ),
            list(&pods, ListParams::default(), PodFeed::project),
        )
        .await;
        let tasks_at = watch::parse_version(&tasks.version);
        let feed = TaskFeed(self.index.clone());
        feed.apply_some(tasks.items, tasks.unread, tasks_at);
        let pods_at = watch::parse_version(&pods.version);
        PodFeed(self.index.clone()).replace(pods.items, pods.unread, pods_at);
    }
}

/// Lists what there is, and as of which version. It tries until it has listed; the caller
/// bounds it by the term.
async fn list<K, T>(
    api: &Api<K>,
    params: ListParams,
    keep: impl Fn(K) -> Option<T>,
) -> watch::ObjectList<T>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned,
{
    loop {
        match watch::list(api, params.clone(), &keep).await {
            Ok(listed) => return listed,
            Err(ref error @ watch::Error::Api(kube::Error::Api(ref status)))
                if status.code == 400 =>
            {
                tracing::error!(error = %Loggable(error), "not listed; is this version's CustomResourceDefinition installed?");
            }
            Err(error) => {
                tracing::warn!(error = %Loggable(&error), "not listed; trying again");
            }
        }
        tokio::time::sleep(LIST_AGAIN).await;
    }
}
