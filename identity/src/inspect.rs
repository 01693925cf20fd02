//! Certificates for people: which anchor one rests on, what it is called, how it is written. Never to decide by.

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use crate::profile;

/// SHA-256 of a certificate, in hexadecimal.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    digest(&SHA256, certificate).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The anchor that the last certificate of `chain` is signed by; `None`: none of these.
pub fn anchor_of<'a>(
    chain: &[CertificateDer<'_>],
    anchors: &'a [CertificateDer<'static>],
) -> Option<&'a CertificateDer<'static>> {
    let last = profile::parse(chain.last()?).ok()?;
    anchors.iter().find(|anchor| {
        profile::parse(anchor).is_ok_and(|anchor| {
            anchor.subject() == last.issuer() && last.verify_signature(Some(anchor.public_key())).is_ok()
        })
    })
}

/// Certificates in PEM, one after the other.
pub fn pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| pem::encode(&pem::Pem::new("CERTIFICATE", certificate.to_vec()))).collect()
}

/// A revocation list in PEM.
pub fn list_pem(list: &CertificateRevocationListDer<'_>) -> String {
    pem::encode(&pem::Pem::new("X509 CRL", list.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        testing::{Mesh, web},
        trust::anchors_from_pem,
    };

    #[test]
    fn a_chain_is_shown_with_the_anchor_it_rests_on() {
        let (mesh, other) = (Mesh::new(), Mesh::new());
        let chain = mesh.workload(&web()).chain();
        let anchors = [other.authority.anchors(), mesh.authority.anchors()].concat();
        // Both have the same subject.
        assert_eq!(anchor_of(&chain, &anchors), Some(&mesh.authority.anchors()[0]));
        assert_eq!(anchor_of(&chain, other.authority.anchors()), None);
        assert_eq!(anchors_from_pem(pem(&chain).as_bytes()).unwrap(), chain);
        assert_eq!(fingerprint(&chain[0]).len(), 64);
    }
}
