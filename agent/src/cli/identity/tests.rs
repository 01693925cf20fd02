use super::*;
use crate::cli::door::{AnchorStatus, CertificateStatus};
use heddle_identity::{Authority, AuthoritySettings, CertificateRequest, pem};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use std::time::Duration;

fn told(now: SystemTime) -> Identities {
    let naming = IdentityNaming::default();
    let authority = Authority::in_memory(naming.clone(), AuthoritySettings::default(), now).unwrap();
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
