//! What the containers of a pod mean for its worker. This is the only place that
//! decides it; phase, exit code, reason, times, logs and deletions all follow from it.
//!
//! Admission webhooks and policies add containers to pods on their way: service meshes,
//! log shippers, secret injectors. What holds: only the container [`WORKER`] decides how
//! its worker fares. The worker ends when that container ends, whatever the pod's phase
//! says. An ordinary init container counts only when its failure ends the pod's start, or
//! while its image holds the start up. Restartable init containers (native sidecars),
//! other plain containers and ephemeral containers never count. An end that came before
//! the pod was evicted, disrupted or timed out is the worker's own end.
use super::{
    names::WORKER,
    reasons::{self, Meaning},
};

/// How the kubelet's text begins where it ends a pod and the runtime has no such container,
/// whether it ever had or not. Of one that had run it says so in other words.
const GONE_AT_TERMINATION: &str = "The container could not be located when the pod was terminated";

/// A phase of a pod's life, in Kubernetes' words. A [`Pod`](super::pod::Pod) holds its worker's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PodPhase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    /// The node does not answer.
    Unknown,
}

/// When the kubelet starts a container again that has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    #[default]
    Never,
}

impl RestartPolicy {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Always" => Some(Self::Always),
            "OnFailure" => Some(Self::OnFailure),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// A container as the pod's spec declares it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    /// Overrides the pod's policy.
    pub restart_policy: Option<RestartPolicy>,
    /// Rules that start the container again come before its policy.
    pub rules: Vec<RestartRule>,
}

/// The container, or the whole pod, is started again after these exit codes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestartRule {
    pub exit_codes: Vec<i32>,
    /// It applies to all exit codes but those.
    pub not_in: bool,
}

/// A container as the kubelet reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    pub restart_count: i32,
    /// The runtime has told of an image: it has created the container.
    pub was_created: bool,
    pub state: State,
    /// How the instance before the current one ended.
    pub last: Option<Terminated>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Waiting { reason: String, message: String },
    Running { started: Option<i64> },
    Terminated(Terminated),
}

impl Default for State {
    fn default() -> Self {
        Self::Waiting {
            reason: String::new(),
            message: String::new(),
        }
    }
}

/// The end of a container. Times are Unix seconds; a container that never ran has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terminated {
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub started: Option<i64>,
    pub finished: Option<i64>,
}

/// What a pod's spec and status say of its containers, and of what happened to the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The phase as the API server has it.
    pub phase: PodPhase,
    /// Why the pod as a whole is in that phase (Evicted, DeadlineExceeded …).
    pub reason: String,
    pub message: String,
    pub restart_policy: RestartPolicy,
    pub declared: Vec<Declared>,
    pub declared_init: Vec<Declared>,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    pub deleting: bool,
    /// When `activeDeadlineSeconds` are over, by the kubelet's clock.
    pub deadline: Option<i64>,
    /// Somebody ends the pod: it has the condition DisruptionTarget.
    pub disrupted: bool,
    /// Since when, where the kubelet itself does, by its clock.
    pub disrupted_since: Option<i64>,
}

/// What the containers mean for the worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// How the worker fares.
    pub phase: PodPhase,
    /// The worker has ended and the pod has not.
    pub others_run: bool,
    /// The worker ended before anything ended its pod.
    pub own_end: bool,
    pub reason: String,
    pub message: String,
    pub exit_code: Option<i32>,
    pub started: Option<i64>,
    pub finished: Option<i64>,
    /// The instance of the worker container that counts; the first is 0.
    pub restart_count: i32,
    /// The kubelet started the container again after the worker's end.
    pub reran: bool,
    /// The kubelet starts the worker container again when it fails.
    pub restarts: bool,
    /// The kubelet lost sight of the worker container: whether it ran is not known.
    pub lost_status: bool,
    /// The init container that failed and has run.
    pub failed_init: Option<Box<str>>,
}

impl Facts {
    /// What this pod's containers mean for its worker.
    pub fn read(&self) -> Reading {
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

    fn of_worker(&self, worker: Option<&Container>) -> Reading {
        let of_pod = || Reading {
            phase: self.phase,
            reason: self.reason.clone(),
            message: self.message.clone(),
            ..Reading::default()
        };
        let Some(worker) = worker else {
            let mut reading = of_pod();
            // The phase of a pod that runs is that of the containers that are told of.
            if self.phase == PodPhase::Running && !self.containers.is_empty() {
                reading.phase = PodPhase::Pending;
            }
            return reading;
        };
        let mut reading = Reading {
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
            State::Waiting { reason, message } => {
                if goes_on {
                    // One that has run waits to be started again.
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
            State::Running { started } => {
                if goes_on {
                    reading.phase = PodPhase::Running;
                }
                reading.started = *started;
            }
            // The kubelet starts it again.
            State::Terminated(end) => {
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

    /// The end of the worker container that is the worker's end, and whether the kubelet
    /// started the container again after it.
    fn end_of<'a>(&self, worker: &'a Container) -> Option<(&'a Terminated, bool)> {
        // A worker is done with what it did once, under whatever policy.
        let is_success = |end: &&Terminated| end.exit_code == 0 && !is_restart_of_all(end);
        match &worker.state {
            State::Terminated(end) => {
                let stays = self.pod_has_ended()
                    || is_success(&end)
                    || self.deleting
                    || !(is_restart_of_all(end)
                        || self.restarts(&self.declared, WORKER, end.exit_code));
                stays.then_some((end, false))
            }
            State::Running { .. } => {
                let last = worker.last.as_ref().filter(is_success)?;
                Some((last, worker.restart_count > 0))
            }
            State::Waiting { .. } => {
                let last = worker.last.as_ref();
                let last = last.filter(|end| is_success(end) || self.pod_has_ended())?;
                Some((last, false))
            }
        }
    }

    /// Whether the kubelet starts a container again after that exit code: what its own
    /// rules say, else its own policy, else the pod's.
    fn restarts(&self, declared: &[Declared], name: &str, exit_code: i32) -> bool {
        let container = declared.iter().find(|c| c.name == name);
        let own = container.and_then(|c| c.restart_policy);
        let has_rule = |c: &Declared| c.rules.iter().any(|rule| rule.applies(exit_code));
        match own.unwrap_or(self.restart_policy) {
            // A container without a policy of its own has no rules.
            _ if own.is_some() && container.is_some_and(has_rule) => true,
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }

    fn ended(&self, reading: &mut Reading, worker: &Container, end: &Terminated) {
        reading.times_of(end);
        // The kubelet says the same of a container that it had yet to create.
        let never_was = !worker.was_created && end.message.starts_with(GONE_AT_TERMINATION);
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
            // The kubelet's clock told both times.
            Some(since) => end.finished.is_some_and(|at| at < since),
            None => end.exit_code == 0,
        };
        if pod_failed && !reading.own_end {
            // Whatever the container made of the signal.
            reading.phase = PodPhase::Failed;
            return;
        }
        reading.phase = if end.exit_code == 0 {
            PodPhase::Succeeded
        } else {
            PodPhase::Failed
        };
        // The runtime's word for an exit code of 0.
        let reason = if end.reason == "Completed" {
            ""
        } else {
            &end.reason
        };
        reason.clone_into(&mut reading.reason);
        end.message.clone_into(&mut reading.message);
    }

    /// A worker that has not started: its init containers say what it waits for, or why it
    /// never will.
    fn init_containers(&self, reading: &mut Reading) {
        for container in &self.init_containers {
            let name = container.name.as_str();
            let declared = self.declared_init.iter().find(|c| c.name == name);
            let is_sidecar =
                declared.is_some_and(|c| c.restart_policy == Some(RestartPolicy::Always));
            match &container.state {
                State::Terminated(end) if end.exit_code != 0 && !is_sidecar => {
                    let goes_on = is_restart_of_all(end)
                        || self.restarts(&self.declared_init, name, end.exit_code);
                    if goes_on && !self.pod_has_ended() {
                        continue;
                    }
                    self.failed_init(reading, name, end);
                    return;
                }
                State::Waiting { reason, message }
                    if !reasons::is_ordinary_waiting(reason) && reading.reason.is_empty() =>
                {
                    reading.reason = reasons::of_init(reason);
                    reading.message = format!("init container {name}: {message}");
                    return;
                }
                _ => {}
            }
        }
    }

    fn failed_init(&self, reading: &mut Reading, name: &str, end: &Terminated) {
        // Why the pod ended says more than what its containers made of it.
        let by_pod = self.phase == PodPhase::Failed && !self.reason.is_empty();
        let of_worker = reading.exit_code.is_some()
            && reasons::meaning(&reading.reason, &reading.message) != Meaning::Interruption;
        if by_pod || of_worker {
            return;
        }
        reading.phase = PodPhase::Failed;
        reading.exit_code = Some(end.exit_code);
        reading.reason = reasons::of_init(&end.reason);
        reading.message = format!("init container {name}: {}", end.message);
        reading.finished = end.finished;
        reading.failed_init = end.started.is_some().then(|| name.into());
        reading.lost_status = false;
    }
}

/// The kubelet ended it to start all of the pod's containers again.
fn is_restart_of_all(end: &Terminated) -> bool {
    end.reason == "RestartingAllContainers"
}

impl RestartRule {
    fn applies(&self, exit_code: i32) -> bool {
        self.exit_codes.contains(&exit_code) != self.not_in
    }
}

impl Reading {
    fn times_of(&mut self, end: &Terminated) {
        self.exit_code = Some(end.exit_code);
        self.started = end.started;
        self.finished = end.finished;
    }

    /// What the pod as a whole says goes first.
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
