//! Decides which tasks a list request selects.
use super::{Refusal, fields};
use crate::{
    task::{Task, TaskPhase},
    violation::{Violations, clip},
};

/// A `TaskFilter` says which tasks a request selects: those that meet every filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// The phase of the task; None selects all phases.
    pub phase: Option<TaskPhase>,
    /// The repository of the task; None selects all repositories.
    pub repository: Option<String>,
    /// The earliest time of creation, in Unix seconds; None selects all times.
    pub since: Option<i64>,
}

impl TaskFilter {
    /// Reports whether the filter selects a task, which is in this phase now.
    pub fn selects(&self, task: &Task, phase: TaskPhase) -> bool {
        let Self {
            phase: wanted,
            repository,
            since,
        } = self;
        wanted.is_none_or(|wanted| wanted == phase)
            && repository
                .as_ref()
                .is_none_or(|r| *r == task.spec.repository)
            && since.is_none_or(|since| task.created >= since)
    }

    /// Parses the filters of a request; an empty one selects all.
    ///
    /// # Errors
    /// Returns [`Refusal::Invalid`] for a phase that is none, and for a time that is not RFC 3339.
    pub fn parse(phase: &str, repository: &str, since: &str) -> Result<Self, Refusal> {
        let mut found = Violations::default();
        let wanted = TaskPhase::parse(phase);
        if wanted.is_none() && !phase.is_empty() {
            let text = clip(phase);
            let must = "must be pending, running, succeeded, failed or cancelled";
            found.add("phase", format!("{must}, not {text:?}"));
        }
        fields::short(&mut found, "repository", repository);
        let time = since.parse::<jiff::Timestamp>().ok();
        if time.is_none() && !since.is_empty() {
            let text = clip(since);
            let must = "must be a time like 2026-01-31T12:00:00Z";
            found.add("since", format!("{must}, not {text:?}"));
        }
        let filter = Self {
            phase: wanted,
            repository: (!repository.is_empty()).then(|| repository.to_owned()),
            // A task that was created within the second is not older.
            since: time.map(jiff::Timestamp::as_second),
        };
        found.none_or(filter).map_err(Refusal::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_in_any_case_and_refused_by_name() {
        let filter = TaskFilter::parse("RUNNING", "r", "2026-01-31T12:00:00+01:00");
        let expected = TaskFilter {
            phase: Some(TaskPhase::Running),
            repository: Some("r".into()),
            since: Some(1_769_857_200),
        };
        assert_eq!(filter, Ok(expected));
        let Err(Refusal::Invalid(violations)) = TaskFilter::parse("done", "", "yesterday") else {
            unreachable!("both are wrong");
        };
        let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["phase", "since"]);
    }

    #[test]
    fn a_task_meets_every_filter() {
        let task = Task {
            created: 100,
            spec: crate::task::TaskSpec {
                repository: "r".into(),
                ..Default::default()
            },
            ..Task::default()
        };
        let of = |phase, repository: &str, since| TaskFilter {
            phase,
            repository: (!repository.is_empty()).then(|| repository.to_owned()),
            since,
        };
        let is = |filter: TaskFilter| filter.selects(&task, TaskPhase::Failed);
        assert!(is(TaskFilter::default()));
        assert!(is(of(Some(TaskPhase::Failed), "r", Some(100))));
        assert!(!is(of(Some(TaskPhase::Running), "r", Some(100))));
        assert!(!is(of(Some(TaskPhase::Failed), "q", Some(100))));
        assert!(!is(of(Some(TaskPhase::Failed), "r", Some(101))));
    }
}
