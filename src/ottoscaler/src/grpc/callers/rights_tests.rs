//! The table of methods against the descriptors of the services.
#![expect(clippy::unwrap_used)]
use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::*;

/// The service that otto-handler serves and we call.
const NOT_OURS: &str = "ottoscaler.v1.OttoHandlerLogService";

/// Returns the paths of all methods that a replica serves.
fn served() -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for encoded in [
        crate::proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        let before = paths.len();
        for file in FileDescriptorSet::decode(encoded).unwrap().file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                if name == NOT_OURS {
                    continue;
                }
                let methods = service.method.iter();
                paths.extend(methods.map(|method| format!("/{name}/{}", method.name())));
            }
        }
        assert!(paths.len() > before, "a descriptor without a method");
    }
    paths
}

#[test]
fn every_method_that_is_served_requires_something_and_nothing_else_does() {
    let listed: BTreeSet<String> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(listed.len(), METHODS.len(), "a method is listed twice");
    assert_eq!(served(), listed);
    for path in ["", "/", "/ottoscaler.v1.OttoscalerService/", "/x/y"] {
        assert_eq!(required(path), None, "{path}");
    }
}

#[test]
fn only_health_is_for_anyone() {
    for (path, requirement) in METHODS {
        let is_health = path.starts_with("/grpc.health.v1.Health/");
        assert_eq!(*requirement == Requirement::Nothing, is_health, "{path}");
    }
}
