//! What Ottoscaler decides, as pure functions and plain data.
//!
//! The crate has no client, no runtime and no clock: objects and the time come in as
//! arguments, decisions go out as return values. Its dependencies hold none of the three
//! either, so that the compiler keeps this promise.
//!
//! A decision takes this way: [`request`] and [`template`] check what a client asks for, which
//! becomes the spec of a [`task`]; [`plan`] compares it with the [`pod`]s that exist and
//! returns the status to store, the pods to delete and the attempts that need a pod;
//! [`queue`] and [`gates`] decide when each attempt gets one; [`transition`] says what
//! otto-handler is notified of.
//!
//! | Module | What it decides or holds |
//! |---|---|
//! | [`request`] | Whether a ScaleUp, a ScaleDown or a selection of workers is legal, and what it changes. |
//! | [`violation`] | How a wrong field of a request is described. |
//! | [`template`] | What the pods of a task look like, within what the installer's policy allows. |
//! | [`names`] | The names, keys and labels of tasks and pods. |
//! | [`quantity`] | How amounts and durations are parsed. |
//! | [`task`] | The records of a task and its workers, and their stored form. |
//! | [`pod`] | The record of a worker's pod. |
//! | [`unread`] | The record of an object that cannot be decoded. |
//! | [`containers`] | The state of a worker, given the containers of its pod. |
//! | [`reasons`] | What each reason that Kubernetes gives means: the failure matrix. |
//! | [`failure`] | Whether and why a pod has failed, and at which deadline it will. |
//! | `retry` | Whether a failed attempt is retried, and after which backoff. |
//! | [`stage`] | The stages of a pod that have a deadline. |
//! | [`ledger`] | Since when this leader has seen pods and workers in such stages. |
//! | [`plan`] | The status, the deletions and the attempts that a task needs: the reconciler. |
//! | [`conditions`] | The conditions of a task, for people. |
//! | [`urgency`] | How soon a status must be stored. |
//! | [`events`] | The Kubernetes Events that follow from a stored status. |
//! | [`queue`] | Which waiting workers get the free places. |
//! | [`refusal`] | Who refused a write, and whether a retry can help. |
//! | [`gates`] | When refused creates are retried. |
//! | [`transition`] | Which transitions of a worker are notified, and in which order. |
//! | [`deleted_task`] | The last states of the workers of a task that is gone. |
//! | [`victims`] | Which workers a ScaleDown ends. |
//! | [`janitor`] | Which pods and finished tasks are garbage. |
//! | [`view`] | What clients see of a worker. |
#![deny(missing_docs)]
pub mod conditions;
pub mod containers;
pub mod deleted_task;
pub mod events;
pub mod failure;
pub mod gates;
pub mod janitor;
pub mod ledger;
mod limits;
pub mod names;
pub mod plan;
pub mod pod;
pub mod quantity;
pub mod queue;
pub mod reasons;
pub mod refusal;
pub mod request;
mod retry;
pub mod stage;
pub mod task;
pub mod template;
pub mod transition;
pub mod unread;
pub mod urgency;
pub mod victims;
pub mod view;
pub mod violation;
