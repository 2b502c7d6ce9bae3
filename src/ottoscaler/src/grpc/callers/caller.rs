//! The caller of a call, and what goes with it to its handler.
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};

use crate::domain::template::Policy;

/// The longest name of a caller, in bytes. Names of ServiceAccounts have at most 337.
const MAX_NAME_BYTES: usize = 512;

/// A `Caller` is who made a call. The layer puts it into the extensions of the request; it is
/// missing with CALLERS=none.
#[derive(Debug, Clone)]
pub(in crate::grpc) struct Caller {
    pub(in crate::grpc) name: Arc<str>,
    /// The policy of this caller's requests, where it is narrower than the installer's.
    pub(in crate::grpc) policy: Option<Arc<Policy>>,
    /// The token of the caller, for the hop to the leader. It is marked as sensitive.
    pub(in crate::grpc) authorization: Option<MetadataValue<Ascii>>,
    /// The number of replicas that forwarded the call over connections which prove nothing.
    pub(in crate::grpc) hops: usize,
}

impl Caller {
    /// Creates a caller. What a header cannot carry of its name becomes `?`.
    pub(super) fn new(name: &str) -> Self {
        let visible = |c: char| if c.is_ascii_graphic() { c } else { '?' };
        let name: String = name.chars().take(MAX_NAME_BYTES).map(visible).collect();
        Self {
            name: name.into(),
            policy: None,
            authorization: None,
            hops: 0,
        }
    }
}
