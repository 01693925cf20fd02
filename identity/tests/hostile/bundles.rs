//! Any bytes as a bundle of trust anchors and revocation lists: what is put in force is all that was read, and what cannot be used leaves
//! the last in force. The fuzz target `bundles` runs the same.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use heddle_identity::{IdentityNaming, Trust, anchors_from_pem, lists_from_pem, provider};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

/// A root and its list, as DER, made when the process starts: what is written down expires.
struct Fresh {
    root: Vec<u8>,
    list: Vec<u8>,
}

static FRESH: LazyLock<Fresh> = LazyLock::new(|| {
    let now = SystemTime::now();
    let day = Duration::from_secs(24 * 60 * 60);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = ((now - day).into(), (now + day).into());
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let list = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + day).into(),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(7),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&root).unwrap();
    Fresh { root: root.der().to_vec(), list: list.der().to_vec() }
});

static TRUST: LazyLock<Trust> = LazyLock::new(|| {
    let anchors = vec![CertificateDer::from(FRESH.root.clone())];
    Trust::new(IdentityNaming::default(), anchors, Arc::new(provider())).unwrap()
});

/// Any bytes as a file. Whether it was put in force.
pub fn bundle(file: &[u8]) -> bool {
    let (Ok(anchors), Ok(lists)) = (anchors_from_pem(file), lists_from_pem(file)) else { return false };
    assert!(!anchors.is_empty());
    reload(anchors, &lists)
}

fn reload(anchors: Vec<CertificateDer<'static>>, lists: &[CertificateRevocationListDer<'static>]) -> bool {
    // Lists that are older than those in force are refused: each turn begins without.
    let own = vec![CertificateDer::from(FRESH.root.clone())];
    TRUST.reload(own.clone(), &[]).unwrap();
    let accepted = TRUST.reload(anchors.clone(), lists).is_ok();
    if accepted {
        assert_eq!(TRUST.anchors(), anchors);
        let found: BTreeSet<Vec<u8>> = TRUST.lists().iter().map(|it| it.to_vec()).collect();
        let given: BTreeSet<Vec<u8>> = lists.iter().map(|it| it.to_vec()).collect();
        assert_eq!(found, given, "no list is dropped");
    } else {
        assert_eq!(TRUST.anchors(), own, "the last anchors stay in force");
        assert!(TRUST.lists().is_empty());
    }
    accepted
}

/// A root and its list, of which some bytes are others (`list`: those of the list). Whether it was put in force.
pub fn changed(list: bool, edits: &[(u16, u8)]) -> bool {
    let (mut root, mut revoked) = (FRESH.root.clone(), FRESH.list.clone());
    let bytes = if list { &mut revoked } else { &mut root };
    for (at, value) in edits {
        let at = usize::from(*at) % bytes.len();
        bytes[at] ^= value;
    }
    let file = pem::encode_many(&[pem::Pem::new("CERTIFICATE", root), pem::Pem::new("X509 CRL", revoked)]);
    bundle(file.as_bytes())
}
