//! Which pods' logs otto-handler has acknowledged to the last line, and when they began. The
//! forwarder of logs writes it, and the worker manager reads it.
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::broadcast;

use crate::domain::pod::Pod;

/// How many changes a subscriber may lag behind before it looks at everything. As many workers may
/// end in one burst as a task has.
const MAX_LAG: usize = 1_024;

/// What is known of acknowledged logs. It lives as long as the term.
#[derive(Debug, Clone)]
pub struct Drained(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The last instance of the container whose log is acknowledged, by the pod's uid.
    done: RwLock<HashMap<String, i32>>,
    /// When the first line was printed (Unix seconds), by the pod's uid.
    first_line: RwLock<HashMap<String, i64>>,
    changes: broadcast::Sender<Arc<str>>,
}

impl Default for Drained {
    fn default() -> Self {
        Self(Arc::new(Inner {
            done: RwLock::default(),
            first_line: RwLock::default(),
            changes: broadcast::channel(MAX_LAG).0,
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

    /// Notes when the first line was printed. This is no change to tell of: it is stored with
    /// the next status.
    pub fn began(&self, uid: &str, second: i64) {
        let mut first_line = self
            .0
            .first_line
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        first_line.entry(uid.to_owned()).or_insert(second);
    }

    /// Subscribes to the names of tasks of which a pod was drained.
    pub fn changed(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.changes.subscribe()
    }

    /// Notes that the log is acknowledged up to that instance of the container.
    pub fn drained(&self, pod: &Pod, restart: i32) {
        self.0
            .done
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pod.uid.clone(), restart);
        // Having no subscriber is no error.
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
