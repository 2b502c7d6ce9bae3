//! The handler of ListTasks: a page of the tasks in this replica's index, newest first.
use std::{cmp::Reverse, sync::Arc};

use tonic::{Request, Response, Status};

use super::{ReplicaService, convert, errors, page_token, reads::Staleness};
use crate::{
    domain::{conditions, request::TaskFilter, task::TaskPhase},
    index::{TaskView, rfc3339_or_empty},
    proto::{ListTasksRequest, ListTasksResponse, TaskSummary},
};

/// The tasks of a page whose client says nothing: more than a person reads.
const DEFAULT_PAGE_SIZE: usize = 200;
/// The largest number of tasks of a page: at 2 KiB each they stay below the 4 MiB that gRPC
/// clients accept.
const MAX_PAGE_SIZE: usize = 1_000;

/// The place of a task in the order of all tasks, which no change of a task alters.
type Position = (Reverse<i64>, Arc<str>);

fn token(filters: [&str; 3], (Reverse(created), name): &Position) -> String {
    page_token::encode(&filters, &format!("{created}/{name}"))
}

fn parse_token(filters: [&str; 3], token: &str) -> Option<Position> {
    let text = page_token::decode(&filters, token)?;
    let (created, name) = text.split_once('/')?;
    Some((Reverse(created.parse().ok()?), Arc::from(name)))
}

pub(super) fn parse_filter(request: &ListTasksRequest) -> Result<TaskFilter, Status> {
    TaskFilter::parse(&request.phase, &request.repository, &request.since)
        .map_err(errors::from_refusal)
}

impl ReplicaService {
    pub(super) fn tasks(
        &self,
        request: &Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let request = request.get_ref();
        let filter = parse_filter(request)?;
        let filters = [&*request.phase, &request.repository, &request.since];
        let parse = |token: &str| parse_token(filters, token);
        let after = page_token::position(&request.page_token, parse)?;
        let size = page_token::size(request.page_size)?;
        let size = size.unwrap_or(DEFAULT_PAGE_SIZE).min(MAX_PAGE_SIZE);
        let index = self.index.synced()?;
        let names = index.task_names().into_iter();
        let mut selected: Vec<(Position, Arc<TaskView>)> = names
            .filter_map(|name| {
                let view = index.view(&name)?;
                let is_selected = filter.selects(&view.task, view.phase);
                is_selected.then(|| ((Reverse(view.task.created), name), view))
            })
            .collect();
        selected.sort_by(|(a, _), (b, _)| a.cmp(b));
        let start = after.map_or(0, |after| selected.partition_point(|(at, _)| *at <= after));
        let page = &selected[start..(start + size).min(selected.len())];
        let last = page.last().filter(|_| start + size < selected.len());
        let staleness = Staleness::of(index);
        let mut response = Response::new(ListTasksResponse {
            tasks: page.iter().map(|(_, view)| summary(view)).collect(),
            total_count: convert::count(selected.len()),
            next_page_token: last.map(|(at, _)| token(filters, at)).unwrap_or_default(),
            stale: staleness.is_stale(),
        });
        staleness.insert_into(response.metadata_mut());
        Ok(response)
    }
}

/// Returns what clients are told of a task.
pub(super) fn summary(view: &TaskView) -> TaskSummary {
    let TaskView {
        task,
        phase,
        counts,
        ..
    } = view;
    let message = conditions::wait_message(&task.status.conditions);
    TaskSummary {
        task_id: task.spec.task_id.clone(),
        repository: task.spec.repository.clone(),
        commit_sha: task.spec.commit_sha.clone(),
        triggered_by: task.spec.triggered_by.clone(),
        phase: match phase {
            // A newer version looks after it.
            TaskPhase::Unknown => TaskPhase::Running,
            phase => *phase,
        }
        .as_str()
        .to_owned(),
        created_at: rfc3339_or_empty(Some(task.created)),
        finished_at: rfc3339_or_empty(task.status.finished_at),
        worker_count: convert::count(task.spec.workers),
        pending_count: convert::count(counts.pending),
        running_count: convert::count(counts.running),
        succeeded_count: convert::count(counts.succeeded),
        failed_count: convert::count(counts.failed),
        // What is stored may lag behind the pods.
        message: message
            .filter(|_| counts.pending > 0)
            .unwrap_or_default()
            .to_owned(),
    }
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
