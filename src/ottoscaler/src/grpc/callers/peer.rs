//! The names of a client that its certificate proves.
use std::sync::Arc;

/// A `PeerNames` holds the subject alternative names of a client certificate that the TLS layer
/// verified. The listener puts it into the extensions of each request of that connection. It is
/// missing when the client showed no certificate.
#[allow(
    dead_code,
    reason = "the listener fills it and the callers layer reads it"
)]
#[derive(Clone, Debug)]
pub(crate) struct PeerNames(pub Arc<[String]>);
