//! The table of the open connections of a port.
//!
//! Invariants:
//! - The table never has more connections than its maximum. A connection that it gives up closes
//!   when it is polled next.
//! - When the table is full, the address with the most connections loses its newest one to a peer
//!   that has at least two fewer. If there is no such address, the new connection is refused. So
//!   one client cannot keep all others out.
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time between two log lines about refused connections: a person reads one a minute, and a
/// flood of connections writes no flood of lines.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A `ConnectionTable` records the open connections of a port by peer.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    max: usize,
    /// The listener and connections that end write it.
    pub(super) open: Mutex<OpenConnections>,
}

#[derive(Debug, Default)]
pub(super) struct OpenConnections {
    pub(super) count: usize,
    next_number: u64,
    /// The connections of each peer, oldest first, with the tokens that close them.
    pub(super) by_peer: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
    last_logged: Option<Instant>,
}

impl ConnectionTable {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            open: Mutex::default(),
        }
    }

    /// Admits a connection of a peer, or refuses it. When the table is full, admission closes a
    /// connection of another peer.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<ConnectionSlot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.count >= self.max {
            open.log_full(self.max);
            let own = open.by_peer.get(&peer).map_or(0, BTreeMap::len);
            let most = open
                .by_peer
                .iter()
                .max_by_key(|(_, connections)| connections.len());
            let (most, newest) = most
                .filter(|(_, connections)| connections.len() > own + 1)
                .and_then(|(peer, connections)| Some((*peer, *connections.last_key_value()?.0)))?;
            if let Some(close) = open.remove(most, newest) {
                close.cancel();
            }
        }
        let (number, close) = (open.next_number, CancellationToken::new());
        open.next_number += 1;
        open.count += 1;
        let connections = open.by_peer.entry(peer).or_default();
        connections.insert(number, close.clone());
        Some(ConnectionSlot {
            table: self.clone(),
            peer,
            number,
            close,
        })
    }
}

impl OpenConnections {
    fn remove(&mut self, peer: IpAddr, number: u64) -> Option<CancellationToken> {
        let connections = self.by_peer.get_mut(&peer)?;
        let close = connections.remove(&number)?;
        if connections.is_empty() {
            self.by_peer.remove(&peer);
        }
        self.count -= 1;
        Some(close)
    }

    /// Logs that the table is full, unless it did so recently.
    fn log_full(&mut self, max: usize) {
        if self
            .last_logged
            .is_none_or(|at| at.elapsed() >= LOG_INTERVAL)
        {
            self.last_logged = Some(Instant::now());
            tracing::warn!(
                max,
                "the port has reached its maximum of connections; some are closed"
            );
        }
    }
}

/// A `ConnectionSlot` is the place of one connection in the table. It is free again on drop.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    table: Arc<ConnectionTable>,
    peer: IpAddr,
    number: u64,
    pub(super) close: CancellationToken,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let open = self.table.open.lock();
        // The entry is gone already when the connection was closed for another peer.
        let _ = open
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.peer, self.number);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[tokio::test]
    async fn one_peer_cannot_keep_the_others_out() {
        let table = Arc::new(ConnectionTable::new(4));
        let greedy: Vec<_> = (0..4).filter_map(|_| table.admit(ip(1))).collect();
        assert_eq!(greedy.len(), 4);
        // It gets no more connections.
        assert!(table.admit(ip(1)).is_none());
        // The others replace its newest connections.
        let others: Vec<_> = (2..5).filter_map(|n| table.admit(ip(n))).collect();
        assert_eq!(others.len(), 3);
        let closed: Vec<bool> = greedy.iter().map(|p| p.close.is_cancelled()).collect();
        assert_eq!(closed, [false, true, true, true]);
        // No peer has more connections than another one by now.
        assert!(table.admit(ip(5)).is_none());
        drop(greedy);
        assert!(table.admit(ip(5)).is_some());
        drop(others);
        let open = table.open.lock().unwrap();
        assert_eq!((open.count, open.by_peer.len()), (0, 0));
    }
}
