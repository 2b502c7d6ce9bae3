//! Classifies the API server's refusals of writes: who refused, and whether a retry can help.
//!
//! The texts are those of Kubernetes 1.34 to 1.37 (`plugin/pkg/admission`, the admission
//! plugins of `k8s.io/apiserver`, `k8s.io/pod-security-admission`).
//!
//! Invariants:
//! - A text is judged by its beginning, after the object that it names, so that a text in the
//!   middle of it cannot pass for the refusal of somebody else.
//! - A refusal that is not understood is retried for a while.
//! - A quota never fails a worker.
use super::quantity::Quantity;

/// An `Answer` is the API server's answer to a write that it refused (a `Status` object).
#[derive(Debug, Clone, Copy, Default)]
pub struct Answer<'a> {
    /// The HTTP status code.
    pub code: u16,
    /// The reason of the status, as one word.
    pub reason: &'a str,
    /// The message of the status.
    pub message: &'a str,
    /// The types of the causes that the status lists.
    pub causes: &'a [&'a str],
    /// Whether Ottoscaler's own fencing policy refused the write.
    pub is_fenced: bool,
}

/// A `By` says who or what refused a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// Ottoscaler's own fencing policy: another term leads, or the API server has yet to see
    /// this one.
    Fence,
    /// The API server is overloaded, or failed itself.
    Server,
    /// No answer came in time, though the API server answers others.
    Silence,
    /// Another write changed the object first. The retry is based on the newer object.
    Conflict,
    /// A ResourceQuota has no room.
    Quota,
    /// A LimitRange does not allow the amounts.
    LimitRange,
    /// Pod Security admission does not allow the pod.
    PodSecurity,
    /// A ValidatingAdmissionPolicy denied the write.
    Policy,
    /// An admission webhook denied the write.
    Webhook,
    /// A webhook or a policy could not be evaluated.
    Judge,
    /// RBAC does not allow Ottoscaler to write the object.
    Rbac,
    /// The namespace is being deleted or does not exist.
    Namespace,
    /// An admission plugin has yet to start.
    Startup,
    /// The pod names an object that does not exist.
    Missing,
    /// Another pod, which is not a worker of this task, has the name.
    OtherPod,
    /// The API server does not accept the object as it is.
    Invalid,
    /// The refusal is not understood.
    Unknown,
}

/// A `Verdict` says what a refusal means for the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The create is retried, however long that takes: it is not the worker's fault.
    Waits,
    /// The create is retried, and the worker fails if the refusals go on for REFUSED_TIMEOUT.
    Repeats,
    /// The worker fails: a retry would be refused as well.
    Final,
}

/// A `Scope` says which other creates would be refused as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All creates.
    All,
    /// The creates of pods that ask for the same amounts.
    Shape,
    /// The creates of the same task.
    Task,
    /// No other create.
    Attempt,
}

/// A `Refusal` is a classified refusal of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Who or what refused.
    pub by: By,
    /// What the refusal means for the worker.
    pub verdict: Verdict,
    /// The text for people, in the words of whoever refused. It does not name the pod, so
    /// that it is the same for all workers of a task.
    pub text: String,
}

impl Refusal {
    /// Creates a refusal from its parts.
    pub fn new(by: By, verdict: Verdict, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { by, verdict, text }
    }

    /// Creates the refusal of a create because another pod has the name.
    pub fn other_pod(name: &str, is_deleting: bool) -> Self {
        if is_deleting {
            let text = format!("pod {name} is being deleted");
            return Self::new(By::OtherPod, Verdict::Waits, text);
        }
        let text = format!("pod {name} exists and is not ours; delete it or use another task id");
        Self::new(By::OtherPod, Verdict::Repeats, text)
    }

    /// Returns which other creates would be refused as well.
    pub fn scope(&self) -> Scope {
        match self.by {
            By::Fence | By::Rbac | By::Namespace | By::Startup => Scope::All,
            By::Quota => Scope::Shape,
            By::Server | By::Silence | By::Conflict | By::OtherPod => Scope::Attempt,
            By::LimitRange
            | By::PodSecurity
            | By::Policy
            | By::Webhook
            | By::Judge
            | By::Missing
            | By::Invalid
            | By::Unknown => Scope::Task,
        }
    }

    /// Returns what a quota counted of this pod, by resource name, if its text says so. An
    /// amount is None if it is not a quantity.
    pub fn requested(&self) -> Vec<(&str, Option<Quantity>)> {
        let amounts = self.by == By::Quota;
        let amounts = amounts.then(|| list(&self.text, "requested: ")).flatten();
        amounts.unwrap_or_default()
    }

    /// Returns what workers wait for because of this refusal, as the rest of a sentence that
    /// begins with their number.
    pub fn waits_for(&self) -> String {
        let text = &self.text;
        match self.by {
            By::Quota if is_unmeetable(text) => format!(
                "ask for more than the quota has in all ({text}); raise the quota or ask for less"
            ),
            By::Quota if text.starts_with("failed quota") => {
                format!("wait for a quota that takes them ({text})")
            }
            By::Quota => format!("wait for room in the quota ({text})"),
            By::Server | By::Conflict | By::Fence => format!("wait for the API server ({text})"),
            By::OtherPod if self.verdict == Verdict::Waits => {
                format!("wait for their name: {text}")
            }
            By::OtherPod => format!("find their name taken: {text}"),
            _ => format!("are refused and tried again: {text}"),
        }
    }
}

/// Reports whether a pod asks for more than a quota's limit by itself.
fn is_unmeetable(text: &str) -> bool {
    let (Some(requested), Some(limited)) = (list(text, "requested: "), list(text, "limited: "))
    else {
        return false;
    };
    requested.iter().any(|(name, asked)| {
        let limit = limited.iter().find(|(limited, _)| limited == name);
        // A limit of nothing is no quantity to the parser.
        limit.is_some_and(|(_, limit)| asked > limit)
    })
}

/// Parses the amounts `name=quantity,…` after a word of a quota's refusal.
fn list<'a>(text: &'a str, after: &str) -> Option<Vec<(&'a str, Option<Quantity>)>> {
    let (_, rest) = text.split_once(after)?;
    let rest = rest.split_once(", ").map_or(rest, |(amounts, _)| amounts);
    rest.split(',')
        .map(|pair| {
            let (name, amount) = pair.split_once('=')?;
            Some((name, Quantity::parse(amount)))
        })
        .collect()
}

/// Classifies a refusal.
pub fn judge(answer: Answer<'_>) -> Refusal {
    let said = said(answer.message);
    let (by, verdict) = match () {
        () if answer.is_fenced => (By::Fence, Verdict::Waits),
        () => by_text(said, answer)
            .or_else(|| by_code(answer))
            .unwrap_or((By::Unknown, Verdict::Repeats)),
    };
    Refusal::new(by, verdict, told(by, said, answer))
}

/// Returns the text after the object that it names, as in `pods "p" is forbidden: `.
fn said(message: &str) -> &str {
    let inner = message.strip_prefix("Internal error occurred: ");
    let message = inner.unwrap_or(message);
    match message.split_once(" is forbidden: ") {
        // A resource, and a name in quotes, neither of which has a space.
        Some((object, said)) if object.matches(' ').count() <= 1 => said,
        _ => message,
    }
}

fn by_text(said: &str, answer: Answer<'_>) -> Option<(By, Verdict)> {
    use Verdict::{Final, Repeats, Waits};
    let begins = |texts: &[&str]| texts.iter().any(|text| said.starts_with(text));
    if answer.causes.contains(&"NamespaceTerminating")
        || begins(&["unable to create new content in namespace "])
        || (begins(&["namespaces \""]) && answer.code == 404)
    {
        return Some((By::Namespace, Repeats));
    }
    if let Some(rest) = said.strip_prefix("admission webhook ") {
        let (_, denied) = rest.split_once(" denied the request").unwrap_or(("", rest));
        let fails = answer.code == 429 || answer.code >= 500 || says_that_it_passes(denied);
        return Some(if fails {
            (By::Judge, Repeats)
        } else {
            (By::Webhook, Final)
        });
    }
    if begins(&["ValidatingAdmissionPolicy '", "policy '"]) {
        let (_, denied) = said.split_once("denied request: ").unwrap_or(("", said));
        let could_not_judge = denied.starts_with("failed to configure ")
            || denied.starts_with("expression '") && denied.contains("' resulted in error: ")
            || begins(&["policy '"]);
        return Some(if could_not_judge {
            (By::Judge, Repeats)
        } else {
            (By::Policy, Final)
        });
    }
    let quota = [
        "exceeded quota: ",
        "status unknown for quota: ",
        "failed quota: ",
        "insufficient quota to ",
    ];
    let missing = [
        "error looking up service account ",
        "no service account specified for pod ",
        "no PriorityClass with name ",
        "pod rejected: RuntimeClass ",
    ];
    let by_image_policy = [
        "image policy webhook backend denied one or more images",
        "one or more images rejected by webhook backend",
    ];
    let found = match () {
        () if begins(&["failed calling webhook "]) => (By::Judge, Repeats),
        () if begins(&quota) => (By::Quota, Waits),
        () if begins(&["violates PodSecurity ", "Not allowed by PodSecurity"]) => {
            (By::PodSecurity, Final)
        }
        () if is_limit_range(said) => (By::LimitRange, Final),
        () if begins(&["User \""]) && said.contains(" cannot ") => (By::Rbac, Repeats),
        () if begins(&["not yet ready to handle request"]) => (By::Startup, Repeats),
        () if begins(&missing) => (By::Missing, Repeats),
        () if begins(&by_image_policy) => (By::Webhook, Final),
        () => return None,
    };
    Some(found)
}

/// `minimum cpu usage per Container is …`, `[maximum …, cpu max limit to request ratio …]`.
fn is_limit_range(said: &str) -> bool {
    let said = said.trim_start_matches('[');
    let (first, rest) = said.split_once(' ').unwrap_or((said, ""));
    match first {
        "minimum" | "maximum" => rest.contains(" usage per "),
        _ => rest.starts_with("max limit to request ratio per "),
    }
}

/// Reports whether a webhook's text says that it could not decide at that moment.
fn says_that_it_passes(denied: &str) -> bool {
    const PASSES: [&str; 7] = [
        "not yet ready",
        "not ready",
        "try again",
        "timed out",
        "deadline exceeded",
        "connection refused",
        "unavailable",
    ];
    let denied = denied.to_ascii_lowercase();
    PASSES.iter().any(|text| denied.contains(text))
}

fn by_code(answer: Answer<'_>) -> Option<(By, Verdict)> {
    match answer.code {
        // Ottoscaler's own credentials are not accepted, which an operator mends like RBAC.
        401 => Some((By::Rbac, Verdict::Repeats)),
        400 | 405 | 406 | 413 | 415 | 422 => Some((By::Invalid, Verdict::Final)),
        409 => Some((By::Conflict, Verdict::Waits)),
        408 | 429 | 500..=599 => Some((By::Server, Verdict::Waits)),
        _ => None,
    }
}

/// Returns the text for people: who refused, the message, and what helps.
fn told(by: By, said: &str, answer: Answer<'_>) -> String {
    let said = clip(said);
    let who = match by {
        By::LimitRange => "LimitRange: ",
        By::Rbac => "RBAC: ",
        By::Missing | By::Startup | By::Invalid | By::Unknown => "the API server: ",
        // The texts of the others name who refused.
        _ => "",
    };
    let helps = match by {
        By::LimitRange => settings(said),
        _ => None,
    };
    if said.is_empty() {
        return format!("{who}{} {}", answer.code, answer.reason);
    }
    format!("{who}{said}{}", helps.unwrap_or_default())
}

/// Names the settings of the amounts that a LimitRange does not allow.
fn settings(said: &str) -> Option<String> {
    let of = |(word, name): &(&str, &str)| {
        let said_of = said.contains(&format!("{word} usage per"))
            || said.contains(&format!("{word} max limit to request ratio"));
        said_of.then(|| {
            format!("WORKER_{name}_REQUEST and WORKER_{name}_LIMIT, or OTTO_{name}_REQUEST and OTTO_{name}_LIMIT")
        })
    };
    let resources = [("cpu", "CPU"), ("memory", "MEMORY")];
    let found: Vec<String> = resources.iter().filter_map(of).collect();
    (!found.is_empty()).then(|| format!(" (set by {})", found.join(", ")))
}

/// Cuts a text to 512 bytes.
fn clip(text: &str) -> &str {
    let mut end = text.len().min(512);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
#[path = "refusal_tests.rs"]
mod tests;
