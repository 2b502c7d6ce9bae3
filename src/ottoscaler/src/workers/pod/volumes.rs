//! Where a worker may write, and what it is given to read.
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EmptyDirVolumeSource, KeyToPath, PersistentVolumeClaimVolumeSource,
    Volume, VolumeMount,
};

use crate::domain::{reasons, template::Template};

/// Its own; where workers may write besides /tmp of their image.
const WORKSPACE: &str = "/workspace";
/// Shared with other workers.
const CACHE: &str = "/cache";
const CA_DIRECTORY: &str = "/etc/ottoscaler/ca";
/// Within that directory, whatever the ConfigMap's key.
const CA_FILE: &str = "ca.crt";

/// Where the certificates are, for the environment.
pub(super) fn ca_file() -> String {
    format!("{CA_DIRECTORY}/{CA_FILE}")
}

pub(super) fn volumes(template: &Template) -> Vec<Volume> {
    let mut volumes = vec![Volume {
        name: reasons::WORKSPACE.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(super::amount(&template.workspace)),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }];
    volumes.extend(template.cache_claim.as_ref().map(|claim| Volume {
        name: "cache".to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.clone(),
            ..PersistentVolumeClaimVolumeSource::default()
        }),
        ..Volume::default()
    }));
    volumes.extend(template.ca_bundle.as_ref().map(|bundle| Volume {
        name: "ca".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: bundle.config_map.clone(),
            items: Some(vec![KeyToPath {
                key: bundle.key.clone(),
                path: CA_FILE.to_owned(),
                ..KeyToPath::default()
            }]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }));
    volumes
}

pub(super) fn mounts(template: &Template) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: Option<bool>| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only,
        ..VolumeMount::default()
    };
    let mut mounts = vec![mount(reasons::WORKSPACE, WORKSPACE, None)];
    let cache = template.cache_claim.as_ref();
    mounts.extend(cache.map(|_| mount("cache", CACHE, None)));
    let ca = template.ca_bundle.as_ref();
    mounts.extend(ca.map(|_| mount("ca", CA_DIRECTORY, Some(true))));
    mounts
}
