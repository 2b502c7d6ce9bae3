//! What the API server's answer to a write means: who refused it, and whether it passes.
//!
//! The texts are those of Kubernetes 1.34 to 1.37 (`plugin/pkg/admission`, the admission
//! plugins of `k8s.io/apiserver`, `k8s.io/pod-security-admission`). What holds: a text is
//! judged by how it begins, after the object that it names, so that nobody's words in the
//! middle of it can stand for somebody else's refusal; a refusal that is not understood is
//! tried again for a while, and a quota never fails a worker.
use super::quantity::Quantity;

/// A refusal as the API server words it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answer<'a> {
    pub code: u16,
    pub reason: &'a str,
    pub message: &'a str,
    /// The types of its causes.
    pub causes: &'a [&'a str],
    /// Our own fence refused.
    pub is_fenced: bool,
}

/// Who or what refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// Our own policy: another term leads, or the API server has yet to see this one.
    Fence,
    /// The API server has too much to do, or failed itself.
    Server,
    /// No answer came in time, though the API server answers others.
    Silence,
    /// Two writes met; the next try is decided on the newer object.
    Conflict,
    Quota,
    LimitRange,
    PodSecurity,
    Policy,
    Webhook,
    /// A webhook or a policy could not be asked.
    Judge,
    Rbac,
    Namespace,
    /// An admission plugin has yet to start.
    Startup,
    /// Something that the pod names, and that does not exist.
    Missing,
    /// A pod of this name that is not ours.
    OtherPod,
    /// The API server takes no such object.
    Invalid,
    Unknown,
}

/// What a refusal means for the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is tried again, however long that takes: it is not the worker's fault.
    Waits,
    /// It is tried again, and fails the worker if it repeats for REFUSED_TIMEOUT.
    Repeats,
    /// The next try would be refused as well.
    Final,
}

/// Which other creates would be refused as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    All,
    /// Those that ask for the same amounts.
    Shape,
    Task,
    Attempt,
}

/// A refusal, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub by: By,
    pub verdict: Verdict,
    /// For people, in the words of whoever refused; without the name of the pod, so that
    /// it is the same for all workers of a task.
    pub text: String,
}

impl Refusal {
    pub fn new(by: By, verdict: Verdict, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { by, verdict, text }
    }

    /// A pod has the name of ours and is not ours.
    pub fn other_pod(name: &str, is_deleting: bool) -> Self {
        if is_deleting {
            let text = format!("pod {name} is being deleted");
            return Self::new(By::OtherPod, Verdict::Waits, text);
        }
        let text = format!("pod {name} exists and is not ours; delete it or use another task id");
        Self::new(By::OtherPod, Verdict::Repeats, text)
    }

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

    /// What a quota counted of this pod, where it says so.
    pub fn requested(&self) -> Vec<(&str, Option<Quantity>)> {
        let amounts = self.by == By::Quota;
        let amounts = amounts.then(|| list(&self.text, "requested: ")).flatten();
        amounts.unwrap_or_default()
    }

    /// What waits does so for this, in a sentence that begins with the number of workers.
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

/// Whether a pod asks for more than a quota's limit all by itself.
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

/// The amounts `name=quantity,…` after a word of a quota's refusal.
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

/// Judges a refusal.
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

/// What is said of an object: the text after `pods "p" is forbidden: `.
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

/// Whoever denies may say that it could not judge just then.
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
        // Our own credentials; who they are is RBAC's business next.
        401 => Some((By::Rbac, Verdict::Repeats)),
        400 | 405 | 406 | 413 | 415 | 422 => Some((By::Invalid, Verdict::Final)),
        409 => Some((By::Conflict, Verdict::Waits)),
        408 | 429 | 500..=599 => Some((By::Server, Verdict::Waits)),
        _ => None,
    }
}

/// The text for people: who refused, what was said, and what helps.
fn told(by: By, said: &str, answer: Answer<'_>) -> String {
    let said = clip(said);
    let who = match by {
        By::LimitRange => "LimitRange: ",
        By::Rbac => "RBAC: ",
        By::Missing | By::Startup | By::Invalid | By::Unknown => "the API server: ",
        // Their texts name them.
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

/// What sets the amounts that a LimitRange takes offence at.
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

/// A stored task keeps 64 different messages at most.
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
