//! The file of CALLERS=static: text → who has which role.
//!
//! A line is one of
//! ```text
//! NAME ROLE SHA256              a token of the caller NAME, as 64 hex digits of its SHA-256
//! certificate DNS-NAME ROLE     a client certificate that bears this name
//! role ROLE SETTING=patterns    requests of this role are within these patterns, too
//! # a comment
//! ```
//! Invariant: a file is taken whole or not at all.
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

use super::rights::Role;
use crate::domain::template::{KEYS, Patterns, Policy};

/// The number of tokens that a caller may have at a time: the old one and the new one.
const TOKENS_PER_CALLER: usize = 2;
/// The bytes of a SHA-256.
const HASH_BYTES: usize = 32;
/// The words that begin the other kinds of lines, so no caller can have them as a name.
const RESERVED: [&str; 2] = ["certificate", "role"];

/// A `StaticCallers` is the content of a valid file.
#[derive(Debug)]
pub(super) struct StaticCallers {
    tokens: Vec<Token>,
    certificates: HashMap<String, Role>,
    policies: BTreeMap<Role, Arc<Policy>>,
}

#[derive(Debug)]
struct Token {
    name: String,
    role: Role,
    hash: [u8; HASH_BYTES],
}

/// A `FileError` says which line of the file is wrong. It quotes nothing of the line, which may
/// hold what should not be seen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FileError {
    #[error("it is not UTF-8 text")]
    NotText,
    #[error("its last line does not end with a newline, so it may be half written")]
    Unfinished,
    #[error("it names no caller")]
    Empty,
    #[error("line {0}: {1}")]
    Line(usize, &'static str),
}

impl StaticCallers {
    /// Parses a file. `policy` is what the roles narrow.
    ///
    /// # Errors
    /// Returns the first line that is wrong.
    pub(super) fn parse(bytes: &[u8], policy: &Policy) -> Result<Self, FileError> {
        let text = str::from_utf8(bytes).map_err(|_| FileError::NotText)?;
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(FileError::Unfinished);
        }
        let mut callers = Self {
            tokens: Vec::new(),
            certificates: HashMap::new(),
            policies: BTreeMap::new(),
        };
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                let added = callers.add(line, policy);
                added.map_err(|why| FileError::Line(n + 1, why))?;
            }
        }
        if callers.tokens.is_empty() && callers.certificates.is_empty() {
            return Err(FileError::Empty);
        }
        Ok(callers)
    }

    fn add(&mut self, line: &str, policy: &Policy) -> Result<(), &'static str> {
        if let Some(("role", rest)) = line.split_once(' ') {
            return self.narrow(rest.trim(), policy);
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [first, second, third] = words[..] else {
            return Err(
                "must be: name role sha256, or certificate name role, or role name SETTING=patterns",
            );
        };
        let unknown = "the role must be viewer, scaler or admin";
        if first == "certificate" {
            let role = Role::parse(third).ok_or(unknown)?;
            return match self.certificates.insert(second.to_owned(), role) {
                None => Ok(()),
                Some(_) => Err("this certificate's name has a role already"),
            };
        }
        if RESERVED.contains(&first) {
            return Err("a caller must have another name");
        }
        let token = Token {
            name: first.to_owned(),
            role: Role::parse(second).ok_or(unknown)?,
            hash: hash(third)
                .ok_or("the hash must have 64 hex digits: printf %s TOKEN | sha256sum")?,
        };
        let same_name = self.tokens.iter().filter(|t| t.name == token.name);
        if same_name.clone().any(|t| t.role != token.role) {
            return Err("this caller has another role already");
        }
        if same_name.count() >= TOKENS_PER_CALLER {
            return Err("a caller has at most two tokens: the old one and the new one");
        }
        if self.tokens.iter().any(|t| t.hash == token.hash) {
            return Err("this token is in the file already");
        }
        self.tokens.push(token);
        Ok(())
    }

    /// Adds `ROLE SETTING=patterns`.
    fn narrow(&mut self, line: &str, policy: &Policy) -> Result<(), &'static str> {
        let wrong = "must be: role viewer|scaler|admin SETTING=patterns";
        let (role, rest) = line.split_once(' ').ok_or(wrong)?;
        let role = Role::parse(role).ok_or(wrong)?;
        let (setting, patterns) = rest.trim().split_once('=').ok_or(wrong)?;
        let bounds = KEYS.iter().map(|key| key.bound);
        let setting = bounds
            .filter(|bound| bound.starts_with("ALLOWED_"))
            .find(|bound| *bound == setting)
            .ok_or("the setting must be one of the ALLOWED_ settings")?;
        let current = self.policies.get(&role).map_or(policy, |policy| policy);
        let narrower = current.narrowed(setting, Patterns::parse(patterns));
        self.policies.insert(role, Arc::new(narrower));
        Ok(())
    }

    /// Returns the caller whose token this is.
    ///
    /// Each hash is compared in constant time and all of them are, so that the time says nothing
    /// about how much of a guess was right.
    pub(super) fn of_token(&self, token: &str) -> Option<(&str, Role)> {
        let hash = digest(&SHA256, token.as_bytes());
        let mut found = None;
        for entry in &self.tokens {
            if bool::from(entry.hash.ct_eq(hash.as_ref())) {
                found = Some((entry.name.as_str(), entry.role));
            }
        }
        found
    }

    /// Returns the first of the names of a certificate that has a role, with the role.
    pub(super) fn of_certificate<'a>(&self, names: &'a [String]) -> Option<(&'a str, Role)> {
        let role = |name: &'a String| Some((name.as_str(), *self.certificates.get(name)?));
        names.iter().find_map(role)
    }

    /// Returns what requests of a role may ask for, if that is less than what others may.
    pub(super) fn policy(&self, role: Role) -> Option<Arc<Policy>> {
        self.policies.get(&role).cloned()
    }
}

/// Parses the hex digits of a hash.
fn hash(text: &str) -> Option<[u8; HASH_BYTES]> {
    let is_hex = text.len() == 2 * HASH_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
    let mut hash = [0; HASH_BYTES];
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    is_hex.then_some(hash)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
