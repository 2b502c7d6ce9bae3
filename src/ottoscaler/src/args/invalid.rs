//! A setting that was refused, and why.
use clap::{
    Command, Error,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::setting;

/// A value that a setting does not take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name}: {value:?} is not {takes}")]
pub struct Invalid {
    pub name: String,
    /// Without the credentials of a URL.
    pub value: String,
    pub takes: String,
}

impl Invalid {
    pub(crate) fn new(name: &str, value: &str, takes: &str) -> Self {
        Self {
            name: name.to_owned(),
            value: without_credentials(value),
            takes: takes.to_owned(),
        }
    }

    /// Says in our words what clap refused.
    pub(super) fn of(error: &Error, command: &Command) -> Self {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.as_str(),
            _ => "",
        };
        let flag = text(ContextKind::InvalidArg);
        // Of a setting it is `--flag <what it takes>`.
        let long = flag.split(' ').next().and_then(|f| f.strip_prefix("--"));
        if let Some(arg) = setting::all(command).find(|arg| arg.get_long() == long) {
            let value = text(ContextKind::InvalidValue);
            return Self::new(&setting::name(arg), value, &setting::takes(arg));
        }
        match error.kind() {
            ErrorKind::InvalidSubcommand => {
                let word = text(ContextKind::InvalidSubcommand);
                Self::new(word, word, "a flag or a command (see --help)")
            }
            ErrorKind::InvalidUtf8 => Self::new("a flag", "", "in UTF-8"),
            _ => Self::new(flag, flag, "a known flag (see --help)"),
        }
    }
}

/// `scheme://user:password@host` → `scheme://…@host`.
fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://…@{host}"),
        None => text.to_owned(),
    }
}
