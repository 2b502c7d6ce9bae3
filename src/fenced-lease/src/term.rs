//! The term of a leader: the fencing token that its writes carry.
use std::{fmt, str::FromStr};

/// One period of leadership, written `<lease uid>/<leaseTransitions>/<holder identity>`.
///
/// No two terms are equal. The uid tells a recreated Lease from the one before it, whose
/// transitions start at 0 again. The holder's identity is fresh after every demotion, so a
/// candidate that acquires the Lease twice has two terms even where the transitions did not
/// move.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    /// `metadata.uid` of the Lease.
    pub lease_uid: String,
    /// `spec.leaseTransitions` of the Lease.
    pub transitions: i32,
    /// `spec.holderIdentity` of the Lease.
    pub holder: String,
}

/// A text is not a [`Term`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a term: {0:?} (expected <lease uid>/<transitions>/<holder>)")]
pub struct ParseTermError(String);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.lease_uid, self.transitions, self.holder)
    }
}

impl FromStr for Term {
    type Err = ParseTermError;

    fn from_str(s: &str) -> Result<Self, ParseTermError> {
        let bad = || ParseTermError(s.to_owned());
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
            assert_eq!(text.parse::<Term>(), Err(ParseTermError(text.to_owned())));
        }
    }
}
