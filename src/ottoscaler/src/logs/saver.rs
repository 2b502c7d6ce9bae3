//! When a session's checkpoint is stored, and that it is.
//!
//! What holds: a session has one write under way at most, and begins one no sooner than
//! [`APART`] after the one before; all sessions together begin at most one each
//! [`TURN`], in the order in which they had something to store: each is a write of a pod,
//! which the API server, its kubelet and every watch take in. A session goes on
//! meanwhile.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tracing::Instrument as _;

use super::{
    checkpoint::Checkpoint,
    follow::{Error, Source},
};
use crate::{cluster::Loggable, domain::pod::Pod};

const APART: Duration = Duration::from_secs(2);
const TURN: Duration = Duration::from_millis(40);
const FLUSH_TRIES: u32 = 3;

/// Shared by all sessions.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Mutex<Option<Instant>>>);

impl Turns {
    fn take(&self, now: Instant) -> Instant {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + TURN);
        turn
    }
}

/// Of one session.
pub(super) struct Saver<S> {
    pod: Arc<Pod>,
    source: Arc<S>,
    turns: Turns,
    /// The sequence after the last one that the stored checkpoint covers.
    stored: u64,
    begun: Instant,
    turn: Option<Instant>,
    /// One write at most; it gives what `stored` is then.
    under_way: JoinSet<Option<u64>>,
}

impl<S: Source> Saver<S> {
    pub(super) fn new(pod: Arc<Pod>, source: Arc<S>, turns: Turns, stored: &Checkpoint) -> Self {
        Self {
            pod,
            source,
            turns,
            stored: stored.next,
            begun: Instant::now(),
            turn: None,
            under_way: JoinSet::new(),
        }
    }

    /// When to call [`Self::begin`], if there is something to store.
    pub(super) fn due_at(&mut self, acked: &Checkpoint, now: Instant) -> Option<Instant> {
        if acked.next == self.stored || !self.under_way.is_empty() {
            return None;
        }
        let turn = *self.turn.get_or_insert_with(|| self.turns.take(now));
        Some(turn.max(self.begun + APART))
    }

    /// Does nothing before it is due.
    pub(super) fn begin(&mut self, acked: &Checkpoint) {
        let now = Instant::now();
        if self.due_at(acked, now).is_some_and(|due| due <= now) {
            self.start(acked);
        }
    }

    fn start(&mut self, acked: &Checkpoint) {
        self.turn = None;
        self.begun = Instant::now();
        let (pod, source) = (self.pod.clone(), self.source.clone());
        let (text, next) = (acked.encode(), acked.next);
        let save = async move {
            match source.save(&pod, text).await {
                // Nobody needs one of a pod that is gone.
                Ok(()) | Err(Error::Gone) => Some(next),
                Err(error) => {
                    // The next one covers it.
                    tracing::debug!(pod = &*pod.name, error = %Loggable(&error), "checkpoint not stored");
                    None
                }
            }
        };
        self.under_way.spawn(save.in_current_span());
    }

    /// The write under way has ended; never, without one. Cancel safe.
    pub(super) async fn ended(&mut self) {
        match self.under_way.join_next().await {
            Some(Ok(Some(next))) => self.stored = next,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }

    /// Stores it now, if it is not stored; tried a few times.
    pub(super) async fn flush(&mut self, acked: &Checkpoint) {
        if !self.under_way.is_empty() {
            self.ended().await;
        }
        let mut tries = 0;
        while acked.next != self.stored {
            if tries == FLUSH_TRIES {
                tracing::warn!(
                    pod = &*self.pod.name,
                    "its checkpoint was not stored; whoever reads on sends some lines again"
                );
                return;
            }
            tries += 1;
            self.start(acked);
            self.ended().await;
        }
    }

    /// A new container's log begins with this one, which is to be stored.
    pub(super) fn restart(&mut self) {
        self.stored = 0;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use tokio::time::sleep;

    use super::*;
    use crate::logs::follow::{Open, Reader};

    const SLOW: Duration = Duration::from_secs(3);

    /// Takes each in SLOW; the first ones fail.
    #[derive(Default)]
    struct Store {
        fail: usize,
        began: Mutex<Vec<(Instant, String)>>,
    }

    #[tonic::async_trait]
    impl Source for Store {
        async fn open(&self, _: &Pod, _: Open) -> Result<Reader, Error> {
            Err(Error::Gone)
        }

        async fn save(&self, _: &Pod, checkpoint: String) -> Result<(), Error> {
            let began = {
                let mut began = self.began.lock().unwrap_or_else(PoisonError::into_inner);
                began.push((Instant::now(), checkpoint));
                began.len()
            };
            sleep(SLOW).await;
            if began > self.fail {
                Ok(())
            } else {
                Err(Error::Timeout)
            }
        }

        async fn reserve(&self, _: &Pod, least: u32) -> Result<u32, Error> {
            Ok(least)
        }
    }

    fn saver(fail: usize) -> (Saver<Store>, Arc<Store>) {
        let store = Arc::new(Store {
            fail,
            ..Store::default()
        });
        let start = Checkpoint::start(0);
        let saver = Saver::new(Arc::default(), store.clone(), Turns::default(), &start);
        (saver, store)
    }

    fn upto(next: u64) -> Checkpoint {
        Checkpoint {
            next,
            ..Checkpoint::start(0)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_writes_one_at_a_time_and_what_failed_again() {
        let ((mut saver, store), start) = (saver(1), Instant::now());
        for next in 1..100 {
            let acked = upto(next);
            saver.begin(&acked);
            tokio::select! {
                () = saver.ended() => {}
                () = sleep(Duration::from_millis(100)) => {}
            }
        }
        saver.flush(&upto(100)).await;
        saver.flush(&upto(100)).await;
        let began = store.began.lock().unwrap();
        let at: Vec<u128> = began.iter().map(|b| (b.0 - start).as_millis()).collect();
        assert_eq!(at, [2_000, 5_000, 8_000, 11_000], "{at:?}");
        assert_eq!(Checkpoint::parse(&began[3].1).unwrap().next, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_new_is_nothing_to_store() {
        let (mut saver, store) = saver(0);
        let acked = upto(1);
        sleep(APART).await;
        assert_eq!(saver.due_at(&acked, Instant::now()), None);
        saver.begin(&acked);
        saver.flush(&acked).await;
        assert!(store.began.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn all_sessions_together_write_in_turn() {
        let (turns, start) = (Turns::default(), Instant::now());
        let mut due: Vec<Instant> = (0..100).map(|_| turns.take(start)).collect();
        assert_eq!(due[99] - start, TURN * 99);
        due.dedup();
        assert_eq!(due.len(), 100);
        sleep(TURN * 200).await;
        assert_eq!(
            turns.take(Instant::now()),
            Instant::now(),
            "none is saved up"
        );
    }
}
