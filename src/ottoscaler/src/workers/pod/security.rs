//! As whom a worker runs, and what it may do.
use k8s_openapi::api::core::v1::{
    Capabilities, PodSecurityContext, SeccompProfile, SecurityContext,
};

/// What package managers and entry points that change their user need of root;
/// all of them within "baseline".
const OF_ROOT: [&str; 7] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
];

pub(super) fn of_pod(user: u32) -> PodSecurityContext {
    PodSecurityContext {
        run_as_user: Some(user.into()),
        run_as_group: Some(user.into()),
        fs_group: Some(user.into()),
        // A large cache is not walked through for every worker.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        run_as_non_root: Some(user != 0),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

pub(super) fn of_container(user: u32) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: (user == 0).then(|| OF_ROOT.map(str::to_owned).to_vec()),
        }),
        ..SecurityContext::default()
    }
}
