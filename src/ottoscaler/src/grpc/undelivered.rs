//! A bound on the responses that clients have yet to read.
//!
//! HTTP/2 lets a client leave a response unread for as long as it likes.
//!
//! Invariants:
//! - The sizes of the slots in use never exceed the capacity together.
//! - A slot is released when its response has been read or its call has ended.
//! - When a call finds no capacity, the connection whose response has been unread for longest is
//!   closed, provided that it has been unread for [`STALL_TIMEOUT`]. So clients that do not read
//!   neither use up the memory nor keep out clients that do.
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::listen::ConnectionHandle;

/// The time after which a client that has read nothing counts as stalled. Losses of packets are
/// repaired within seconds; other clients wait for the memory.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// An `UndeliveredResponses` bounds the responses of one kind, in bytes or in streams.
#[derive(Debug)]
pub(super) struct UndeliveredResponses {
    capacity: usize,
    epoch: Instant,
    slots: Mutex<Slots>,
}

/// The slots in use. Calls write and read them.
#[derive(Debug, Default)]
struct Slots {
    /// The sum of their sizes.
    used: usize,
    next: u64,
    by_number: BTreeMap<u64, SlotEntry>,
}

#[derive(Debug)]
struct SlotEntry {
    size: usize,
    offered_at: Arc<AtomicU64>,
    /// The connection of the call; a test may have none.
    peer: Option<ConnectionHandle>,
}

/// A `DeliverySlot` is the capacity that one response uses. It is released on drop.
#[derive(Debug)]
pub(super) struct DeliverySlot {
    responses: Arc<UndeliveredResponses>,
    number: u64,
    /// The time at which the client was last offered something, in milliseconds since `epoch` plus
    /// one. Zero means that the client has read everything.
    offered_at: Arc<AtomicU64>,
}

impl UndeliveredResponses {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            epoch: Instant::now(),
            slots: Mutex::default(),
        })
    }

    /// Reserves capacity for a response that is offered now, or returns none when too little is
    /// left. In that case a stalled client may lose its connection, so that a later call finds
    /// capacity.
    pub(super) fn reserve(
        self: &Arc<Self>,
        size: usize,
        peer: Option<&ConnectionHandle>,
    ) -> Option<Arc<DeliverySlot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.used.saturating_add(size) > self.capacity {
            let stalled = slots.by_number.values().filter_map(|entry| {
                let since = entry.offered_at.load(Ordering::Relaxed);
                let peer = entry.peer.as_ref()?;
                (since > 0).then_some((since, peer))
            });
            if let Some((since, peer)) = stalled.min_by_key(|(since, _)| *since)
                && Duration::from_millis(self.now().saturating_sub(since)) >= STALL_TIMEOUT
            {
                tracing::info!("a client does not read its responses; its connection is closed");
                peer.close();
            }
            return None;
        }
        let (number, offered_at) = (slots.next, Arc::new(AtomicU64::new(self.now())));
        slots.next += 1;
        slots.used += size;
        let entry = SlotEntry {
            size,
            offered_at: offered_at.clone(),
            peer: peer.cloned(),
        };
        slots.by_number.insert(number, entry);
        Some(Arc::new(DeliverySlot {
            responses: self.clone(),
            number,
            offered_at,
        }))
    }

    fn now(&self) -> u64 {
        let ms = self.epoch.elapsed().as_millis();
        u64::try_from(ms).unwrap_or(u64::MAX - 1) + 1
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.slots.lock().map_or(0, |slots| slots.used)
    }
}

impl DeliverySlot {
    /// Records that the client was offered something to read.
    pub(super) fn mark_offered(&self) {
        let now = self.responses.now();
        self.offered_at.store(now, Ordering::Relaxed);
    }

    /// Records that the client has read everything so far.
    pub(super) fn mark_read(&self) {
        self.offered_at.store(0, Ordering::Relaxed);
    }
}

impl Drop for DeliverySlot {
    fn drop(&mut self) {
        let slots = self.responses.slots.lock();
        let mut slots = slots.unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = slots.by_number.remove(&self.number) {
            slots.used -= entry.size;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_makes_room_for_others() {
        let undelivered = UndeliveredResponses::new(10);
        let [reads, hangs] = [ConnectionHandle::default(), ConnectionHandle::default()];
        let read = undelivered.reserve(4, Some(&reads)).unwrap();
        let hung = undelivered.reserve(4, Some(&hangs)).unwrap();
        read.mark_read();
        // A slow client is not stalled.
        tokio::time::advance(STALL_TIMEOUT / 2).await;
        assert!(undelivered.reserve(4, None).is_none());
        assert!(!reads.is_closed() && !hangs.is_closed());
        tokio::time::advance(STALL_TIMEOUT / 2).await;
        assert!(
            undelivered.reserve(2, None).is_some(),
            "there is room for it"
        );
        assert!(!hangs.is_closed(), "nobody needed its room");
        assert!(undelivered.reserve(4, None).is_none());
        assert!(!reads.is_closed() && hangs.is_closed());
        drop(hung);
        assert!(undelivered.reserve(4, None).is_some());
        drop(read);
        assert_eq!(undelivered.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_read_now_and_then_is_not_stalled() {
        let undelivered = UndeliveredResponses::new(1);
        let peer = ConnectionHandle::default();
        let place = undelivered.reserve(1, Some(&peer)).unwrap();
        for _ in 0..10 {
            tokio::time::advance(STALL_TIMEOUT / 2).await;
            place.mark_offered();
            assert!(undelivered.reserve(1, None).is_none());
        }
        assert!(!peer.is_closed());
    }
}
