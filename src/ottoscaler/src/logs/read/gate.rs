//! A limit on concurrent requests, which also holds them while renewals of the Lease are late.
//!
//! Each open log is a connection of its own, and a new leader opens all logs. A thousand
//! handshakes at the same time would take the processor time, here and at the API server, that
//! renewals of the Lease need.
use std::{pin::pin, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

/// How many requests are in flight, save those that take longer than [`HELD`]. Logs are opened side
/// by side, and the renewals of the Lease are not held up behind a thousand of them.
const AT_ONCE: usize = 16;
/// After this time a request counts no more, so that a node that does not answer holds no
/// others up.
const HELD: Duration = Duration::from_secs(1);
/// The period in which a request that waits looks whether renewals are still late. It is small
/// beside a renewal's period of a second.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Gate {
    /// Runs `open` when its turn has come (first in, first out) and nothing `is_late`.
    pub(crate) async fn pass<F: Future>(&self, is_late: impl Fn() -> bool, open: F) -> F::Output {
        // The semaphore is never closed.
        let place = self.0.acquire().await.ok();
        while is_late() {
            sleep(LOOK).await;
        }
        let mut open = pin!(open);
        if let Ok(opened) = timeout(HELD, &mut open).await {
            return opened;
        }
        drop(place);
        open.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::time::Instant;

    use super::*;

    const NEVER: fn() -> bool = || false;

    #[tokio::test(start_paused = true)]
    async fn few_pass_at_once_and_all_pass() {
        let (gate, inside, most) = (Gate::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let one = |_| {
            gate.pass(NEVER, async {
                most.fetch_max(
                    inside.fetch_add(1, Ordering::Relaxed) + 1,
                    Ordering::Relaxed,
                );
                sleep(Duration::from_millis(10)).await;
                inside.fetch_sub(1, Ordering::Relaxed);
            })
        };
        let began = Instant::now();
        assert_eq!(join_all((0..160).map(one)).await.len(), 160);
        assert_eq!(most.into_inner(), AT_ONCE);
        assert_eq!(began.elapsed(), Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_hang_make_room() {
        let gate = Gate::default();
        let hang = join_all((0..AT_ONCE).map(|_| gate.pass(NEVER, sleep(Duration::from_secs(10)))));
        let began = Instant::now();
        let other = async {
            gate.pass(NEVER, async {}).await;
            began.elapsed()
        };
        let (_, waited) = futures::future::join(hang, other).await;
        assert_eq!((waited, began.elapsed()), (HELD, 10 * HELD));
    }
    #[tokio::test(start_paused = true)]
    async fn none_passes_while_renewals_are_late() {
        let (gate, began) = (Gate::default(), Instant::now());
        let late = Duration::from_secs(3);
        let pass = |_| gate.pass(|| began.elapsed() < late, async { began.elapsed() });
        let passed = join_all((0..AT_ONCE * 3).map(pass)).await;
        assert!(passed.iter().all(|at| *at == late), "{passed:?}");
    }
}
