//! Defines what the installer allows requests to ask for.
use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{quantity::Quantity, violation::clip};

/// A `Policy` says what a worker gets by default, and what a request may ask for. It comes
/// from the configuration and is the same in every replica.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The default image.
    pub image: String,
    /// The pull policy of images.
    pub pull_policy: String,
    /// The default user id.
    pub user_id: u32,
    /// The CPU of a worker.
    pub cpu: Bounds,
    /// The memory of a worker.
    pub memory: Bounds,
    /// What requests may name, by the setting that says so. A setting that is not here allows
    /// nothing.
    pub allowed: BTreeMap<&'static str, Patterns>,
    /// The greatest size of a workspace, which is the default too.
    pub max_workspace: Quantity,
    /// The longest timeout of a worker, which is the default too.
    pub max_timeout: Duration,
    /// The greatest number of retries.
    pub max_retries: u32,
    /// The greatest distance of a priority from 0, in both directions.
    pub max_priority: u32,
    /// Whether a worker may run as root.
    pub allow_root: bool,
    /// The name of Ottoscaler's own ServiceAccount. No worker may use it, because it may write
    /// what fencing relies on.
    pub own_service_account: Option<String>,
    /// The names of Ottoscaler's own Secrets, which no worker may have: they let whoever reads them
    /// act as a caller or as a replica.
    pub own_secrets: Vec<String>,
}

/// A `Bounds` says what a worker gets, and may ask for, of one resource.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The default request.
    pub request: Quantity,
    /// The default limit.
    pub limit: Quantity,
    /// The greatest limit. It is at least `limit`, so that the installer's own default is
    /// always allowed.
    pub max: Quantity,
}

/// A `Patterns` is a list of patterns in which `*` stands for any text.
#[derive(Debug, Clone)]
pub struct Patterns {
    one_of: Vec<String>,
    /// Patterns that a text must match as well.
    within: Option<Box<Patterns>>,
}

impl Patterns {
    /// Parses patterns that commas separate; `none` allows nothing.
    pub fn parse(text: &str) -> Self {
        let patterns = text
            .split(',')
            .map(str::trim)
            .filter(|p| !p.is_empty() && *p != "none");
        Self {
            one_of: patterns.map(str::to_owned).collect(),
            within: None,
        }
    }

    /// Reports whether a text matches one of the patterns.
    pub fn allows(&self, text: &str) -> bool {
        self.one_of.iter().any(|p| matches(p, text))
            && self.within.as_ref().is_none_or(|all| all.allows(text))
    }

    /// Checks that a text matches one of the patterns, which are those of `setting`.
    ///
    /// # Errors
    /// Returns a description that names the setting.
    pub(super) fn check(&self, text: &str, setting: &str) -> Result<(), String> {
        if self.allows(text) {
            return Ok(());
        }
        Err(format!(
            "{:?} is not allowed: {setting} is {self}",
            clip(text)
        ))
    }
}

impl Policy {
    /// Returns the patterns of a setting.
    pub(super) fn allowed(&self, setting: &str) -> &Patterns {
        static NOTHING: Patterns = Patterns {
            one_of: Vec::new(),
            within: None,
        };
        self.allowed.get(setting).unwrap_or(&NOTHING)
    }

    /// Returns the same policy with a setting that allows only what it allows now and `patterns`
    /// allow too.
    #[must_use]
    pub fn narrowed(&self, setting: &'static str, patterns: Patterns) -> Self {
        let mut narrower = self.clone();
        let within = Some(Box::new(self.allowed(setting).clone()));
        narrower
            .allowed
            .insert(setting, Patterns { within, ..patterns });
        narrower
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.one_of {
            [] => f.write_str("none")?,
            one_of => f.write_str(&one_of.join(","))?,
        }
        match &self.within {
            Some(within) => write!(f, " within {within}"),
            None => Ok(()),
        }
    }
}

/// Reports whether a text matches a pattern. Where the text differs from what follows the last
/// `*`, that `*` takes one more byte, so that the time is at most the product of the lengths.
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
        let list = Patterns::parse("a, b*,");
        assert!(list.allows("a") && list.allows("bc"));
        assert!(!list.allows("c") && !list.allows(""));
        let none = Patterns::parse("none");
        assert!(!none.allows("none") && !none.allows(""));
        assert_eq!(
            none.check("c", "X"),
            Err("\"c\" is not allowed: X is none".to_owned())
        );
    }

    #[test]
    fn a_narrowed_setting_allows_what_both_lists_do() {
        let policy = super::super::test_policy::policy_with(&[("ALLOWED_SECRETS", "ci-*")]);
        let narrower = policy.narrowed("ALLOWED_SECRETS", Patterns::parse("*-token,other"));
        let allowed = narrower.allowed("ALLOWED_SECRETS");
        assert!(allowed.allows("ci-token"));
        assert!(
            !allowed.allows("ci-key") && !allowed.allows("x-token") && !allowed.allows("other")
        );
        assert_eq!(allowed.to_string(), "*-token,other within ci-*");
        // A setting that allows nothing stays so.
        let narrower = policy.narrowed("ALLOWED_CACHE_CLAIMS", Patterns::parse("*"));
        assert!(!narrower.allowed("ALLOWED_CACHE_CLAIMS").allows("x"));
        assert!(policy.allowed("ALLOWED_SECRETS").allows("ci-key"));
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
