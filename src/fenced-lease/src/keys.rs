//! The names under which a contender writes.
use crate::error::BuildError;

/// Prefix of the annotations, and the field manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    prefix: String,
    pub(crate) field_manager: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            prefix: "fenced-lease.io".to_owned(),
            field_manager: "fenced-lease".to_owned(),
        }
    }
}

impl Keys {
    pub(crate) fn new(prefix: &str, field_manager: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            field_manager: field_manager.to_owned(),
        }
    }

    /// Checks that the names can stand in an annotation and in a query.
    pub(crate) fn validate(&self) -> Result<(), BuildError> {
        let is_name = |text: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            !text.is_empty() && text.len() <= 128 && text.chars().all(is_plain)
        };
        for text in [&self.prefix, &self.field_manager] {
            if !is_name(text) {
                return Err(BuildError::Name(text.clone()));
            }
        }
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// The identity that released the Lease.
    pub(crate) fn released_by(&self) -> String {
        self.key("released-by")
    }

    /// The pod whose container the holder runs in.
    pub(crate) fn holder_pod_uid(&self) -> String {
        self.key("holder-pod-uid")
    }

    /// The container that the holder runs in.
    pub(crate) fn holder_container_id(&self) -> String {
        self.key("holder-container-id")
    }

    /// The term that wrote an object.
    pub(crate) fn term(&self) -> String {
        self.key("term")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The admission policy and the successor of another version read these.
    #[test]
    fn each_annotation_has_its_own_name_under_the_prefix() {
        let keys = Keys::new("example.io", "example");
        let names = [
            keys.released_by(),
            keys.holder_pod_uid(),
            keys.holder_container_id(),
            keys.term(),
        ];
        let expected = [
            "example.io/released-by",
            "example.io/holder-pod-uid",
            "example.io/holder-container-id",
            "example.io/term",
        ];
        assert_eq!(names, expected);
        assert_eq!(keys.field_manager, "example");
    }
}
