//! The failure matrix: what each reason means that Kubernetes 1.34 to 1.37 can give for the
//! state of a pod or of a container.
//!
//! `tests/reasons.txt` lists them, made from the sources of what writes them; a test fails
//! when that list and this matrix differ. A reason that is not here is infrastructure's.
use super::names::WORKER;

/// The volume for what a worker writes, whose size limit is the worker's own.
pub const WORKSPACE: &str = "workspace";

/// Stands before the reason of an init container. None of them is ours, so what ails one is
/// never the worker's own fault; one that failed is not tried again all the same, for it
/// fails alike in the next pod.
const INIT: &str = "Init:";

/// What a reason means for the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The worker's own end or fault: another attempt would go the same way.
    Own,
    /// Somebody or something else ended it.
    Interruption,
    /// A node refuses the pod, or the reason is not known: the next attempt may find another
    /// node.
    Infrastructure,
    /// It waits for what never comes.
    Hopeless,
    /// Its image cannot be pulled; the kubelet tries again, with a backoff.
    PullFails,
    /// Its container cannot be created; the kubelet tries again.
    CreateFails,
    /// It waits for what may come at any time.
    MayPass,
    /// It waits as each container does before it starts.
    Starting,
}

/// Every reason by its meaning; one that ends in `*` stands for all that begin so.
const MATRIX: &[(Meaning, &[&str])] = &[
    (
        Meaning::Own,
        &[
            "Completed",
            "ContainerCannotRun",
            "DeadlineExceeded",
            "Error",
            "OOMKilled",
            "StartError",
            "seccomp killed",
        ],
    ),
    (
        Meaning::Interruption,
        &[
            "ContainerStatusUnknown",
            "DeletionByDeviceTaintManager",
            "DeletionByPodGC",
            "DeletionByTaintManager",
            "Evicted",
            "EvictionByEvictionAPI",
            "NodeLost",
            "NodeShutdown",
            "Preempting",
            "PreemptionByScheduler",
            "Terminated",
            "TerminationByKubelet",
            "Unknown",
        ],
    ),
    (
        Meaning::Infrastructure,
        &[
            "AppArmor",
            "EmptyPodSharedPoolError",
            "Infeasible",
            "InvalidNodeInfo",
            "NodeAffinity",
            "NodeName",
            "NodePorts",
            "OutOf*",
            "PodFeatureUnsupported",
            "PodLevelResourcesNotSupported",
            "PodOSNotSupported",
            "PodOSSelectorNodeLabelDoesNotMatch",
            "SMTAlignmentError",
            "SupplementalGroupsPolicyNotSupported",
            "SysctlForbidden",
            "TaintToleration",
            "TopologyAffinityError",
            "UnexpectedAdmissionError",
            "UnexpectedPredicateFailureType",
            "UnknownReason",
            "VolumeAttachmentLimitExceeded",
        ],
    ),
    (
        Meaning::Hopeless,
        &["ErrImageNeverPull", "InvalidImageName"],
    ),
    (
        Meaning::PullFails,
        &[
            "ErrImagePull",
            "ImageInspectError",
            "ImagePullBackOff",
            "RegistryUnavailable",
            "SignatureValidationFailed",
        ],
    ),
    (
        Meaning::CreateFails,
        &[
            "CreateContainerConfigError",
            "CreateContainerError",
            "ImageVolumeMountFailed",
            "PreCreateHookError",
            "RROUnsupported",
        ],
    ),
    (
        Meaning::MayPass,
        &[
            "ConfigPodSandboxError",
            "CrashLoopBackOff",
            "CreatePodSandboxError",
            "KillContainerError",
            "KillPodSandboxError",
            "PostStartHookError",
            "PreStartHookError",
            "RemoveContainerError",
            "ResizePodInPlaceError",
            "RestartingAllContainers",
            "RunContainerError",
            "SchedulerError",
            "SchedulingGated",
            "Unschedulable",
        ],
    ),
    (Meaning::Starting, &["ContainerCreating", "PodInitializing"]),
];

/// Reasons of our own, and that of a container that ended without any.
const OURS: &[(Meaning, &[&str])] = &[
    (
        Meaning::Own,
        &["", "PendingTimeout", "Refused", "ScaledDown"],
    ),
    (Meaning::Interruption, &["Deleted", "Lost"]),
];

/// How the kubelet words an eviction for a limit that the pod itself has: of the pod, of a
/// container, of a volume. The two last name whose limit it was.
const POD_LIMIT: &str = "Pod ephemeral local storage usage exceeds the total limit of containers ";
const CONTAINER_LIMIT: (&str, &str) =
    ("Container ", " exceeded its local ephemeral storage limit ");
const VOLUME_LIMIT: (&str, &str) = ("Usage of EmptyDir volume \"", "\" exceeds the limit ");

/// What a reason means, with the message that came with it.
pub(crate) fn meaning(reason: &str, message: &str) -> Meaning {
    let reason = reason.strip_prefix(INIT).unwrap_or(reason);
    if reason == "Evicted" && is_of_own_limit(message) {
        return Meaning::Own;
    }
    let is = |known: &&str| {
        known
            .strip_suffix('*')
            .map_or(*known == reason, |prefix| reason.starts_with(prefix))
    };
    let mut rows = MATRIX.iter().chain(OURS);
    let row = rows.find(|(_, reasons)| reasons.iter().any(&is));
    row.map_or(Meaning::Infrastructure, |(meaning, _)| *meaning)
}

/// The worker itself outgrew what it was given; what others put into its pod is not it.
fn is_of_own_limit(message: &str) -> bool {
    let names = |(before, after): (&str, &str)| {
        let rest = message.strip_prefix(before)?;
        Some(&rest[..rest.find(after)?])
    };
    message.starts_with(POD_LIMIT)
        || names(CONTAINER_LIMIT) == Some(WORKER)
        || names(VOLUME_LIMIT) == Some(WORKSPACE)
}

/// The reason of an init container as a worker's.
pub(crate) fn of_init(reason: &str) -> String {
    format!("{INIT}{reason}")
}

/// A container waits as each does before it starts.
pub(crate) fn is_ordinary_waiting(reason: &str) -> bool {
    reason.is_empty() || meaning(reason, "") == Meaning::Starting
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const LIST: &str = include_str!("../../../tests/reasons.txt");

    /// The reasons of the list and what carries each.
    fn listed() -> impl Iterator<Item = (&'static str, &'static str)> {
        LIST.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let mut fields = line.split('\t');
                (
                    fields.next().unwrap_or_default(),
                    fields.next().unwrap_or_default(),
                )
            })
    }

    #[test]
    fn every_reason_that_kubernetes_can_give_is_in_the_matrix_and_no_other() {
        let listed: BTreeSet<&str> = listed()
            .filter(|(_, carrier)| *carrier != "own limit")
            .map(|(reason, _)| reason)
            .collect();
        let named: Vec<&str> = MATRIX.iter().flat_map(|(_, all)| *all).copied().collect();
        assert!(listed.len() > 60, "{}", listed.len());
        assert_eq!(named.iter().copied().collect::<BTreeSet<_>>(), listed);
        assert_eq!(named.len(), listed.len(), "one meaning each");
    }

    #[test]
    fn each_carrier_has_reasons_of_its_own_kinds() {
        for (reason, carrier) in listed() {
            let is_right = match carrier {
                "DisruptionTarget" => |m| m == Meaning::Interruption,
                "PodScheduled" => |m| m == Meaning::MayPass,
                "waiting" => |m| {
                    !matches!(
                        m,
                        Meaning::Own | Meaning::Infrastructure | Meaning::Interruption
                    )
                },
                "pod" => |m| {
                    matches!(
                        m,
                        Meaning::Own | Meaning::Infrastructure | Meaning::Interruption
                    )
                },
                _ => |_| true,
            };
            assert!(is_right(meaning(reason, "")), "{reason} of {carrier}");
        }
    }

    #[test]
    fn a_resource_that_ran_out_is_known_whatever_its_name() {
        for reason in [
            "OutOfcpu",
            "OutOfpods",
            "OutOfnvidia.com/gpu",
            "OutOfhugepages-2Mi",
        ] {
            assert_eq!(meaning(reason, ""), Meaning::Infrastructure);
        }
    }

    #[test]
    fn what_is_unknown_is_infrastructure_also_of_an_init_container() {
        for reason in ["SomethingNew", "Init:SomethingNew"] {
            assert_eq!(meaning(reason, ""), Meaning::Infrastructure);
        }
        assert_eq!(meaning("Init:Error", ""), Meaning::Own);
        assert_eq!(meaning("Init:ImagePullBackOff", ""), Meaning::PullFails);
    }

    /// As the kubelet words them in each version.
    #[test]
    fn an_eviction_for_a_limit_of_the_workers_own_is_its_own_fault() {
        let limits: Vec<&str> = listed()
            .filter(|(_, carrier)| *carrier == "own limit")
            .map(|(words, _)| words)
            .collect();
        assert_eq!(limits.len(), 3, "{limits:?}");
        for words in limits {
            let of = |name: &str| {
                let quoted = words.replacen("volume %q", &format!("volume {name:?}"), 1);
                let named = quoted.replacen("Container %s", &format!("Container {name}"), 1);
                named.replace("%q", "\"1Mi\"").replace("%s", "1Mi") + " "
            };
            let ours = if words.contains("volume") {
                WORKSPACE
            } else {
                WORKER
            };
            assert_eq!(meaning("Evicted", &of(ours)), Meaning::Own, "{}", of(ours));
            // Of what others put into the pod.
            if of(ours) != of("mesh") {
                assert_eq!(meaning("Evicted", &of("mesh")), Meaning::Interruption);
            }
        }
        let pressure = "The node was low on resource: ephemeral-storage. Threshold quantity: 1, available: 0. \
                        Container worker was using 2Mi, request is 0, has larger consumption of ephemeral-storage. ";
        assert_eq!(meaning("Evicted", pressure), Meaning::Interruption);
    }
}
