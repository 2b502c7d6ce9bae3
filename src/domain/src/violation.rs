//! Describes what is wrong with a request, field by field.

/// The greatest number of entries of one field that are reported; a request may have
/// thousands.
pub(crate) const TOLD_ENTRIES: usize = 8;
/// The greatest number of characters of the caller's text that a description quotes: enough to
/// recognise a value, and little to repeat of what may be a secret or a flood.
const TOLD_CHARS: usize = 64;

/// A `Violation` says that a field of a request is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The name of the field, as in `build_config[OTTO_IMAGE]`.
    pub field: String,
    /// What the field must be, as the rest of a sentence that begins with its name.
    pub description: String,
}

/// A `Violations` collects what is wrong, so that the caller learns of everything at once.
#[derive(Debug, Default)]
pub(crate) struct Violations(Vec<Violation>);

impl Violations {
    /// Adds what is wrong with a field.
    pub(crate) fn add(&mut self, field: &str, description: impl Into<String>) {
        self.0.push(Violation {
            field: field.to_owned(),
            description: description.into(),
        });
    }

    /// Adds what is wrong with an entry of a map.
    pub(crate) fn add_entry(&mut self, map: &str, key: &str, description: impl Into<String>) {
        self.add(&entry(map, key), description);
    }

    /// Adds violations that were collected elsewhere.
    pub(crate) fn extend(&mut self, others: Vec<Violation>) {
        self.0.extend(others);
    }

    /// Reports whether nothing was wrong.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns `value` if nothing was wrong, else the violations.
    pub(crate) fn none_or<T>(self, value: T) -> Result<T, Vec<Violation>> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self.0)
        }
    }
}

/// Returns the name of a map's entry as a field.
pub(crate) fn entry(map: &str, key: &str) -> String {
    format!("{map}[{}]", clip(key))
}

/// Returns the part of the caller's text that a description quotes.
pub(crate) fn clip(text: &str) -> String {
    text.chars().take(TOLD_CHARS).collect()
}

/// Returns all violations in one line.
pub fn in_words(violations: &[Violation]) -> String {
    let each = violations
        .iter()
        .map(|v| format!("{} {}", v.field, v.description));
    each.collect::<Vec<_>>().join("; ")
}
