//! The gRPC health service: `liveness` and `readiness` for the kubelet, `""` and the name of the
//! service for clients. All of them are NOT_SERVING until the first probe.
use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    self, HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
};

use super::errors;
use crate::{election::Heartbeat, index::Index};

pub(super) const SERVICE: &str = "ottoscaler.v1.OttoscalerService";
/// The age of the election's heartbeat from which on the replica is not alive. The election beats
/// every second while it waits, whatever the timings of the Lease, and before each round of calls,
/// which takes at most 6 s. A heartbeat of this age means that it is stuck.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(20);
/// The number of health watches at a time, over all ports. A replica has a few watchers (kubelet,
/// load balancers, clients); the bound keeps others from opening streams without end.
const MAX_HEALTH_WATCHES: usize = 256;
/// The time between two looks at what health is derived from. A watch reports a change after it at
/// the latest, well below the period of any probe.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// A `Probe` holds what the health of the replica is derived from.
#[derive(Debug, Clone)]
pub struct Probe {
    pub index: Index,
    pub heartbeat: Heartbeat,
    pub drain: CancellationToken,
}

impl Probe {
    fn is_alive(&self) -> bool {
        self.heartbeat.age() < LIVENESS_TIMEOUT
    }

    /// Reports whether the replica can serve. Once synced it stays ready until it drains: a fault
    /// that all replicas share must not take all of them out of the Service. Each response says
    /// how stale it is.
    fn is_ready(&self) -> bool {
        self.index.synced() && !self.drain.is_cancelled()
    }
}

/// A `ReplicaHealth` is the result of one probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ReplicaHealth {
    alive: bool,
    ready: bool,
}

impl ReplicaHealth {
    /// Returns the status of a service name, or none when the name is unknown.
    fn serving_status(self, name: &str) -> Option<ServingStatus> {
        let good = match name {
            "liveness" => self.alive,
            "" | SERVICE | "readiness" => self.ready,
            _ => return None,
        };
        Some(if good {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        })
    }
}

/// A `Health` probes the replica and serves the result by grpc.health.v1.
#[derive(Debug, Clone)]
pub struct Health {
    published: watch::Sender<ReplicaHealth>,
    /// The permits for watches of all ports.
    watches: Arc<Semaphore>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            published: watch::channel(ReplicaHealth::default()).0,
            watches: Arc::new(Semaphore::new(MAX_HEALTH_WATCHES)),
        }
    }
}

impl Health {
    /// Probes the replica until cancelled.
    pub async fn run(&self, probe: Probe, cancel: CancellationToken) {
        let mut every = tokio::time::interval(PROBE_INTERVAL);
        let mut drained = false;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = every.tick() => {}
                // A rollout waits for readiness, and its end stops new calls: both are published
                // at once.
                () = probe.index.wait_synced(), if !probe.index.synced() => {}
                () = probe.drain.cancelled(), if !drained => drained = true,
            }
            let now = ReplicaHealth {
                alive: probe.is_alive(),
                ready: probe.is_ready(),
            };
            self.published.send_if_modified(|last| {
                let is_news = *last != now;
                *last = now;
                is_news
            });
        }
    }
}

fn health_response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl pb::health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self
            .published
            .borrow()
            .serving_status(&request.get_ref().service);
        let status = status.ok_or_else(|| Status::not_found("unknown service"))?;
        Ok(Response::new(health_response(status)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Streams the current status, then each change of it. An unknown name is SERVICE_UNKNOWN and
    /// does not end the stream, as the protocol requires.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let name = request.into_inner().service;
        let permit = self.watches.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            errors::resource_exhausted(
                "this replica has reached its maximum of health watches; try again",
            )
        })?;
        let mut published = self.published.subscribe();
        published.mark_changed();
        let changes = stream::unfold((published, None), move |(mut published, last)| {
            // The stream holds its permit until it is dropped.
            let _held = &permit;
            let name = name.clone();
            async move {
                loop {
                    published.changed().await.ok()?;
                    let known = published.borrow_and_update().serving_status(&name);
                    let now = known.unwrap_or(ServingStatus::ServiceUnknown);
                    if last != Some(now) {
                        return Some((Ok(health_response(now)), (published, Some(now))));
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use futures::StreamExt as _;
    use pb::health_server::Health as _;

    use super::*;
    use crate::{
        cluster::watch::WatchHandler as _,
        election::{Clock, Time},
        index::{PodFeed, TaskFeed},
    };

    /// A clock that shows the milliseconds since boot that the test sets.
    struct At(AtomicU64);

    impl Time for At {
        fn boot(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn started(&self) -> jiff::Timestamp {
            jiff::Timestamp::UNIX_EPOCH
        }
    }

    #[test]
    fn liveness_fails_only_once_the_election_is_silent_for_20_s() {
        let at = Arc::new(At(AtomicU64::new(5_000)));
        let probe = Probe {
            // As in an outage of the API server, the index has received nothing.
            index: Index::default(),
            heartbeat: Heartbeat::new(Clock::new(at.clone())),
            drain: CancellationToken::new(),
        };
        for (now, is_alive) in [(5_000, true), (24_999, true), (25_000, false)] {
            at.0.store(now, Ordering::Relaxed);
            assert_eq!(probe.is_alive(), is_alive, "at {now} ms");
            assert!(!probe.is_ready());
        }
        probe.heartbeat.tick();
        assert!(probe.is_alive());
        // A replica that drains is alive.
        probe.drain.cancel();
        assert!(probe.is_alive() && !probe.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_of_health_tells_changes_only() {
        let (health, index) = (Health::default(), Index::default());
        let probe = Probe {
            index: index.clone(),
            heartbeat: Heartbeat::new(Clock::default()),
            drain: CancellationToken::new(),
        };
        let drain = probe.drain.clone();
        let (mut told, mut unknown) = (Vec::new(), Vec::new());
        let watch = async |name: &str, told: &mut Vec<i32>| {
            let service = name.to_owned();
            let request = Request::new(HealthCheckRequest { service });
            let Ok(watched) = health.watch(request).await else {
                return;
            };
            let mut watched = watched.into_inner();
            while let Some(Ok(answer)) = watched.next().await {
                told.push(answer.status);
            }
        };
        let life = async {
            let day = Duration::from_secs(60);
            tokio::time::sleep(day).await;
            TaskFeed(index.clone()).reset(vec![], 1);
            PodFeed(index.clone()).reset(vec![], 1);
            // Probes that change nothing, as while bookmarks arrive.
            for _ in 0..100 {
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
            drain.cancel();
            tokio::time::sleep(day).await;
        };
        tokio::select! {
            () = life => {}
            () = health.run(probe, CancellationToken::new()) => {}
            () = watch("readiness", &mut told) => {}
            () = watch("nobody", &mut unknown) => {}
        }
        let [not_serving, serving] = [ServingStatus::NotServing, ServingStatus::Serving];
        assert_eq!(told, [not_serving, serving, not_serving].map(i32::from));
        assert_eq!(unknown, [i32::from(ServingStatus::ServiceUnknown)]);
    }

    #[tokio::test]
    async fn watches_of_health_are_bounded_and_checks_are_answered_beside_them() {
        let health = Health::default();
        let ask = || Request::new(HealthCheckRequest::default());
        let mut watched = Vec::new();
        for _ in 0..MAX_HEALTH_WATCHES {
            watched.extend(health.watch(ask()).await);
        }
        assert_eq!(watched.len(), MAX_HEALTH_WATCHES);
        let refused = health.watch(ask()).await.map(|_| ());
        let code = refused.map_err(|status| status.code());
        assert_eq!(code, Err(tonic::Code::ResourceExhausted));
        assert!(health.check(ask()).await.is_ok());
        watched.pop();
        assert!(health.watch(ask()).await.is_ok());
    }
}
