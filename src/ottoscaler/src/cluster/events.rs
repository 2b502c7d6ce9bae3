//! Kubernetes Events, published by a task of its own so that they never delay other work.
//!
//! Invariants:
//! - The queue is bounded. An Event that does not fit, or that the API server does not take
//!   in time, is dropped; the log holds the same fact.
//! - Each call has a deadline, and Events are published one at a time.
use std::{borrow::Cow, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::{sync::mpsc, time::timeout};

use super::Loggable;

/// The maximum number of Events in the queue. Events are for people; what comes faster than the API
/// server takes it is dropped.
const QUEUE_CAPACITY: usize = 64;
/// The number of Events after which the recorder is replaced. A recorder remembers each Event
/// for six minutes, to count repetitions, and searches all of them at each publication.
const EVENTS_PER_RECORDER: u32 = 256;
/// The deadline of one publication. An Event that takes longer is dropped, for others wait behind
/// it.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(3);

/// A `Note` is the content of an Event.
#[derive(Debug, Clone)]
pub struct Note {
    /// Whether the Event has the type `Warning`, for what an operator should look at.
    pub warning: bool,
    /// The reason, in one UpperCamelCase word.
    pub reason: &'static str,
    /// The action that was taken, in at most 128 characters. Events of an object with the same reason
    /// and action are counted in one.
    pub action: Cow<'static, str>,
    /// The text for people.
    pub text: String,
}

/// An `EventQueue` takes Events for the [`Publisher`].
#[derive(Debug, Clone)]
pub struct EventQueue(mpsc::Sender<(Note, ObjectReference)>);

/// A `Publisher` sends the queued Events to the API server.
pub struct Publisher {
    queue: mpsc::Receiver<(Note, ObjectReference)>,
    client: kube::Client,
    reporter: Reporter,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publisher")
    }
}

/// Creates a queue and its publisher; `replica` is the reporting instance of the Events.
pub fn channel(client: kube::Client, replica: Option<&str>) -> (EventQueue, Publisher) {
    let (sender, queue) = mpsc::channel(QUEUE_CAPACITY);
    let reporter = Reporter {
        controller: "ottoscaler".to_owned(),
        instance: replica.map(str::to_owned),
    };
    let publisher = Publisher {
        queue,
        client,
        reporter,
    };
    (EventQueue(sender), publisher)
}

impl EventQueue {
    /// Queues an Event about an object, or drops it if the queue is full.
    pub fn push(&self, note: Note, about: ObjectReference) {
        // The queue fills up while the API server cannot be reached.
        let _ = self.0.try_send((note, about));
    }
}

impl Publisher {
    /// Publishes Events until every [`EventQueue`] is dropped and the queue is empty.
    pub async fn run(&mut self) {
        let recorder = || Recorder::new(self.client.clone(), self.reporter.clone());
        let (mut current, mut published) = (recorder(), 0);
        while let Some((note, about)) = self.queue.recv().await {
            if published == EVENTS_PER_RECORDER {
                (current, published) = (recorder(), 0);
            }
            published += 1;
            let event = Event {
                type_: if note.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: note.reason.to_owned(),
                note: Some(note.text),
                action: note.action.into_owned(),
                secondary: None,
            };
            match timeout(PUBLISH_TIMEOUT, current.publish(&event, &about)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::info!(error = %Loggable(&error), "event not published");
                }
                Err(_) => tracing::info!("event not published in time"),
            }
        }
    }
}
