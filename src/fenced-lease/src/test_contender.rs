//! A whole contender against an API server in memory, on paused time: ten minutes
//! of leadership take half a second, and every time seen is exact.
#![expect(clippy::unwrap_used, clippy::panic)]
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    AcquireReason, Contender, EndReason, Event, Heartbeat, Identity, LeaderContext, LeaderWork,
    Leadership, LeaseRef, Term, Timings,
    test_server::{Asked, FIELD_MANAGER, PREFIX, RELEASED_BY, Server, held_by, paused_clock},
};

pub(crate) const S: fn(u64) -> Duration = Duration::from_secs;
pub(crate) const MS: fn(u64) -> Duration = Duration::from_millis;
pub(crate) const ME: &str = "10.0.0.1:9090";
pub(crate) const OTHER: &str = "other_10.0.0.2:9090_00000001";

/// How the work takes being told to end.
#[derive(Clone, Copy)]
pub(crate) enum Manner {
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
pub(crate) enum Sight {
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
    leader: watch::Sender<Option<LeaderContext>>,
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

impl LeaderWork for Work {
    async fn run(&self, leader: LeaderContext) {
        self.saw(Sight::Began(leader.term.clone()));
        let _end = AtEnd(self);
        self.leader.send_replace(Some(leader.clone()));
        let drained = async {
            leader.drain.cancelled().await;
            self.saw(Sight::Drain);
            match self.manner {
                Manner::Drains(takes) => sleep(takes).await,
                _ => std::future::pending().await,
            }
        };
        let lost = async {
            leader.lost.cancelled().await;
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
pub(crate) struct One {
    pub(crate) server: Arc<Server>,
    pub(crate) leadership: Leadership,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) told: Arc<Mutex<Told>>,
    pub(crate) seen: Arc<Mutex<Vec<(Duration, Sight)>>>,
    pub(crate) leader: watch::Receiver<Option<LeaderContext>>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<()>,
    on_real_time: bool,
}

pub(crate) fn start(server: &Arc<Server>, manner: Manner) -> One {
    start_as(server, manner, None)
}

pub(crate) fn start_as(server: &Arc<Server>, manner: Manner, pod_uid: Option<&str>) -> One {
    start_with(server, manner, pod_uid, Timings::default(), S(2))
}

pub(crate) fn start_with(
    server: &Arc<Server>,
    manner: Manner,
    pod_uid: Option<&str>,
    timings: Timings,
    abort_within: Duration,
) -> One {
    let identity = match pod_uid {
        Some(uid) => Identity::of_pod("me", uid),
        None => Identity::new("me"),
    };
    let told: Arc<Mutex<Told>> = Arc::default();
    let tell = told.clone();
    let contender = Contender::builder(server.client(), LeaseRef::new("n", "l"))
        .identity(identity.with_address(ME))
        .timings(timings)
        .names(PREFIX, FIELD_MANAGER)
        .clock(paused_clock())
        .abort_timeout(abort_within)
        .linger(S(2))
        .on_event(move |event| tell.lock().unwrap().take(event))
        .build()
        .unwrap();
    let (leadership, heartbeat) = (contender.leadership(), contender.heartbeat());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (send, leader) = watch::channel(None);
    let (shutdown, gone) = (CancellationToken::new(), CancellationToken::new());
    let work = Work {
        manner,
        began: server.began(),
        seen: seen.clone(),
        leader: send,
        gone: gone.clone(),
    };
    let run = contender.run(work, shutdown.clone());
    #[expect(clippy::disallowed_methods, reason = "awaited by the test")]
    let running = tokio::spawn(async move {
        let _gone = gone.drop_guard();
        run.await;
    });
    One {
        server: server.clone(),
        leadership,
        heartbeat,
        told,
        seen,
        leader,
        shutdown,
        running,
        on_real_time: matches!(manner, Manner::Stuck),
    }
}

impl One {
    /// The first time from now on, within half a minute (on real time 5 s), at
    /// which it is so.
    pub(crate) async fn until(&self, is_so: impl Fn(&Self) -> bool) -> Duration {
        let patience = if self.on_real_time { 5_000 } else { 30_000 };
        for _ in 0..patience {
            if is_so(self) {
                return self.server.now();
            }
            sleep(MS(1)).await;
        }
        panic!("never so; seen: {:?}", self.seen.lock().unwrap());
    }

    /// The next term after `n` others, and when it began.
    pub(crate) async fn term_after(&self, n: usize) -> (Duration, LeaderContext) {
        self.until(|one| one.all(|s| matches!(s, Sight::Began(_))).len() > n)
            .await;
        let began = self.all(|s| matches!(s, Sight::Began(_)))[n];
        (began, self.leader.borrow().clone().unwrap())
    }

    pub(crate) fn all(&self, of: impl Fn(&Sight) -> bool) -> Vec<Duration> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|s| of(&s.1)).map(|s| s.0).collect()
    }

    pub(crate) async fn when(&self, sight: &Sight) -> Duration {
        self.until(|one| !one.all(|s| s == sight).is_empty()).await;
        self.all(|s| s == sight)[0]
    }

    pub(crate) fn writes(&self) -> Vec<Asked> {
        self.server
            .seen_where(|a| a.is_lease_call() && a.is_write())
    }

    pub(crate) fn releases(&self) -> Vec<Asked> {
        self.server.seen_where(Asked::is_release)
    }

    /// It was told that this candidate leads, and not that it no longer does.
    pub(crate) fn leads(&self) -> bool {
        let told = self.told.lock().unwrap();
        told.acquired.len() == told.ended.len() + 1
    }

    pub(crate) fn acquired(&self) -> Vec<(i32, Option<AcquireReason>)> {
        self.told.lock().unwrap().acquired.clone()
    }

    pub(crate) fn ended(&self) -> Vec<(i32, EndReason)> {
        self.told.lock().unwrap().ended.clone()
    }
}

/// The events of a contender.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// By their transitions.
    acquired: Vec<(i32, Option<AcquireReason>)>,
    ended: Vec<(i32, EndReason)>,
    /// Of all renewals.
    pub(crate) latency: Duration,
}

impl Told {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Acquired { term, reason } => self.acquired.push((term.transitions, reason)),
            Event::Ended { term, reason } => self.ended.push((term.transitions, reason)),
            Event::Renewed { latency, .. } => self.latency += latency,
            _ => {}
        }
    }
}

pub(crate) fn released() -> Arc<Server> {
    let server = Arc::new(Server::default());
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    server
}

pub(crate) fn held() -> Arc<Server> {
    let server = Arc::new(Server::default());
    server.put(held_by(OTHER), json!({}));
    server
}
