//! Events on the Lease: each change of leader, for `kubectl describe lease`.
//!
//! Told beside the contest, never in its way: what does not fit or is not
//! answered in time is dropped.
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::{sync::mpsc, time::timeout};

use crate::domain::term::Term;

/// Changes of leader that wait to be told.
const WAITING: usize = 8;
const PUBLISH_WITHIN: Duration = Duration::from_secs(3);

/// A change, ready to be published.
struct Change {
    event: Event,
    lease_uid: String,
}

/// Where the contender puts changes.
pub(super) struct Events {
    waiting: mpsc::Sender<Change>,
    replica: String,
}

/// Publishes them; runs beside the contender.
pub(super) struct Publisher {
    waiting: mpsc::Receiver<Change>,
    recorder: Recorder,
    lease: ObjectReference,
}

pub(super) fn channel(
    client: kube::Client,
    namespace: &str,
    lease: &str,
    replica: &str,
) -> (Events, Publisher) {
    let (send, waiting) = mpsc::channel(WAITING);
    let reporter = Reporter {
        controller: "ottoscaler".to_owned(),
        instance: Some(replica.to_owned()),
    };
    let events = Events {
        waiting: send,
        replica: replica.to_owned(),
    };
    let publisher = Publisher {
        waiting,
        recorder: Recorder::new(client, reporter),
        lease: ObjectReference {
            api_version: Some("coordination.k8s.io/v1".to_owned()),
            kind: Some("Lease".to_owned()),
            name: Some(lease.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
    };
    (events, publisher)
}

impl Events {
    pub(super) fn acquired(&self, term: &Term, cause: &str) {
        let note = format!(
            "{} leads term {} (the Lease was {cause})",
            self.replica, term.transitions
        );
        self.tell(term, EventType::Normal, "LeaderElected", "Acquire", note);
    }

    pub(super) fn lost(&self, term: &Term, cause: &str, expected: bool) {
        let note = format!(
            "{} no longer leads term {}: {cause}",
            self.replica, term.transitions
        );
        let kind = if expected {
            EventType::Normal
        } else {
            EventType::Warning
        };
        self.tell(term, kind, "LeaderStopped", "Release", note);
    }

    fn tell(&self, term: &Term, type_: EventType, reason: &str, action: &str, note: String) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        let lease_uid = term.lease_uid.clone();
        // Full: the API server is away, and the log has it.
        let _ = self.waiting.try_send(Change { event, lease_uid });
    }
}

impl Publisher {
    /// Runs until the [`Events`] are gone and told.
    pub(super) async fn run(mut self) {
        while let Some(Change { event, lease_uid }) = self.waiting.recv().await {
            self.lease.uid = Some(lease_uid);
            match timeout(PUBLISH_WITHIN, self.recorder.publish(&event, &self.lease)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(%error, "event not published"),
                Err(_) => tracing::info!("event not published in time"),
            }
        }
    }
}
