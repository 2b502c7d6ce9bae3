//! What a handler can know about the connection of its call.
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use webpki::EndEntityCert;

/// A `PeerNames` holds the DNS names of a client certificate that the TLS handshake verified. It is
/// in the extensions of each request of that connection, and missing when the client showed no
/// certificate.
#[derive(Clone, Debug)]
pub struct PeerNames(pub Arc<[String]>);

impl PeerNames {
    /// Returns the names of a verified certificate.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let parsed = EndEntityCert::try_from(certificate);
        let names = parsed
            .iter()
            .flat_map(|certificate| certificate.valid_dns_names());
        Self(names.map(str::to_owned).collect())
    }
}

/// A `ConnectionHandle` stands for the connection of a call. It is stored in the extensions of the
/// call's request.
#[derive(Debug, Clone, Default)]
pub struct ConnectionHandle {
    close: CancellationToken,
    closing: CancellationToken,
}

impl ConnectionHandle {
    pub(super) fn new(close: CancellationToken, closing: CancellationToken) -> Self {
        Self { close, closing }
    }

    /// Closes the connection with all its calls.
    pub fn close(&self) {
        self.close.cancel();
    }

    /// Returns a token that is cancelled when the replica drains, or when the connection takes no
    /// more calls and those in flight should end. A stream then ends with UNAVAILABLE, and its
    /// client opens it again. The token of a call without a connection, in a test, is never
    /// cancelled.
    pub fn closing_of(extensions: &http::Extensions) -> CancellationToken {
        let handle = extensions.get::<Self>();
        handle.map_or_else(CancellationToken::new, |handle| handle.closing.clone())
    }

    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.close.is_cancelled()
    }
}
