//! The client of otto-handler: streams of log entries, and notifications of workers' transitions.
mod client;
mod drained;
mod notify;

pub use client::HandlerClient;
pub(crate) use client::{Answered, Answers, loggable};
pub use drained::Drained;
pub use notify::{NoHandler, NotificationSink, Untold};
