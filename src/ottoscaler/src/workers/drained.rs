//! What the log forwarder tells the worker manager: which pods' logs are
//! acknowledged to the last line, and when they began.
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::broadcast;

use super::tuning::MAX_WAITERS;
use crate::domain::pod::Pod;

/// Written by sessions, read by the worker manager; lives as long as the term.
#[derive(Debug, Clone)]
pub struct Drained(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// By pod uid: which of the container's instances was the last one.
    done: RwLock<HashMap<String, i32>>,
    /// Unix seconds, by pod uid.
    first_line: RwLock<HashMap<String, i64>>,
    changes: broadcast::Sender<Arc<str>>,
}

impl Default for Drained {
    fn default() -> Self {
        Self(Arc::new(Inner {
            done: RwLock::default(),
            first_line: RwLock::default(),
            changes: broadcast::channel(MAX_WAITERS).0,
        }))
    }
}

impl Drained {
    pub fn is_drained(&self, pod: &Pod) -> bool {
        let done = self.0.done.read().unwrap_or_else(PoisonError::into_inner);
        done.get(&pod.uid)
            .is_some_and(|restart| *restart >= pod.restart_count)
    }

    pub fn first_line(&self, uid: &str) -> Option<i64> {
        let first_line = self.0.first_line.read();
        first_line
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .copied()
    }

    /// Told to nobody: it goes with the next record that is stored.
    pub fn began(&self, uid: &str, second: i64) {
        let mut first_line = self
            .0
            .first_line
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        first_line.entry(uid.to_owned()).or_insert(second);
    }

    /// Names of tasks of which a pod was drained.
    pub fn changed(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.changes.subscribe()
    }

    /// Up to that instance of its container.
    pub fn drained(&self, pod: &Pod, restart: i32) {
        self.0
            .done
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pod.uid.clone(), restart);
        // Nobody to tell is no error.
        let _ = self.0.changes.send(pod.task.clone());
    }

    /// Forgets pods that are gone.
    pub fn retain(&self, lives: impl Fn(&str) -> bool) {
        self.0
            .done
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|uid, _| lives(uid));
        self.0
            .first_line
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|uid, _| lives(uid));
    }
}
