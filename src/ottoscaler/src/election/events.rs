//! Events on the Lease: each change of leader, for `kubectl describe lease`.
use fenced_lease::{AcquireReason, EndReason, Event, Term};
use k8s_openapi::api::core::v1::ObjectReference;

use crate::cluster::events::{self, Note, Publisher};

/// Publishes the changes of leader that the contender reports.
#[derive(Debug)]
pub(super) struct LeaderEvents {
    events: events::EventQueue,
    replica: String,
    lease: ObjectReference,
}

impl LeaderEvents {
    pub(super) fn channel(
        client: kube::Client,
        namespace: &str,
        lease: &str,
        replica: &str,
    ) -> (Self, Publisher) {
        let (events, publisher) = events::channel(client, Some(replica));
        let events = Self {
            events,
            replica: replica.to_owned(),
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

    pub(super) fn observe(&self, event: Event<'_>) {
        match event {
            Event::Acquired { term, reason } => {
                let text = format!(
                    "{} leads term {} (the Lease was {})",
                    self.replica,
                    term.transitions,
                    reason.map_or("free", AcquireReason::as_str)
                );
                self.publish(term, false, "LeaderElected", "Acquire", text);
            }
            Event::Ended { term, reason } => {
                let text = format!(
                    "{} no longer leads term {}: {}",
                    self.replica,
                    term.transitions,
                    reason.as_str()
                );
                let is_warning = reason != EndReason::HandedOver;
                self.publish(term, is_warning, "LeaderStopped", "Release", text);
            }
            _ => {}
        }
    }

    fn publish(
        &self,
        term: &Term,
        warning: bool,
        reason: &'static str,
        action: &'static str,
        text: String,
    ) {
        let lease = ObjectReference {
            uid: Some(term.lease_uid.clone()),
            ..self.lease.clone()
        };
        let note = Note {
            warning,
            reason,
            action: action.into(),
            text,
        };
        self.events.push(note, lease);
    }
}
