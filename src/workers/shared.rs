//! What the manager, its effects and its courier have in common.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::drained::Drained;
use crate::{
    config,
    domain::task::{Notified, Task},
    election::LeaderClient,
    index::Index,
    telemetry,
};

/// By task and worker index.
pub(super) type Told = HashMap<(Arc<str>, u32), Notified>;
/// By task, worker index and attempt.
pub(super) type Refused = HashMap<(Arc<str>, u32, u32), String>;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: LeaderClient,
    pub(super) index: Index,
    pub(super) template: config::Worker,
    pub(super) creates: Semaphore,
    pub(super) drained: Drained,
    pub(super) limits: config::Limits,
    pub(super) drain: CancellationToken,
    pub(super) lost: CancellationToken,
    /// What otto-handler took, until it is stored. Written by the courier; read
    /// by the loop.
    pub(super) notified_by: Mutex<Told>,
    /// Workers that the API server refused, by attempt. Written and read by the
    /// loop; read by ScaleUp.
    pub(super) refused_by: Mutex<Refused>,
}

impl Shared {
    pub(super) fn notified(&self) -> MutexGuard<'_, Told> {
        self.notified_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refused(&self) -> MutexGuard<'_, Refused> {
        self.refused_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn took(&self, task: &Arc<str>, index: u32, told: Notified) {
        self.notified().insert((task.clone(), index), told);
        self.index.announce(task.clone());
    }
}

/// A span in the trace of the request that made the task.
pub(super) fn span_of(task: &Task, what: &'static str) -> tracing::Span {
    let span = tracing::info_span!("worker", otel.name = what, task = task.spec.task_id);
    if let Some(parent) = &task.spec.traceparent {
        telemetry::set_parent_from(&span, parent);
    }
    span
}
