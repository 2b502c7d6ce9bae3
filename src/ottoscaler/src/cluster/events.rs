//! Kubernetes Events: told beside the work, never in its way. What does not fit or
//! is not answered in time is dropped; the log has it.
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::{sync::mpsc, time::timeout};

use super::Loggable;

/// Events that wait to be told.
const WAITING: usize = 64;
/// After so many the recorder is a new one: it keeps each for six minutes, to count those that
/// are told twice, and goes through all of them whenever it tells one.
const REMEMBERED: u32 = 256;
const PUBLISH_WITHIN: Duration = Duration::from_secs(3);

/// What happened.
#[derive(Debug, Clone)]
pub struct Note {
    /// Somebody should look at it.
    pub warning: bool,
    /// Why, in one word (UpperCamelCase).
    pub reason: &'static str,
    /// What was done, in one word.
    pub action: &'static str,
    /// For people.
    pub text: String,
}

/// Where events are put.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<(Note, ObjectReference)>);

/// Publishes them.
pub struct Publisher {
    waiting: mpsc::Receiver<(Note, ObjectReference)>,
    client: kube::Client,
    reporter: Reporter,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publisher")
    }
}

/// `replica` is who tells.
pub fn channel(client: kube::Client, replica: Option<&str>) -> (Events, Publisher) {
    let (send, waiting) = mpsc::channel(WAITING);
    let reporter = Reporter {
        controller: "ottoscaler".to_owned(),
        instance: replica.map(str::to_owned),
    };
    let publisher = Publisher {
        waiting,
        client,
        reporter,
    };
    (Events(send), publisher)
}

impl Events {
    pub fn tell(&self, note: Note, about: ObjectReference) {
        // Full: the API server is away.
        let _ = self.0.try_send((note, about));
    }
}

impl Publisher {
    /// Runs until the [`Events`] are gone and told.
    pub async fn run(&mut self) {
        let recorder = || Recorder::new(self.client.clone(), self.reporter.clone());
        let (mut current, mut told) = (recorder(), 0);
        while let Some((note, about)) = self.waiting.recv().await {
            if told == REMEMBERED {
                (current, told) = (recorder(), 0);
            }
            told += 1;
            let event = Event {
                type_: if note.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: note.reason.to_owned(),
                note: Some(note.text),
                action: note.action.to_owned(),
                secondary: None,
            };
            match timeout(PUBLISH_WITHIN, current.publish(&event, &about)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::info!(error = %Loggable(&error), "event not published");
                }
                Err(_) => tracing::info!("event not published in time"),
            }
        }
    }
}
