//! The metrics of the index.
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Counts the objects that could not be decoded, by kind.
#[derive(Debug, Default)]
pub(super) struct UndecodableObjects(Family<KindLabel, Counter>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

impl UndecodableObjects {
    pub(super) fn count(&self, kind: &str) {
        let kind = kind.to_owned();
        self.0.get_or_create(&KindLabel { kind }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "ottoscaler_undecodable_objects",
            "Objects that could not be decoded, each version of one once",
            self.0.clone(),
        );
    }
}
