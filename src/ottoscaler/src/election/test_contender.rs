//! A whole contender against an API server in memory, on paused time: ten minutes
//! of leadership take half a second, and every time seen is exact.
#![expect(clippy::unwrap_used, clippy::panic)]
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Beat, Clients, Contender, Leadership, Metrics, Reign, Tenure,
    guard::RELEASED_BY,
    test_server::{Asked, Server, held_by, paused_clock},
};
use crate::{config, election::Term};

pub(super) const S: fn(u64) -> Duration = Duration::from_secs;
pub(super) const MS: fn(u64) -> Duration = Duration::from_millis;
pub(super) const ME: &str = "10.0.0.1:9090";
pub(super) const OTHER: &str = "other_10.0.0.2:9090_00000001";

/// How the work takes being told to end.
#[derive(Clone, Copy)]
pub(super) enum Manner {
    /// Returns so long after it was told to drain, at once when it is lost.
    Drains(Duration),
    /// Hears nothing; only dropping it ends it.
    Deaf,
    Panics,
    Returns,
    /// Holds its thread until the contender is gone: nothing ends it.
    Stuck,
}

/// What the work saw, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sight {
    Began(Term),
    Drain,
    Lost,
    /// Returned or dropped.
    Ended,
}

struct Work {
    manner: Manner,
    began: Instant,
    seen: Arc<Mutex<Vec<(Duration, Sight)>>>,
    tenure: watch::Sender<Option<Tenure>>,
    gone: CancellationToken,
}

impl Work {
    fn saw(&self, sight: Sight) {
        let mut seen = self.seen.lock().unwrap();
        seen.push((self.began.elapsed(), sight));
    }
}

struct AtEnd<'a>(&'a Work);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.saw(Sight::Ended);
    }
}

#[tonic::async_trait]
impl Reign for Work {
    async fn run(&self, tenure: Tenure) {
        self.saw(Sight::Began(tenure.term.clone()));
        let _end = AtEnd(self);
        self.tenure.send_replace(Some(tenure.clone()));
        let drained = async {
            tenure.drain.cancelled().await;
            self.saw(Sight::Drain);
            match self.manner {
                Manner::Drains(takes) => sleep(takes).await,
                _ => std::future::pending().await,
            }
        };
        let lost = async {
            tenure.lost.cancelled().await;
            self.saw(Sight::Lost);
            if let Manner::Deaf = self.manner {
                std::future::pending::<()>().await;
            }
        };
        match self.manner {
            Manner::Returns => sleep(MS(2500)).await,
            Manner::Stuck => {
                while !self.gone.is_cancelled() {
                    std::thread::sleep(MS(1));
                }
            }
            Manner::Panics => {
                sleep(MS(2500)).await;
                std::panic::resume_unwind(Box::new("on purpose"));
            }
            Manner::Drains(_) | Manner::Deaf => tokio::select! {
                () = drained => {}
                () = lost => {}
            },
        }
    }
}

/// One contender that runs, and all that it touches.
pub(super) struct One {
    pub(super) server: Arc<Server>,
    pub(super) leadership: Leadership,
    pub(super) beat: Beat,
    pub(super) metrics: Metrics,
    pub(super) seen: Arc<Mutex<Vec<(Duration, Sight)>>>,
    pub(super) tenure: watch::Receiver<Option<Tenure>>,
    pub(super) shutdown: CancellationToken,
    pub(super) running: JoinHandle<()>,
    on_real_time: bool,
}

pub(super) fn settings() -> config::Lease {
    config::Lease {
        name: "l".into(),
        duration: S(6),
        renew_deadline: S(4),
        retry_period: S(1),
        handover_timeout: S(20),
    }
}

pub(super) fn start(server: &Arc<Server>, manner: Manner) -> One {
    start_as(server, manner, None)
}

pub(super) fn start_as(server: &Arc<Server>, manner: Manner, pod_uid: Option<&str>) -> One {
    start_with(server, manner, pod_uid, settings(), S(2))
}

pub(super) fn start_with(
    server: &Arc<Server>,
    manner: Manner,
    pod_uid: Option<&str>,
    settings: config::Lease,
    abort_within: Duration,
) -> One {
    let clock = paused_clock();
    let replica = config::Replica {
        pod_name: "me".into(),
        pod_uid: pod_uid.map(str::to_owned),
        address: ME.into(),
    };
    let clients = Clients {
        lease: server.client(),
        work: server.client(),
        runtime: None,
    };
    let metrics = Metrics::new(clock.clone());
    let (mut contender, leadership) =
        Contender::new(settings, replica, "n", clients, metrics.clone(), clock);
    contender.abort_within = abort_within;
    let beat = contender.beat();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (send, tenure) = watch::channel(None);
    let (shutdown, gone) = (CancellationToken::new(), CancellationToken::new());
    let work = Work {
        manner,
        began: server.began(),
        seen: seen.clone(),
        tenure: send,
        gone: gone.clone(),
    };
    let run = contender.run(Arc::new(work), shutdown.clone());
    #[expect(clippy::disallowed_methods, reason = "awaited by the test")]
    let running = tokio::spawn(async move {
        let _gone = gone.drop_guard();
        run.await;
    });
    One {
        server: server.clone(),
        leadership,
        beat,
        metrics,
        seen,
        tenure,
        shutdown,
        running,
        on_real_time: matches!(manner, Manner::Stuck),
    }
}

impl One {
    /// The first time from now on, within half a minute (on real time 5 s), at
    /// which it is so.
    pub(super) async fn until(&self, is_so: impl Fn(&Self) -> bool) -> Duration {
        let patience = if self.on_real_time { 5_000 } else { 30_000 };
        for _ in 0..patience {
            if is_so(self) {
                return self.server.now();
            }
            sleep(MS(1)).await;
        }
        panic!("never so; seen: {:?}", self.seen.lock().unwrap());
    }

    /// The next tenure after `n` others, and when it began.
    pub(super) async fn tenure_after(&self, n: usize) -> (Duration, Tenure) {
        self.until(|one| one.all(|s| matches!(s, Sight::Began(_))).len() > n)
            .await;
        let began = self.all(|s| matches!(s, Sight::Began(_)))[n];
        (began, self.tenure.borrow().clone().unwrap())
    }

    pub(super) fn all(&self, of: impl Fn(&Sight) -> bool) -> Vec<Duration> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|s| of(&s.1)).map(|s| s.0).collect()
    }

    pub(super) async fn when(&self, sight: &Sight) -> Duration {
        self.until(|one| !one.all(|s| s == sight).is_empty()).await;
        self.all(|s| s == sight)[0]
    }

    pub(super) fn writes(&self) -> Vec<Asked> {
        self.server
            .seen_where(|a| a.is_lease_call() && a.is_write())
    }

    pub(super) fn releases(&self) -> Vec<Asked> {
        self.server.seen_where(Asked::is_release)
    }

    pub(super) fn metric(&self, line: &str) -> bool {
        self.metrics_text().lines().any(|l| l == line)
    }

    pub(super) fn number(&self, metric: &str) -> f64 {
        let text = self.metrics_text();
        let value = text.lines().find_map(|l| l.strip_prefix(metric)).unwrap();
        value.trim().parse().unwrap()
    }

    fn metrics_text(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    /// The Events, once so many were published.
    pub(super) async fn events(&self, count: usize) -> Vec<Value> {
        let of = |a: &Asked| a.path.contains("/events") && a.is_write();
        self.until(|one| one.server.seen_where(of).len() >= count)
            .await;
        let events = self.server.seen_where(of);
        events.into_iter().map(|a| a.body).collect()
    }
}

pub(super) fn released() -> Arc<Server> {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    server
}

pub(super) fn held() -> Arc<Server> {
    let server = Arc::new(Server::default());
    server.put(held_by(OTHER), json!({}));
    server
}
