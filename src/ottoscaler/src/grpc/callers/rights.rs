//! The right that each gRPC method takes.
use std::fmt;

/// A `Right` is a verb on a virtual resource of the API group `ottoscaler.io`. The API server
/// stores no such resource: its Roles name it, and so do ours. It is not `workertasks`, because a
/// right to those would open the stored objects too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::grpc) struct Right {
    pub(in crate::grpc) verb: &'static str,
    pub(in crate::grpc) resource: &'static str,
    pub(in crate::grpc) subresource: &'static str,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            verb,
            resource,
            subresource,
        } = self;
        match *subresource {
            "" => write!(f, "{verb} {resource}"),
            subresource => write!(f, "{verb} {resource}/{subresource}"),
        }
    }
}

/// A `Requirement` is what a method requires of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requirement {
    /// Anyone may call it.
    Nothing,
    /// Any caller that is known may call it.
    Known,
    /// A caller with this right may call it.
    Right(Right),
}

const fn workers(verb: &'static str, subresource: &'static str) -> Requirement {
    Requirement::Right(Right {
        verb,
        resource: "workers",
        subresource,
    })
}

pub(super) const SCALE_UP: &str = "/ottoscaler.v1.OttoscalerService/ScaleUp";
pub(super) const SCALE_DOWN: &str = "/ottoscaler.v1.OttoscalerService/ScaleDown";

/// Every method that a replica serves. A test compares it with the descriptors of the services.
pub(super) const METHODS: &[(&str, Requirement)] = &[
    (SCALE_UP, workers("create", "")),
    (SCALE_DOWN, workers("delete", "")),
    (
        "/ottoscaler.v1.OttoscalerService/GetWorkerStatus",
        workers("list", ""),
    ),
    (
        "/ottoscaler.v1.OttoscalerService/WatchWorkers",
        workers("watch", ""),
    ),
    (
        "/ottoscaler.v1.OttoscalerService/ListTasks",
        workers("list", ""),
    ),
    (
        "/ottoscaler.v1.OttoscalerService/WatchTasks",
        workers("watch", ""),
    ),
    (
        "/ottoscaler.v1.OttoscalerAdminService/ShowLogs",
        workers("get", "log"),
    ),
    (
        "/ottoscaler.v1.OttoscalerAdminService/Pause",
        workers("update", "pause"),
    ),
    (
        "/ottoscaler.v1.OttoscalerAdminService/Resume",
        workers("update", "pause"),
    ),
    ("/grpc.health.v1.Health/Check", Requirement::Nothing),
    ("/grpc.health.v1.Health/Watch", Requirement::Nothing),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Requirement::Known,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Requirement::Known,
    ),
];

/// Returns what the method at a path requires, or none when there is no such method.
pub(super) fn required(path: &str) -> Option<Requirement> {
    let found = METHODS.iter().find(|(method, _)| *method == path);
    found.map(|(_, requirement)| *requirement)
}

/// A `Role` is a set of rights that the file of CALLERS=static can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Sees workers and their logs.
    Viewer,
    /// Starts and ends workers, too.
    Scaler,
    /// Pauses and resumes, too.
    Admin,
}

impl Role {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "viewer" => Some(Self::Viewer),
            "scaler" => Some(Self::Scaler),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }

    /// Reports whether the role has a right.
    pub(super) fn has(self, right: Right) -> bool {
        let Right {
            verb,
            resource,
            subresource,
        } = right;
        let least = match (verb, resource, subresource) {
            ("list" | "watch", "workers", "") | ("get", "workers", "log") => Self::Viewer,
            ("create" | "delete", "workers", "") => Self::Scaler,
            // A right that is added later is the administrator's until it is listed above.
            _ => Self::Admin,
        };
        self >= least
    }
}

#[cfg(test)]
#[path = "rights_tests.rs"]
mod tests;
