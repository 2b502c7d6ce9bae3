//! The constants of the worker manager that decide when it writes, and how much at a time.
use std::time::Duration;

/// The limit of calls in flight starts here and never falls below it. Each class has a slot of its
/// own, and creates by themselves sixteen: an API server that is far away still makes tens of pods
/// a second, and one that is busy is not overrun. A burst begins with as many.
pub(super) const MIN_IN_FLIGHT: usize = 20;
/// The limit of calls in flight never exceeds this. More connections than the API server gives one
/// client by default gain nothing.
pub(super) const MAX_IN_FLIGHT: usize = 256;
/// The limit is multiplied by this for each round of calls that met congestion. It is TCP CUBIC's
/// factor: the server stays busy after a decrease.
pub(super) const DECREASE: f64 = 0.7;
/// An answer that takes longer than this may mean congestion. What waits so long in the API server,
/// or for the watch, delays notifications of ends by as much; two thirds of what is promised for
/// them.
pub(super) const CONGESTED: Duration = Duration::from_millis(100);
/// An answer that takes so many times the fastest one may mean congestion. A server that is far
/// away answers late without being busy; three times its fastest answer of a burst is a queue.
pub(super) const CONGESTED_RATIO: u32 = 3;
/// A create counts as in flight until the watch shows its pod, for no longer than this. A watch
/// that says nothing of a pod for so long may be dead, which must hold nobody up; its successor
/// tells.
pub(super) const WATCH_SILENT: Duration = Duration::from_millis(300);
/// Each queue of this module that other parts fill is bounded by this. More callers are told to try
/// again, before their deadlines pass unseen.
pub(super) const MAX_WAITERS: usize = 1_024;
/// A `Retry-After` is respected for this long at most, however much longer the API server asks for:
/// the leader must see that it is well again.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// A failure that took longer is a missing answer, not a refusal for load. An API server that turns
/// a call away does so at once; one that says that it is busy after so long did not answer in time.
pub(super) const UNANSWERED: Duration = Duration::from_secs(1);
/// A class of calls whose rounds fail one after another has this backoff. A server that comes back
/// gets work within a second.
pub(super) const CALL_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(50),
    most: Duration::from_secs(1),
};
/// A write of one object that fails has this backoff. What was in the way takes seconds to pass.
pub(super) const WRITE_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(500),
    most: Duration::from_secs(10),
};
/// A notification that otto-handler does not take has this backoff. A restart of otto-handler takes
/// seconds.
pub(super) const NOTIFY_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    most: Duration::from_secs(15),
};
/// At most so many notifications are in flight. One HTTP/2 connection takes a hundred streams by
/// default.
pub(super) const NOTIFICATIONS_IN_FLIGHT: usize = 64;
/// Notifications in flight have this time at a drain. What is under way at a drain ends within it,
/// well before the process is killed.
pub(super) const NOTIFY_DRAIN: Duration = Duration::from_secs(3);
/// An urgent status is written this long after its first change. A person, or the next leader, does
/// not miss what is a second old; what comes in a burst is one write.
pub(super) const STATUS_URGENT: Duration = Duration::from_secs(1);
/// Any other status is written this long after its first change. Pods tell the rest themselves; a
/// minute is how often people look.
pub(super) const STATUS_RELAXED: Duration = Duration::from_secs(60);
/// Each worker of a task adds this to the delay of its status. A write costs the API server and
/// every watch so much the more, the more workers it has.
pub(super) const STATUS_PER_WORKER: Duration = Duration::from_millis(2);
/// A pod that has ended waits this long for others that are deleted with it. Nobody waits for a pod
/// that has ended; ten seconds of them make groups of a hundred where ten end a second.
pub(super) const GROUP_DELAY: Duration = Duration::from_secs(10);
/// One call deletes at most so many pods. Keys of 128 pods are 5 KiB of the call's address, which
/// some proxies cut at 8 KiB.
pub(super) const GROUP_SIZE: usize = 128;
/// A write that meets other writes of its object is tried this often. An object that changes faster
/// is planned anew.
pub(super) const MAX_CONFLICTS: usize = 8;
/// A delete is remembered this long after its answer. If the watch has not told of it by then, it
/// is deleted again.
pub(super) const WATCH_LAG_TTL: Duration = Duration::from_secs(10);
/// Two plans of a task are at least this far apart. A burst of changes of a task is one plan, and
/// nobody notices the delay; the error of a measured lag is as small.
pub(super) const PLAN_INTERVAL: Duration = Duration::from_millis(5);
/// Each worker of a task adds this to the distance of its plans. A plan looks at each worker; this
/// is several times what that takes.
pub(super) const PLAN_PER_WORKER: Duration = Duration::from_micros(10);
/// A plan that nobody waits for is made this much later, so that more changes are one plan.
pub(super) const PLAN_RELAXED: Duration = Duration::from_millis(100);
/// What is left over is looked for this often. It goes within a minute, after three looks.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(20);

/// A `Backoff` doubles from `first` to `most`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// Returns the wait after so many failures in a row, the first of which is 1.
    pub(super) fn after(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        (self.first * (1 << doublings)).min(self.most)
    }
}

/// Returns the least time between two plans of a task of so many workers.
pub(super) fn plan_interval(workers: u32) -> Duration {
    PLAN_INTERVAL + PLAN_PER_WORKER * workers
}
