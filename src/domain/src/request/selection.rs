//! Decides which workers a status request selects.
use super::{Refusal, fields};
use crate::{
    task::Task,
    view::{ClientState, WorkerView},
    violation::{Violations, clip},
};

/// A `Selection` says which workers a status request selects: those that meet every filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The id of the task; None selects all tasks.
    pub task_id: Option<String>,
    /// The name of the pod; None selects all pods.
    pub pod_name: Option<String>,
    /// The state of the worker; None selects all states.
    pub state: Option<ClientState>,
}

impl Selection {
    /// Reports whether the selection has a worker of a task. It compares task ids, because
    /// the name of a WorkerTask does not tell its id.
    pub fn selects(&self, task: &Task, worker: &WorkerView) -> bool {
        let Self {
            task_id,
            pod_name,
            state,
        } = self;
        task_id.as_ref().is_none_or(|id| *id == task.spec.task_id)
            && pod_name.as_ref().is_none_or(|n| *n == worker.pod_name)
            && state.is_none_or(|state| state == worker.state())
    }

    /// Parses the filters of a request; an empty one selects all.
    ///
    /// # Errors
    /// Returns [`Refusal::Invalid`] for a filter that names no state.
    pub fn parse(task_id: &str, pod_name: &str, status_filter: &str) -> Result<Self, Refusal> {
        let set = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut found = Violations::default();
        let state = ClientState::parse(status_filter);
        if state.is_none() && !status_filter.is_empty() {
            let text = clip(status_filter);
            found.add(
                "status_filter",
                format!("must be running, pending, succeeded or failed, not {text:?}"),
            );
        }
        fields::short(&mut found, "task_id", task_id);
        let selection = Self {
            task_id: set(task_id),
            pod_name: set(pod_name),
            state,
        };
        found.none_or(selection).map_err(Refusal::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_state_in_any_case() {
        assert!(Selection::parse("", "", "Running").is_ok());
        assert!(matches!(
            Selection::parse("", "", "done"),
            Err(Refusal::Invalid(_))
        ));
    }
}
