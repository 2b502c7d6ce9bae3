//! Who contends: the holder identity `<name>_<address>_<8 hex>`.
//!
//! Invariants: the leader's address and the leadership change in one write; the hex digits
//! are fresh after every demotion, so a holder identity leads at most one term.
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// How much of the name a holder identity holds, so that it stays below 128 bytes.
const MAX_NAME: usize = 63;

/// A process among the candidates for a Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    name: String,
    address: Option<String>,
    pod_uid: Option<String>,
}

impl Identity {
    /// Creates the identity of a process outside a pod. Its death is never proved: a
    /// successor waits for the Lease to expire.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            address: None,
            pod_uid: None,
        }
    }

    /// Creates the identity of the pod with this name and `metadata.uid`, which the Downward
    /// API gives to its containers. The pod must have one container; its ServiceAccount must
    /// be allowed to get, list and watch pods. Then the container's end proves the death.
    pub fn of_pod(name: impl Into<String>, uid: impl Into<String>) -> Self {
        Self {
            pod_uid: Some(uid.into()),
            ..Self::new(name)
        }
    }

    /// Publishes the `host:port` at which the other candidates reach this one while it leads.
    #[must_use]
    pub fn with_address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the published address.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    pub(crate) fn pod_uid(&self) -> Option<&str> {
        self.pod_uid.as_deref()
    }

    /// Creates a holder identity that nobody has had before.
    pub(crate) fn fresh_holder(&self) -> String {
        let name: String = self
            .name
            .chars()
            .filter(|c| *c != '_' && *c != '/')
            .take(MAX_NAME)
            .collect();
        let address = self.address.as_deref().unwrap_or_default();
        // RandomState is seeded by the system's randomness.
        let random = RandomState::new().build_hasher().finish() as u32;
        format!("{name}_{address}_{random:08x}")
    }

    /// Whether a holder of this name and address may be an earlier process at our place.
    pub(crate) fn is_place_of(&self, holder: &Holder<'_>) -> bool {
        match (self.address(), holder.address) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (None, None) => self.name == holder.name,
            _ => false,
        }
    }
}

/// The parts of a holder identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: Option<&'a str>,
}

impl<'a> Holder<'a> {
    /// Reads a holder identity; `None` if it is not of this form.
    pub(crate) fn parse(holder: &'a str) -> Option<Self> {
        let (rest, random) = holder.rsplit_once('_')?;
        let (name, address) = rest.split_once('_')?;
        let is_address = address.is_empty() || address.contains(':');
        let is_sound = random.len() == 8 && !name.is_empty() && is_address;
        is_sound.then_some(Self {
            name,
            address: Some(address).filter(|a| !a.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(holder: &str) -> Option<(&str, Option<&str>)> {
        Holder::parse(holder).map(|h| (h.name, h.address))
    }

    #[test]
    fn a_holder_tells_name_and_address() {
        let id = Identity::new("otto-0").with_address("[fd00::1]:9090");
        let holder = id.fresh_holder();
        assert_eq!(parse(&holder), Some(("otto-0", Some("[fd00::1]:9090"))));
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        for address in ["10.0.0.1:9090", longest] {
            let id = Identity::of_pod("p".repeat(300), "u").with_address(address);
            let holder = id.fresh_holder();
            assert!(holder.len() <= 128, "{holder}");
            assert_eq!(parse(&holder).map(|(_, a)| a), Some(Some(address)));
        }
    }

    #[test]
    fn a_candidate_need_not_publish_an_address() {
        let id = Identity::new("worker");
        let holder = id.fresh_holder();
        assert_eq!(parse(&holder), Some(("worker", None)));
        assert_eq!(
            (id.name(), id.address(), id.pod_uid()),
            ("worker", None, None)
        );
    }

    #[test]
    fn what_parts_an_identity_or_a_term_is_left_out_of_the_name() {
        let holder = Identity::new("a_b/c").with_address("h:1").fresh_holder();
        assert_eq!(parse(&holder), Some(("abc", Some("h:1"))));
    }

    #[test]
    fn identities_differ_each_time() {
        let id = Identity::new("p").with_address("h:1");
        assert_ne!(id.fresh_holder(), id.fresh_holder());
    }

    #[test]
    fn a_strangers_holder_has_no_address() {
        for holder in [
            "",
            "somebody-else",
            "p_h:1_1234567",
            "_h:1_12345678",
            "p_h_12345678",
        ] {
            assert_eq!(parse(holder), None, "{holder}");
        }
    }

    #[test]
    fn a_holder_at_our_address_or_of_our_name_is_at_our_place() {
        let here = Identity::new("p").with_address("h:1");
        let nowhere = Identity::new("p");
        for (holder, is_here, is_nowhere) in [
            ("p_h:1_12345678", true, false),
            ("q_h:1_12345678", true, false),
            ("p_h:2_12345678", false, false),
            ("p__12345678", false, true),
            ("q__12345678", false, false),
        ] {
            let holder = Holder::parse(holder);
            let is = |id: &Identity| holder.is_some_and(|h| id.is_place_of(&h));
            assert_eq!(
                (is(&here), is(&nowhere)),
                (is_here, is_nowhere),
                "{holder:?}"
            );
        }
    }
}
