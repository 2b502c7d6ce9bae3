//! Answers that clients have yet to take, within a bound.
//!
//! What holds: what is held is given back when the answer was taken or its call has
//! ended. HTTP/2 lets a client leave an answer where it is for as long as it likes;
//! where room is needed, the connection of the one that has been left longest, and
//! for at least [`STALLED`], is closed. So clients that do not read neither take
//! all memory nor keep those out that do.
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::listen::Peer;

/// Who takes nothing for so long does not read.
const STALLED: Duration = Duration::from_secs(30);

/// Room for answers: bytes, or streams.
#[derive(Debug)]
pub(super) struct Untaken {
    room: usize,
    began: Instant,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    used: usize,
    next: u64,
    all: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    size: usize,
    offered: Arc<AtomicU64>,
    /// None: it came by no connection.
    peer: Option<Peer>,
}

/// One answer's room; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    untaken: Arc<Untaken>,
    number: u64,
    /// Milliseconds, from 1, since `began`: from then on the client was offered
    /// something. 0: it has taken everything.
    offered: Arc<AtomicU64>,
}

impl Untaken {
    pub(super) fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            room,
            began: Instant::now(),
            held: Mutex::default(),
        })
    }

    /// Room for an answer that is offered now; None if there is none. Somebody who
    /// does not read may give up his for the next one that asks.
    pub(super) fn hold(self: &Arc<Self>, size: usize, peer: Option<&Peer>) -> Option<Arc<Place>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.used.saturating_add(size) > self.room {
            let stalled = held.all.values().filter_map(|entry| {
                let since = entry.offered.load(Ordering::Relaxed);
                let peer = entry.peer.as_ref()?;
                (since > 0).then_some((since, peer))
            });
            if let Some((since, peer)) = stalled.min_by_key(|(since, _)| *since)
                && Duration::from_millis(self.now().saturating_sub(since)) >= STALLED
            {
                tracing::info!("a client takes no answers: closing its connection");
                peer.close();
            }
            return None;
        }
        let (number, offered) = (held.next, Arc::new(AtomicU64::new(self.now())));
        held.next += 1;
        held.used += size;
        let entry = Entry {
            size,
            offered: offered.clone(),
            peer: peer.cloned(),
        };
        held.all.insert(number, entry);
        Some(Arc::new(Place {
            untaken: self.clone(),
            number,
            offered,
        }))
    }

    fn now(&self) -> u64 {
        let ms = self.began.elapsed().as_millis();
        u64::try_from(ms).unwrap_or(u64::MAX - 1) + 1
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.held.lock().map_or(0, |held| held.used)
    }
}

impl Place {
    /// The client was offered something.
    pub(super) fn offered(&self) {
        let now = self.untaken.now();
        self.offered.store(now, Ordering::Relaxed);
    }

    /// The client has taken everything there is.
    pub(super) fn taken(&self) {
        self.offered.store(0, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = self.untaken.held.lock();
        let mut held = held.unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = held.all.remove(&self.number) {
            held.used -= entry.size;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_makes_room_for_others() {
        let untaken = Untaken::new(10);
        let [reads, hangs] = [Peer::default(), Peer::default()];
        let read = untaken.hold(4, Some(&reads)).unwrap();
        let hung = untaken.hold(4, Some(&hangs)).unwrap();
        read.taken();
        // Slow is not stalled.
        tokio::time::advance(STALLED / 2).await;
        assert!(untaken.hold(4, None).is_none());
        assert!(!reads.is_closed() && !hangs.is_closed());
        tokio::time::advance(STALLED / 2).await;
        assert!(untaken.hold(2, None).is_some(), "there is room for it");
        assert!(!hangs.is_closed(), "nobody needed its room");
        assert!(untaken.hold(4, None).is_none());
        assert!(!reads.is_closed() && hangs.is_closed());
        drop(hung);
        assert!(untaken.hold(4, None).is_some());
        drop(read);
        assert_eq!(untaken.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_read_now_and_then_is_not_stalled() {
        let untaken = Untaken::new(1);
        let peer = Peer::default();
        let place = untaken.hold(1, Some(&peer)).unwrap();
        for _ in 0..10 {
            tokio::time::advance(STALLED / 2).await;
            place.offered();
            assert!(untaken.hold(1, None).is_none());
        }
        assert!(!peer.is_closed());
    }
}
