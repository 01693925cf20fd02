use super::*;
use crate::cli::door::{AnchorStatus, CertificateStatus};
use heddle_identity::{Authority, AuthoritySettings, CertificateRequest, pem};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use std::time::Duration;

fn told(now: SystemTime) -> Identities {
    let naming = IdentityNaming::default();
    told_by(&Authority::in_memory(naming, AuthoritySettings::default(), now).unwrap(), now)
}

fn told_by(authority: &Authority, now: SystemTime) -> Identities {
    let naming = IdentityNaming::default();
    let identity = naming.name("shop", "web").unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![
        SanType::DnsName(identity.dns().try_into().unwrap()),
        SanType::URI(identity.spiffe().try_into().unwrap()),
    ];
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().into();
    let issued = authority.issue(&CertificateRequest { identity: identity.clone(), csr }, now).unwrap();
    let at = OffsetDateTime::from(now);
    Identities {
        identities: vec![IdentityStatus {
            identity: identity.dns().into(),
            pods: vec!["shop/web-1".into()],
            certificate: Some(CertificateStatus {
                serial: "7f".into(),
                issued: at,
                expires: at,
                obtained: at,
                issuer: "CN=x".into(),
                anchor: "abcdef0123456789".into(),
                chain: pem(&issued.chain),
            }),
            failures: 2,
            error: "away".into(),
            next_renewal: at,
        }],
        anchors: vec![AnchorStatus {
            subject: "CN=x".into(),
            fingerprint: "abcdef0123456789".into(),
            pem: pem(authority.anchors()),
            expires: at,
        }],
        federated: Default::default(),
        revocation_lists: Vec::new(),
        by_spire: false,
        stale: None,
        warnings: vec!["look at this".into()],
    }
}

#[test]
fn a_certificate_is_verified_as_peers_do() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    let day = Duration::from_secs(24 * 3600);
    let identities = told(now);
    let pod = of_pod(&identities, "shop/web-1").unwrap();
    judge(&identities, pod, now).unwrap();
    judge(&identities, pod, now + day).unwrap();
    judge(&identities, pod, now + day + Duration::from_secs(1)).unwrap_err();
    judge(&identities, pod, now - day).unwrap_err();
    let mut other = identities.clone();
    other.anchors[0].pem = told(now).anchors[0].pem.clone();
    judge(&other, pod, now).unwrap_err();
    let mut misnamed = pod.clone();
    misnamed.identity = misnamed.identity.replace("web", "db");
    judge(&identities, &misnamed, now).unwrap_err();
    misnamed.certificate = None;
    judge(&identities, &misnamed, now).unwrap_err();
    assert!(of_pod(&identities, "shop/nobody").is_err());
}

#[test]
fn what_is_told_can_be_read() {
    let identities = told(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600));
    let list = listed(&identities);
    for said in ["expires 2026-01-01T00:00:00Z", "anchor abcdef012345", "shop/web-1", "WARNING: look at this"]
    {
        assert!(list.contains(said), "{said} is not in {list}");
    }
    let shown = shown(&identities.identities[0]);
    for said in ["serial    7f", "failed    2 times: away", "BEGIN CERTIFICATE"] {
        assert!(shown.contains(said), "{said} is not in {shown}");
    }
}

#[test]
fn a_certificate_that_is_revoked_is_not_believed_and_is_warned_of() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let root = heddle_identity::authority::offline_root("root", Duration::from_secs(1 << 22), now).unwrap();
    write("tls.key", &root.key, 0o400);
    write("tls.crt", &root.certificate, 0o444);
    write("ca.crt", &root.certificate, 0o444);
    let keys = || heddle_identity::IssuerFiles::in_directory(folder.path()).read().unwrap();
    let authority =
        Authority::with_keys(IdentityNaming::default(), AuthoritySettings::default(), keys()).unwrap();
    let mut identities = told_by(&authority, now);
    let revoking = |serial: &str, identities: &Identities| {
        let revoked = heddle_identity::authority::revoke(
            keys(),
            None,
            &[serial.to_owned()],
            Duration::from_secs(3600),
            now,
        );
        Identities { revocation_lists: vec![revoked.unwrap().list], ..identities.clone() }
    };
    let chain =
        anchors_from_pem(identities.identities[0].certificate.as_ref().unwrap().chain.as_bytes()).unwrap();
    let serial = heddle_identity::CertificateFacts::of(&chain).unwrap().serial;
    let of = |identities: &Identities| judge(identities, &identities.identities[0], now);
    of(&identities).unwrap();
    of(&revoking("7f", &identities)).unwrap();
    let error = of(&revoking(&serial, &identities)).unwrap_err();
    assert!(error.to_lowercase().contains("revoked"), "{error}");

    let before = identities.warnings.len();
    warn_of_who_is_not_believed(&mut identities, now);
    assert_eq!(identities.warnings.len(), before, "the control");
    let mut revoked = revoking(&serial, &identities);
    warn_of_who_is_not_believed(&mut revoked, now);
    assert_eq!(revoked.warnings.len(), before + 1, "{:?}", revoked.warnings);
}
