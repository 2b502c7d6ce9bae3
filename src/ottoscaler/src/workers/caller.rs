//! Records on a task who changed what is wanted of it.
//!
//! The caller stands in an annotation, which a replica of any version leaves as it is, and in an
//! Event. `triggeredBy` beside it is what the client says of itself.
use std::collections::BTreeMap;

use super::shared::Shared;
use crate::{
    cluster::{CALLER, events::Note},
    domain::task::Task,
};

/// The longest action of an Event that the API server takes, in characters.
const MAX_ACTION: usize = 128;

/// Returns the annotations that record a caller.
pub(super) fn annotations(caller: Option<&str>) -> BTreeMap<String, String> {
    let caller = caller.map(|caller| (CALLER.to_owned(), caller.to_owned()));
    caller.into_iter().collect()
}

/// Tells in an Event who changed a task. The caller is part of the action too, because Events that
/// differ in their text alone become one.
pub(super) fn tell(shared: &Shared, task: &Task, method: &str, caller: Option<&str>) {
    if let Some(caller) = caller {
        let action = format!("{method} by {caller}");
        let note = Note {
            warning: false,
            reason: "WantedChanged",
            action: action.chars().take(MAX_ACTION).collect::<String>().into(),
            text: format!("{caller} changed how many workers are wanted, by {method}"),
        };
        shared.tell(task, note);
    }
}
