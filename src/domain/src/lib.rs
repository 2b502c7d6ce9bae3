//! What Ottoscaler decides, as pure functions and plain data: no client, no
//! runtime, no clock. Time comes in as an argument, and the dependencies of this
//! crate hold none of them.
pub mod concurrency;
pub mod conditions;
pub mod containers;
pub mod deleted_task;
pub mod events;
pub mod failure;
pub mod gates;
pub mod janitor;
pub mod ledger;
pub mod limits;
pub mod names;
pub mod plan;
pub mod pod;
pub mod quantity;
pub mod queue;
pub mod reasons;
pub mod refusal;
pub mod request;
pub mod retry;
pub mod stage;
pub mod task;
pub mod template;
pub mod transition;
pub mod unread;
pub mod urgency;
pub mod victims;
pub mod view;
