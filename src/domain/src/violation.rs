//! What is wrong with a request, field by field.

/// The entries of one field that are told; a request may have thousands.
pub(crate) const TOLD_ENTRIES: usize = 8;
/// Characters of the caller's text that are told again.
const TOLD_CHARS: usize = 64;

/// One field that is wrong, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub description: String,
}

/// Collects what is wrong, so that the caller hears of everything at once.
#[derive(Debug, Default)]
pub(crate) struct Violations(Vec<Violation>);

impl Violations {
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

    pub(crate) fn extend(&mut self, others: Vec<Violation>) {
        self.0.extend(others);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns `value` if nothing was wrong.
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

/// Returns what is told of the caller's text.
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
