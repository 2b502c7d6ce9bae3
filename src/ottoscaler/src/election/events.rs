//! Events on the Lease: each change of leader, for `kubectl describe lease`.
use k8s_openapi::api::core::v1::ObjectReference;

use crate::{
    cluster::events::{self, Note, Publisher},
    election::Term,
};

/// Where the contender puts changes.
pub(super) struct Events {
    events: events::EventQueue,
    replica: String,
    lease: ObjectReference,
}

pub(super) fn channel(
    client: kube::Client,
    namespace: &str,
    lease: &str,
    replica: &str,
) -> (Events, Publisher) {
    let (events, publisher) = events::channel(client, Some(replica));
    let events = Events {
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

impl Events {
    pub(super) fn acquired(&self, term: &Term, cause: &str) {
        let text = format!(
            "{} leads term {} (the Lease was {cause})",
            self.replica, term.transitions
        );
        self.tell(term, false, "LeaderElected", "Acquire", text);
    }

    pub(super) fn lost(&self, term: &Term, cause: &str, expected: bool) {
        let text = format!(
            "{} no longer leads term {}: {cause}",
            self.replica, term.transitions
        );
        self.tell(term, !expected, "LeaderStopped", "Release", text);
    }

    fn tell(
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
            action,
            text,
        };
        self.events.push(note, lease);
    }
}
