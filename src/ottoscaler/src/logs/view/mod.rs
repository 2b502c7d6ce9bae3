//! Shows the logs of a task's workers to people, on any replica.
mod viewer;

pub use viewer::LogViewer;
