//! What the installer allows.
use std::{fmt, time::Duration};

use crate::quantity::Quantity;

/// What a worker gets that asks for nothing, and how far a request may go. From
/// the configuration, the same in every replica.
#[derive(Debug, Clone)]
pub struct Policy {
    pub image: String,
    pub pull_policy: String,
    pub user_id: u32,
    pub cpu: Bounds,
    pub memory: Bounds,
    pub images: Patterns,
    pub pull_secrets: Patterns,
    pub commands: Patterns,
    pub secrets: Patterns,
    pub ca_bundles: Patterns,
    pub cache_claims: Patterns,
    pub service_accounts: Patterns,
    pub priority_classes: Patterns,
    /// Of `label=value`.
    pub node_labels: Patterns,
    /// Of `key=value:Effect` and `key:Effect`.
    pub tolerations: Patterns,
    /// Also what a worker has that asks for no size.
    pub max_workspace: Quantity,
    /// Also what a worker has that asks for no timeout.
    pub max_timeout: Duration,
    pub max_retries: u32,
    /// Either way from 0.
    pub max_priority: u32,
    pub allow_root: bool,
    /// Ours, which may write what the fence trusts; no worker gets it.
    pub own_service_account: Option<String>,
}

/// Of one resource.
#[derive(Debug, Clone)]
pub struct Bounds {
    pub request: Quantity,
    pub limit: Quantity,
    /// At least `limit`: the installer's own default is always allowed.
    pub max: Quantity,
    /// The setting of `max`.
    pub setting: &'static str,
}

/// A setting that lists patterns: comma-separated, `*` stands for any text.
#[derive(Debug, Clone)]
pub struct Patterns {
    setting: &'static str,
    patterns: Vec<String>,
}

impl Patterns {
    /// `none` allows nothing.
    pub fn parse(setting: &'static str, text: &str) -> Self {
        let patterns = text
            .split(',')
            .map(str::trim)
            .filter(|p| !p.is_empty() && *p != "none")
            .map(str::to_owned)
            .collect();
        Self { setting, patterns }
    }

    pub fn allows(&self, text: &str) -> bool {
        self.patterns.iter().any(|p| matches(p, text))
    }

    /// # Errors
    /// What the setting says.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        if self.allows(text) {
            return Ok(());
        }
        Err(format!(
            "{:?} is not allowed: {} is {self}",
            super::clip(text),
            self.setting
        ))
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.patterns.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.patterns.join(","))
    }
}

/// In time of pattern × text at most: where the text goes another way than the
/// last `*` took it, that `*` takes one more.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == text.get(t) {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "anything/at:all", true),
            ("ci/*", "ci/agent:1", true),
            ("ci/*", "ci", false),
            ("ci/*:1", "ci/a:1", true),
            ("ci/*:1", "ci/a:1:2", false),
            ("ci/*:1", "ci/a:1x:1", true),
            ("a*b*c", "abbc", true),
            ("a*b*c", "acb", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("", "", true),
            ("a.c", "abc", false),
            ("a?c", "abc", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_list_allows_what_one_of_its_patterns_does() {
        let list = Patterns::parse("X", "a, b*,");
        assert!(list.allows("a") && list.allows("bc"));
        assert!(!list.allows("c") && !list.allows(""));
        let none = Patterns::parse("X", "none");
        assert!(!none.allows("none") && !none.allows(""));
        assert_eq!(
            none.check("c"),
            Err("\"c\" is not allowed: X is none".to_owned())
        );
    }

    proptest! {
        /// The oracle tries every split.
        #[test]
        fn matching_is_what_it_says(pattern in "[ab*]{0,6}", text in "[ab]{0,8}") {
            fn oracle(p: &str, t: &str) -> bool {
                match p.chars().next() {
                    None => t.is_empty(),
                    Some('*') => (0..=t.len()).any(|n| oracle(&p[1..], &t[n..])),
                    Some(c) => t.starts_with(c) && oracle(&p[1..], &t[1..]),
                }
            }
            prop_assert_eq!(matches(&pattern, &text), oracle(&pattern, &text));
        }
    }
}
