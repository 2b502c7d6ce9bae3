//! Who holds the Lease: `<pod>_<host:port>_<8 hex>`.
//!
//! The leader's address and the leadership change in one write; the hex is fresh
//! after every demotion, so an identity leads at most once.
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// Room that pod name and address leave to the rest.
const MAX_POD: usize = 63;

pub(super) fn fresh(pod: &str, address: &str) -> String {
    let pod: String = pod
        .chars()
        .filter(|c| *c != '_' && *c != '/')
        .take(MAX_POD)
        .collect();
    // RandomState is seeded by the system's randomness.
    let random = RandomState::new().build_hasher().finish() as u32;
    format!("{pod}_{address}_{random:08x}")
}

/// The pod and address of a holder; None if it is no identity of ours.
pub(super) fn parse(holder: &str) -> Option<(&str, &str)> {
    let (rest, random) = holder.rsplit_once('_')?;
    let (pod, address) = rest.split_once('_')?;
    let sound = random.len() == 8 && !pod.is_empty() && address.contains(':');
    sound.then_some((pod, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_tells_pod_and_address() {
        let id = fresh("otto-0", "[fd00::1]:9090");
        assert_eq!(parse(&id), Some(("otto-0", "[fd00::1]:9090")));
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        for address in ["10.0.0.1:9090", longest] {
            let id = fresh(&"p".repeat(300), address);
            assert!(id.len() <= 128, "{id}");
            assert_eq!(parse(&id).map(|(_, a)| a), Some(address));
        }
    }

    #[test]
    fn what_parts_an_identity_or_a_term_is_left_out_of_the_pods_name() {
        let id = fresh("a_b/c", "h:1");
        assert_eq!(parse(&id), Some(("abc", "h:1")));
    }

    #[test]
    fn identities_differ_each_time() {
        assert_ne!(fresh("p", "h:1"), fresh("p", "h:1"));
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
}
