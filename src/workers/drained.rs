//! Which pods' logs are acknowledged to the last line.
use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::broadcast;

const CHANGES: usize = 4_096;

/// Written by sessions, read by the worker manager; lives as long as the term.
#[derive(Debug, Clone)]
pub struct Drained(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// By pod uid.
    done: RwLock<HashSet<String>>,
    changes: broadcast::Sender<Arc<str>>,
}

impl Default for Drained {
    fn default() -> Self {
        Self(Arc::new(Inner {
            done: RwLock::default(),
            changes: broadcast::channel(CHANGES).0,
        }))
    }
}

impl Drained {
    pub fn is_drained(&self, uid: &str) -> bool {
        self.0
            .done
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(uid)
    }

    /// Names of tasks of which a pod was drained.
    pub fn changed(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.changes.subscribe()
    }

    pub fn drained(&self, uid: &str, task: &Arc<str>) {
        self.0
            .done
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid.to_owned());
        // Nobody to tell is no error.
        let _ = self.0.changes.send(task.clone());
    }

    /// Forgets pods that are gone.
    pub fn retain(&self, lives: impl Fn(&str) -> bool) {
        self.0
            .done
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|uid| lives(uid));
    }
}
