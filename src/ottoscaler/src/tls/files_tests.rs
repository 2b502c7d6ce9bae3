#![expect(clippy::unwrap_used)]
use super::*;
use crate::tls::test_certificates::{Ca, Issued};

fn build(own: &Issued, ca: &Ca) -> Result<TlsConfig, String> {
    serving(
        own.certificate_pem.as_bytes(),
        own.key_pem.as_bytes(),
        ca.pem().as_bytes(),
    )
}

#[test]
fn a_certificate_its_key_and_the_authorities_make_a_configuration() {
    let ca = Ca::new();
    let own = ca.issue(&["r.n.svc"]);
    let config = build(&own, &ca).unwrap();
    assert_eq!(config.server.alpn_protocols, [ALPN]);
    assert_eq!(config.client.alpn_protocols, [ALPN]);
    assert!(config.expiry > jiff::Timestamp::now().as_second());
    assert!(config.trusts_client(std::slice::from_ref(&own.certificate)));
    let foreign = Ca::new().issue(&["r.n.svc"]);
    assert!(!config.trusts_client(&[foreign.certificate]));
    assert!(config.trusts_client(&[]));
}

#[test]
fn what_does_not_belong_together_is_refused_without_quoting_it() {
    let ca = Ca::new();
    let (own, other) = (ca.issue(&["r.n.svc"]), ca.issue(&["r.n.svc"]));
    let [certificate, key] = [own.certificate_pem.as_str(), own.key_pem.as_str()];
    let authorities = ca.pem();
    let half = &key[..key.len() / 2];
    for (certificate, key, authorities, told) in [
        (
            certificate,
            other.key_pem.as_str(),
            authorities.as_str(),
            "the certificate and the key",
        ),
        (certificate, half, authorities.as_str(), "the key file"),
        (key, key, authorities.as_str(), "the certificate file"),
        ("", key, authorities.as_str(), "the certificate file"),
        (certificate, key, "", "the CA file"),
        (certificate, key, key, "the CA file"),
    ] {
        let refused = serving(
            certificate.as_bytes(),
            key.as_bytes(),
            authorities.as_bytes(),
        );
        let refused = refused.unwrap_err();
        assert!(refused.contains(told), "{refused}");
        let secret = own.key_pem.lines().nth(1).unwrap();
        assert!(!refused.contains(secret), "{refused}");
    }
}
