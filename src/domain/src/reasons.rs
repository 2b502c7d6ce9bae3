//! The failure matrix says what each reason means that Kubernetes 1.34 to 1.37 can give for
//! the state of a pod or of a container.
//!
//! `tests/reasons.txt` lists these reasons. It is generated from the sources of the
//! components that write them, and a test fails if that list and this matrix differ. A reason
//! that is not here counts as one of the infrastructure.
use super::names::WORKER;

/// The name of the volume that a worker writes to. Its size limit is one of the worker.
pub const WORKSPACE: &str = "workspace";

/// The prefix of the reason of an init container. None of them is ours, so their trouble is
/// never the worker's own fault. A failed one is not retried all the same, because it fails
/// alike in the next pod.
const INIT: &str = "Init:";

/// A `ReasonClass` says what a reason means for the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReasonClass {
    /// The end is the worker's own: another attempt would end the same way.
    Own,
    /// Somebody or something else ended the worker.
    Interruption,
    /// A node refuses the pod, or the reason is not known: the next attempt may find another
    /// node.
    Infrastructure,
    /// The worker waits for what never comes.
    Hopeless,
    /// An image cannot be pulled; the kubelet retries with a backoff.
    PullFails,
    /// A container cannot be created; the kubelet retries.
    CreateFails,
    /// The worker waits for what may come at any time.
    MayPass,
    /// The worker waits as each container does before it starts.
    Starting,
}

/// All reasons of Kubernetes, by class. One that ends in `*` stands for all reasons that
/// begin so.
const MATRIX: &[(ReasonClass, &[&str])] = &[
    (
        ReasonClass::Own,
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
        ReasonClass::Interruption,
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
        ReasonClass::Infrastructure,
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
        ReasonClass::Hopeless,
        &["ErrImageNeverPull", "InvalidImageName"],
    ),
    (
        ReasonClass::PullFails,
        &[
            "ErrImagePull",
            "ImageInspectError",
            "ImagePullBackOff",
            "RegistryUnavailable",
            "SignatureValidationFailed",
        ],
    ),
    (
        ReasonClass::CreateFails,
        &[
            "CreateContainerConfigError",
            "CreateContainerError",
            "ImageVolumeMountFailed",
            "PreCreateHookError",
            "RROUnsupported",
        ],
    ),
    (
        ReasonClass::MayPass,
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
    (
        ReasonClass::Starting,
        &["ContainerCreating", "PodInitializing"],
    ),
];

/// Reasons of our own, and that of a container that ended without any.
const OURS: &[(ReasonClass, &[&str])] = &[
    (
        ReasonClass::Own,
        &["", "PendingTimeout", "Refused", "ScaledDown"],
    ),
    (ReasonClass::Interruption, &["Deleted", "Lost"]),
];

/// The kubelet's messages for an eviction because of a limit that the pod itself has: one of
/// the pod, of a container, or of a volume. The last two name the container or the volume.
const POD_LIMIT: &str = "Pod ephemeral local storage usage exceeds the total limit of containers ";
const CONTAINER_LIMIT: (&str, &str) =
    ("Container ", " exceeded its local ephemeral storage limit ");
const VOLUME_LIMIT: (&str, &str) = ("Usage of EmptyDir volume \"", "\" exceeds the limit ");

/// Classifies a reason, given the message that came with it.
pub(crate) fn classify(reason: &str, message: &str) -> ReasonClass {
    let reason = reason.strip_prefix(INIT).unwrap_or(reason);
    if reason == "Evicted" && is_of_own_limit(message) {
        return ReasonClass::Own;
    }
    let is = |known: &&str| {
        known
            .strip_suffix('*')
            .map_or(*known == reason, |prefix| reason.starts_with(prefix))
    };
    let mut rows = MATRIX.iter().chain(OURS);
    let row = rows.find(|(_, reasons)| reasons.iter().any(&is));
    row.map_or(ReasonClass::Infrastructure, |(meaning, _)| *meaning)
}

/// Reports whether the message of an eviction names a limit of the worker itself, not one of
/// a container or volume that others put into its pod.
fn is_of_own_limit(message: &str) -> bool {
    let names = |(before, after): (&str, &str)| {
        let rest = message.strip_prefix(before)?;
        Some(&rest[..rest.find(after)?])
    };
    message.starts_with(POD_LIMIT)
        || names(CONTAINER_LIMIT) == Some(WORKER)
        || names(VOLUME_LIMIT) == Some(WORKSPACE)
}

/// Returns the reason of an init container as that of its worker.
pub(crate) fn init_reason(reason: &str) -> String {
    format!("{INIT}{reason}")
}

/// Reports whether a container waits as each does before it starts.
pub(crate) fn is_ordinary_waiting(reason: &str) -> bool {
    reason.is_empty() || classify(reason, "") == ReasonClass::Starting
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const LIST: &str = include_str!("../../../tests/reasons.txt");

    /// Returns the reasons of the list, each with the object that carries it.
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
                "DisruptionTarget" => |m| m == ReasonClass::Interruption,
                "PodScheduled" => |m| m == ReasonClass::MayPass,
                "waiting" => |m| {
                    !matches!(
                        m,
                        ReasonClass::Own | ReasonClass::Infrastructure | ReasonClass::Interruption
                    )
                },
                "pod" => |m| {
                    matches!(
                        m,
                        ReasonClass::Own | ReasonClass::Infrastructure | ReasonClass::Interruption
                    )
                },
                _ => |_| true,
            };
            assert!(is_right(classify(reason, "")), "{reason} of {carrier}");
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
            assert_eq!(classify(reason, ""), ReasonClass::Infrastructure);
        }
    }

    #[test]
    fn what_is_unknown_is_infrastructure_also_of_an_init_container() {
        for reason in ["SomethingNew", "Init:SomethingNew"] {
            assert_eq!(classify(reason, ""), ReasonClass::Infrastructure);
        }
        assert_eq!(classify("Init:Error", ""), ReasonClass::Own);
        assert_eq!(
            classify("Init:ImagePullBackOff", ""),
            ReasonClass::PullFails
        );
    }

    /// The messages of the kubelet in each version.
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
            assert_eq!(
                classify("Evicted", &of(ours)),
                ReasonClass::Own,
                "{}",
                of(ours)
            );
            // These are the limits of what others put into the pod.
            if of(ours) != of("mesh") {
                assert_eq!(classify("Evicted", &of("mesh")), ReasonClass::Interruption);
            }
        }
        let pressure = "The node was low on resource: ephemeral-storage. Threshold quantity: 1, available: 0. \
                        Container worker was using 2Mi, request is 0, has larger consumption of ephemeral-storage. ";
        assert_eq!(classify("Evicted", pressure), ReasonClass::Interruption);
    }
}
