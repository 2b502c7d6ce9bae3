//! The term of a leader: what tells its writes from those of any other.
use std::{fmt, str::FromStr};

/// `<lease uid>/<leaseTransitions>/<holder identity>`.
///
/// The uid tells a recreated Lease from the old one, whose transitions start
/// again at 0; the holder is fresh after every demotion, so no two terms of a
/// Lease are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    pub lease_uid: String,
    pub transitions: i32,
    pub holder: String,
}

/// A text that is no term.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a term: {0:?} (expected <lease uid>/<transitions>/<holder>)")]
pub struct NotATerm(String);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.lease_uid, self.transitions, self.holder)
    }
}

impl FromStr for Term {
    type Err = NotATerm;

    fn from_str(s: &str) -> Result<Self, NotATerm> {
        let bad = || NotATerm(s.to_owned());
        let mut parts = s.splitn(3, '/');
        let (Some(uid), Some(transitions), Some(holder)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        if uid.is_empty() || holder.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            lease_uid: uid.to_owned(),
            transitions: transitions.parse().map_err(|_| bad())?,
            holder: holder.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_survives_its_text() {
        let text = "4f1c/7/otto-0_10.0.0.7:9090_0a1b2c3d";
        assert_eq!(
            text.parse::<Term>().map(|t| t.to_string()),
            Ok(text.to_owned())
        );
    }

    #[test]
    fn a_released_lease_is_no_term() {
        assert!("4f1c/7/".parse::<Term>().is_err());
    }

    #[test]
    fn a_text_that_lacks_a_part_is_no_term() {
        for text in ["", "u", "u/7", "/7/h", "u/x/h", "u//h"] {
            assert_eq!(text.parse::<Term>(), Err(NotATerm(text.to_owned())));
        }
    }
}
