//! Derives the state of a worker from the containers of its pod. This is the only place that
//! decides it; phase, exit code, reason, times, logs and deletions all follow from it.
//!
//! Admission webhooks and policies add containers to pods: service meshes, log shippers,
//! secret injectors.
//!
//! Invariants:
//! - Only the container [`WORKER`] decides the state of its worker. The worker ends when that
//!   container ends, whatever the pod's phase says.
//! - An ordinary init container counts only if its failure keeps the pod from starting, or
//!   while its image does.
//! - Restartable init containers (native sidecars), other plain containers and ephemeral
//!   containers never count.
//! - An end that came before the pod was evicted, disrupted or timed out is the worker's own
//!   end.
use super::{
    names::WORKER,
    reasons::{self, ReasonClass},
};

/// The beginning of the kubelet's message where it ends a pod and the runtime has no such
/// container, whether it ever had one or not. The message about a container that had run is
/// another one.
const GONE_AT_TERMINATION: &str = "The container could not be located when the pod was terminated";

/// A `PodPhase` is a phase of a pod's life, in the words of Kubernetes. A
/// [`Pod`](super::pod::Pod) holds that of its worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PodPhase {
    /// The container has not started.
    #[default]
    Pending,
    /// The container runs.
    Running,
    /// The container ended with exit code 0.
    Succeeded,
    /// The container or the pod failed.
    Failed,
    /// The node does not report.
    Unknown,
}

/// A `RestartPolicy` says when the kubelet restarts a container that has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// The container is always restarted.
    Always,
    /// The container is restarted after an exit code other than 0.
    OnFailure,
    /// The container is never restarted.
    #[default]
    Never,
}

impl RestartPolicy {
    /// Parses a policy as a pod's spec has it. Returns None for an unknown one.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Always" => Some(Self::Always),
            "OnFailure" => Some(Self::OnFailure),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// A `ContainerSpec` is a container as the pod's spec declares it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The name of the container.
    pub name: String,
    /// The policy of the container, which overrides that of the pod.
    pub restart_policy: Option<RestartPolicy>,
    /// The rules that restart the container. They come before its policy.
    pub rules: Vec<RestartRule>,
}

/// A `RestartRule` restarts the container, or the whole pod, after certain exit codes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestartRule {
    /// The exit codes that the rule names.
    pub exit_codes: Vec<i32>,
    /// Whether the rule applies to all exit codes but these.
    pub not_in: bool,
}

/// A `ContainerStatus` is a container as the kubelet reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerStatus {
    /// The name of the container.
    pub name: String,
    /// The number of restarts.
    pub restart_count: i32,
    /// Whether the runtime has created the container, as a reported image id shows.
    pub was_created: bool,
    /// The state of the current instance.
    pub state: ContainerState,
    /// The end of the instance before the current one.
    pub last: Option<Termination>,
}

/// A `ContainerState` is the state of an instance of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// The container has yet to start, or to start again.
    Waiting {
        /// The reason, in the kubelet's words; empty if it gives none.
        reason: String,
        /// The message for people.
        message: String,
    },
    /// The container runs.
    Running {
        /// The time of its start, in Unix seconds.
        started: Option<i64>,
    },
    /// The container has ended.
    Terminated(Termination),
}

impl Default for ContainerState {
    fn default() -> Self {
        Self::Waiting {
            reason: String::new(),
            message: String::new(),
        }
    }
}

/// A `Termination` is the end of an instance of a container. Times are Unix seconds; a
/// container that never ran has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Termination {
    /// The exit code of the container.
    pub exit_code: i32,
    /// The reason, in the words of the kubelet or the runtime (OOMKilled, Error …).
    pub reason: String,
    /// The message for people.
    pub message: String,
    /// The time of the start.
    pub started: Option<i64>,
    /// The time of the end.
    pub finished: Option<i64>,
}

/// A `PodFacts` holds what a pod's spec and status say of its containers, and of what
/// happened to the pod. Times are Unix seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// The phase of the pod as the API server has it.
    pub phase: PodPhase,
    /// The reason of the phase, if the pod as a whole has one (Evicted, DeadlineExceeded …);
    /// empty otherwise.
    pub reason: String,
    /// The message that came with the reason.
    pub message: String,
    /// The restart policy of the pod.
    pub restart_policy: RestartPolicy,
    /// The containers that the spec declares.
    pub declared: Vec<ContainerSpec>,
    /// The init containers that the spec declares.
    pub declared_init: Vec<ContainerSpec>,
    /// The containers that the status reports.
    pub containers: Vec<ContainerStatus>,
    /// The init containers that the status reports.
    pub init_containers: Vec<ContainerStatus>,
    /// Whether the pod is being deleted.
    pub deleting: bool,
    /// The time at which `activeDeadlineSeconds` are over, by the kubelet's clock.
    pub deadline: Option<i64>,
    /// Whether somebody ends the pod: it has the condition DisruptionTarget.
    pub disrupted: bool,
    /// The time since which the kubelet ends the pod, by its own clock. None if somebody
    /// else does.
    pub disrupted_since: Option<i64>,
}

/// A `WorkerState` is the state of a worker, as the containers of its pod show it. Times are
/// Unix seconds. [`super::pod::Pod`] has the same fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerState {
    /// The phase of the worker.
    pub phase: PodPhase,
    /// Whether the worker has ended while other containers of the pod still run.
    pub others_run: bool,
    /// Whether the worker ended before anything ended its pod.
    pub own_end: bool,
    /// The reason of the phase; empty if there is none.
    pub reason: String,
    /// The message that came with the reason.
    pub message: String,
    /// The exit code of the worker container.
    pub exit_code: Option<i32>,
    /// The time at which the worker container started.
    pub started: Option<i64>,
    /// The time at which the worker ended.
    pub finished: Option<i64>,
    /// The number of the worker container's instance that counts, from 0.
    pub restart_count: i32,
    /// Whether the kubelet restarted the container after the worker's end.
    pub reran: bool,
    /// Whether the kubelet restarts the worker container when it fails.
    pub restarts: bool,
    /// Whether the kubelet lost the status of the worker container, so that nobody knows
    /// whether it ran.
    pub lost_status: bool,
    /// The name of the init container that has run and failed, if one did.
    pub failed_init: Option<Box<str>>,
}

impl PodFacts {
    /// Derives the state of the worker.
    pub fn worker_state(&self) -> WorkerState {
        let worker = self.containers.iter().find(|c| c.name == WORKER);
        let mut reading = self.of_worker(worker);
        let goes_to_start = matches!(reading.phase, PodPhase::Pending | PodPhase::Unknown);
        if reading.started.is_none() && (goes_to_start || reading.phase == PodPhase::Failed) {
            self.init_containers(&mut reading);
        }
        let ended = |phase| matches!(phase, PodPhase::Succeeded | PodPhase::Failed);
        reading.others_run = ended(reading.phase) && !ended(self.phase);
        reading.restarts = !ended(reading.phase) && self.restarts(&self.declared, WORKER, 1);
        reading
    }

    fn of_worker(&self, worker: Option<&ContainerStatus>) -> WorkerState {
        let of_pod = || WorkerState {
            phase: self.phase,
            reason: self.reason.clone(),
            message: self.message.clone(),
            ..WorkerState::default()
        };
        let Some(worker) = worker else {
            let mut reading = of_pod();
            // The phase of a running pod is that of the containers that are reported.
            if self.phase == PodPhase::Running && !self.containers.is_empty() {
                reading.phase = PodPhase::Pending;
            }
            return reading;
        };
        let mut reading = WorkerState {
            restart_count: worker.restart_count,
            ..of_pod()
        };
        if let Some((end, reran)) = self.end_of(worker) {
            reading.reran = reran;
            reading.restart_count -= i32::from(reran);
            self.ended(&mut reading, worker, end);
            return reading;
        }
        let goes_on = !self.pod_has_ended();
        match &worker.state {
            ContainerState::Waiting { reason, message } => {
                if goes_on {
                    // A container that has run waits for its restart.
                    let has_run = worker.last.is_some() && self.phase == PodPhase::Running;
                    reading.phase = if has_run {
                        PodPhase::Running
                    } else {
                        PodPhase::Pending
                    };
                }
                if !reasons::is_ordinary_waiting(reason) {
                    reading.explain(reason, message);
                }
            }
            ContainerState::Running { started } => {
                if goes_on {
                    reading.phase = PodPhase::Running;
                }
                reading.started = *started;
            }
            // The kubelet restarts it.
            ContainerState::Terminated(end) => {
                reading.phase = PodPhase::Running;
                reading.times_of(end);
                reading.explain(&end.reason, &end.message);
            }
        }
        reading
    }

    fn pod_has_ended(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }

    /// Returns the end of the worker container that is the worker's end, if there is one,
    /// and whether the kubelet restarted the container after it.
    fn end_of<'a>(&self, worker: &'a ContainerStatus) -> Option<(&'a Termination, bool)> {
        // A worker that succeeded once is done, under whatever restart policy.
        let is_success = |end: &&Termination| end.exit_code == 0 && !is_restart_of_all(end);
        match &worker.state {
            ContainerState::Terminated(end) => {
                let stays = self.pod_has_ended()
                    || is_success(&end)
                    || self.deleting
                    || !(is_restart_of_all(end)
                        || self.restarts(&self.declared, WORKER, end.exit_code));
                stays.then_some((end, false))
            }
            ContainerState::Running { .. } => {
                let last = worker.last.as_ref().filter(is_success)?;
                Some((last, worker.restart_count > 0))
            }
            ContainerState::Waiting { .. } => {
                let last = worker.last.as_ref();
                let last = last.filter(|end| is_success(end) || self.pod_has_ended())?;
                Some((last, false))
            }
        }
    }

    /// Reports whether the kubelet restarts a container after that exit code. The
    /// container's own rules come first, then its own policy, then that of the pod.
    fn restarts(&self, declared: &[ContainerSpec], name: &str, exit_code: i32) -> bool {
        let container = declared.iter().find(|c| c.name == name);
        let own = container.and_then(|c| c.restart_policy);
        let has_rule = |c: &ContainerSpec| c.rules.iter().any(|rule| rule.applies(exit_code));
        match own.unwrap_or(self.restart_policy) {
            // The API server takes rules only beside a policy of the container's own.
            _ if own.is_some() && container.is_some_and(has_rule) => true,
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }

    /// Stores the end of the worker in `reading`.
    fn ended(&self, reading: &mut WorkerState, worker: &ContainerStatus, end: &Termination) {
        reading.times_of(end);
        // The kubelet reports the same of a container that it had yet to create, but then it
        // has no earlier state of it.
        let was_created = worker.was_created || worker.last.is_some();
        let never_was = !was_created && end.message.starts_with(GONE_AT_TERMINATION);
        reading.lost_status =
            end.started.is_none() && end.reason == "ContainerStatusUnknown" && !never_was;
        let pod_failed = self.phase == PodPhase::Failed && !self.reason.is_empty();
        let is_disturbed = pod_failed || self.disrupted;
        let since = match self.reason.as_str() {
            "DeadlineExceeded" => self.deadline,
            _ => self.disrupted_since,
        };
        reading.own_end = match since {
            _ if !is_disturbed => !self.deleting,
            // The kubelet's clock stamped both times.
            Some(since) => end.finished.is_some_and(|at| at < since),
            None => end.exit_code == 0,
        };
        if pod_failed && !reading.own_end {
            // The pod's reason holds, whatever the container made of the signal.
            reading.phase = PodPhase::Failed;
            return;
        }
        reading.phase = if end.exit_code == 0 {
            PodPhase::Succeeded
        } else {
            PodPhase::Failed
        };
        // "Completed" is the runtime's reason for an exit code of 0.
        let reason = if end.reason == "Completed" {
            ""
        } else {
            &end.reason
        };
        reason.clone_into(&mut reading.reason);
        end.message.clone_into(&mut reading.message);
    }

    /// Stores what the init containers say of a worker that has not started: what it waits
    /// for, or why it will never start.
    fn init_containers(&self, reading: &mut WorkerState) {
        for container in &self.init_containers {
            let name = container.name.as_str();
            let declared = self.declared_init.iter().find(|c| c.name == name);
            let is_sidecar =
                declared.is_some_and(|c| c.restart_policy == Some(RestartPolicy::Always));
            match &container.state {
                ContainerState::Terminated(end) if end.exit_code != 0 && !is_sidecar => {
                    let goes_on = is_restart_of_all(end)
                        || self.restarts(&self.declared_init, name, end.exit_code);
                    if goes_on && !self.pod_has_ended() {
                        continue;
                    }
                    self.failed_init(reading, name, end);
                    return;
                }
                ContainerState::Waiting { reason, message }
                    if !reasons::is_ordinary_waiting(reason) && reading.reason.is_empty() =>
                {
                    reading.reason = reasons::init_reason(reason);
                    reading.message = format!("init container {name}: {message}");
                    return;
                }
                _ => {}
            }
        }
    }

    fn failed_init(&self, reading: &mut WorkerState, name: &str, end: &Termination) {
        // The reason of the pod's end says more than what its containers made of it.
        let by_pod = self.phase == PodPhase::Failed && !self.reason.is_empty();
        let of_worker = reading.exit_code.is_some()
            && reasons::classify(&reading.reason, &reading.message) != ReasonClass::Interruption;
        if by_pod || of_worker {
            return;
        }
        reading.phase = PodPhase::Failed;
        reading.exit_code = Some(end.exit_code);
        reading.reason = reasons::init_reason(&end.reason);
        reading.message = format!("init container {name}: {}", end.message);
        reading.finished = end.finished;
        reading.failed_init = end.started.is_some().then(|| name.into());
        reading.lost_status = false;
    }
}

/// Reports whether the kubelet ended the container to restart all containers of the pod.
fn is_restart_of_all(end: &Termination) -> bool {
    end.reason == "RestartingAllContainers"
}

impl RestartRule {
    /// Reports whether the rule applies to an exit code.
    fn applies(&self, exit_code: i32) -> bool {
        self.exit_codes.contains(&exit_code) != self.not_in
    }
}

impl WorkerState {
    fn times_of(&mut self, end: &Termination) {
        self.exit_code = Some(end.exit_code);
        self.started = end.started;
        self.finished = end.finished;
    }

    /// Sets the reason and the message, unless the pod as a whole has given a reason.
    fn explain(&mut self, reason: &str, message: &str) {
        if self.reason.is_empty() {
            reason.clone_into(&mut self.reason);
            if self.message.is_empty() {
                message.clone_into(&mut self.message);
            }
        }
    }
}

#[cfg(test)]
#[path = "containers_tests.rs"]
mod tests;
