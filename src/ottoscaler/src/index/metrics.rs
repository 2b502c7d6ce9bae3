//! What an operator sees of the index, in numbers.
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Counts objects that could not be decoded, by kind.
#[derive(Debug, Default)]
pub(super) struct Undecodable(Family<Kind, Counter>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

impl Undecodable {
    pub(super) fn count(&self, kind: &str) {
        let kind = kind.to_owned();
        self.0.get_or_create(&Kind { kind }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "ottoscaler_undecodable_objects",
            "Objects that could not be decoded, each version of one once",
            self.0.clone(),
        );
    }
}
