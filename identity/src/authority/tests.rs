use std::{
    os::unix::fs::{PermissionsExt, symlink},
    sync::{Arc, Barrier},
};

use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData};
use rustls::pki_types::CertificateSigningRequestDer;
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use super::*;
use crate::testing::{db, hours, naming, start, web};

fn authority() -> Authority {
    Authority::in_memory(naming(), AuthoritySettings::default(), start()).unwrap()
}

fn request_with(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> CertificateRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![
        SanType::DnsName(web().dns().try_into().unwrap()),
        SanType::URI(web().spiffe().try_into().unwrap()),
    ];
    change(&mut params);
    CertificateRequest { identity: web(), csr: params.serialize_request(key).unwrap().into() }
}

#[test]
fn a_certificate_has_exactly_what_a_workload_needs() {
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let request = CertificateRequest::new(&web(), &key).unwrap();
    let issued = authority.issue(&request, start()).unwrap();
    let [leaf] = &issued.chain[..] else { panic!("one certificate") };
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(leaf).unwrap();
    assert_eq!(leaf.subject().iter_rdn().count(), 0);
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::DNSName(web().dns()), GeneralName::URI(web().spiffe())]);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 1, "digitalSignature alone");
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any && usage.other.is_empty());
    assert!(!usage.code_signing && !usage.email_protection && !usage.time_stamping && !usage.ocsp_signing);
    let epoch = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert_eq!(leaf.validity().not_before.timestamp(), epoch(start()) - 20);
    assert_eq!(leaf.validity().not_after.timestamp(), epoch(start() + hours(24.0)));
    let again = authority.issue(&request, start()).unwrap();
    let (_, again) = x509_parser::certificate::X509Certificate::from_der(&again.chain[0]).unwrap();
    assert_ne!(leaf.raw_serial(), again.raw_serial());
    assert_eq!(leaf.raw_serial().len(), 16);
}

#[test]
fn the_root_signs_leaves_and_nothing_else() {
    let authority = authority();
    let (_, root) = x509_parser::certificate::X509Certificate::from_der(&authority.anchors()[0]).unwrap();
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = root.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature());
}

#[test]
fn requests_for_more_are_refused() {
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let issue = |request: &CertificateRequest| match authority.issue(request, start()) {
        Err(IssueError::Refused(error)) => error,
        other => panic!("not refused: {other:?}"),
    };
    authority.issue(&request_with(&key, |_| {}), start()).unwrap();
    let names = RequestError::Names { identity: web().to_string() };
    let cases: Vec<(&str, CertificateRequest, RequestError)> = vec![
        (
            "another name",
            CertificateRequest { identity: db(), ..request_with(&key, |_| {}) },
            RequestError::Names { identity: db().to_string() },
        ),
        (
            "an extra name",
            request_with(&key, |p| p.subject_alt_names.push(SanType::DnsName("a.b".try_into().unwrap()))),
            names.clone(),
        ),
        (
            "an extra URI",
            request_with(&key, |p| {
                p.subject_alt_names.push(SanType::URI("spiffe://a/b".try_into().unwrap()))
            }),
            names.clone(),
        ),
        ("the URI first", request_with(&key, |p| p.subject_alt_names.reverse()), names.clone()),
        (
            "an address",
            request_with(&key, |p| p.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()))),
            names,
        ),
        ("no names", request_with(&key, |p| p.subject_alt_names.clear()), RequestError::Extension),
        (
            "CA:TRUE",
            request_with(&key, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            RequestError::Extension,
        ),
        (
            "other usages",
            request_with(&key, |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            RequestError::Extension,
        ),
        (
            "other extended usages",
            request_with(&key, |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning)),
            RequestError::Extension,
        ),
        (
            "a common name",
            request_with(&key, |p| p.distinguished_name.push(DnType::CommonName, "web")),
            RequestError::Subject,
        ),
        (
            "a key on P-384",
            request_with(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), |_| {}),
            RequestError::Key,
        ),
        (
            "an Ed25519 key",
            request_with(&KeyPair::generate_for(&PKCS_ED25519).unwrap(), |_| {}),
            RequestError::Key,
        ),
    ];
    for (what, request, expected) in cases {
        assert_eq!(issue(&request), expected, "{what}");
    }
    let foreign = IdentityNaming::new("linkerd", "evil.local").unwrap().name("shop", "web").unwrap();
    let request = CertificateRequest::new(&foreign, &key).unwrap();
    assert!(matches!(issue(&request), RequestError::OtherTrustDomain { .. }));
}

#[test]
fn a_request_proves_that_its_sender_holds_the_key() {
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let good = request_with(&key, |_| {});
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut der = good.csr.to_vec();
        change(&mut der);
        CertificateRequest { identity: web(), csr: CertificateSigningRequestDer::from(der) }
    };
    let last = good.csr.len() - 1;
    for request in [
        damaged(&|der| der[last] ^= 1),
        damaged(&|der| der.push(0)),
        damaged(&|der| der.truncate(last)),
        damaged(&Vec::clear),
        damaged(&|der| der.resize(5000, 0)),
    ] {
        assert!(matches!(authority.issue(&request, start()), Err(IssueError::Refused(_))));
    }
    // Whatever bit is turned: no certificate, or the very same key and names.
    for at in 0..good.csr.len() {
        let request = damaged(&|der| der[at] ^= 0x20);
        if let Ok(issued) = authority.issue(&request, start()) {
            let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&issued.chain[0]).unwrap();
            assert_eq!(leaf.public_key().raw, key.subject_public_key_info(), "byte {at}");
            assert_eq!(crate::peer_identity(&naming(), &issued.chain).unwrap(), web(), "byte {at}");
        }
    }
    authority.issue(&good, start()).unwrap();
}

#[test]
fn nothing_outlives_the_root() {
    let authority = authority();
    let request = CertificateRequest::new(&web(), &KeyPair::generate().unwrap()).unwrap();
    let end = start() + ROOT_LIFETIME;
    let expires =
        |at: SystemTime| crate::profile::not_after(&authority.issue(&request, at).unwrap().chain).unwrap();
    assert_eq!(expires(end - hours(25.0)), end - hours(1.0));
    assert_eq!(expires(end - hours(23.0)), end, "cut short");
    assert!(matches!(authority.issue(&request, end - Duration::from_secs(59)), Err(IssueError::Unable(_))));
}

#[test]
fn settings_that_contradict_themselves_are_refused() {
    for settings in [
        AuthoritySettings { lifetime: Duration::from_secs(5), ..AuthoritySettings::default() },
        AuthoritySettings { clock_skew: hours(24.0), ..AuthoritySettings::default() },
    ] {
        let refused = Authority::in_memory(naming(), settings, start());
        assert!(matches!(refused, Err(AuthorityError::Setting { .. })));
    }
}

fn in_folder(path: &std::path::Path) -> Result<Authority, AuthorityError> {
    Authority::in_folder(path, naming(), AuthoritySettings::default(), start())
}

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_folder_is_made_private_and_found_again() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("ca");
    let first = in_folder(&folder).unwrap();
    let second = in_folder(&folder).unwrap();
    assert_eq!(first.anchors(), second.anchors());
    let request = CertificateRequest::new(&web(), &KeyPair::generate().unwrap()).unwrap();
    second.issue(&request, start()).unwrap();
    assert_eq!((mode(&folder), mode(&folder.join("authority.pem"))), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "no draft is left");
    assert!(in_folder(&parent.path().join("no/parent")).is_err());
}

#[test]
fn agents_that_start_at_once_end_with_one_root() {
    for _ in 0..20 {
        let parent = tempfile::tempdir().unwrap();
        let folder = Arc::new(parent.path().join("ca"));
        let barrier = Arc::new(Barrier::new(8));
        let agents: Vec<_> = (0..8)
            .map(|_| {
                let (folder, barrier) = (Arc::clone(&folder), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    barrier.wait();
                    in_folder(&folder).unwrap().anchors()[0].clone()
                })
            })
            .collect();
        let mut roots: Vec<_> = agents.into_iter().map(|agent| agent.join().unwrap()).collect();
        roots.dedup();
        assert_eq!(roots.len(), 1);
        assert_eq!(std::fs::read_dir(&*folder).unwrap().count(), 1);
    }
}

#[test]
fn what_others_may_touch_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("ca");
    let file = folder.join("authority.pem");
    let root = in_folder(&folder).unwrap().anchors()[0].clone();
    let refused = |why: &str| {
        let error = in_folder(&folder).unwrap_err();
        assert!(matches!(error, AuthorityError::Unsafe { .. }), "{why}: {error}");
        assert!(error.to_string().contains(why), "{why}: {error}");
    };
    for bits in [0o750, 0o701, 0o720] {
        set_mode(&folder, bits);
        refused("others may use it");
    }
    set_mode(&folder, 0o700);
    for bits in [0o640, 0o604, 0o620] {
        set_mode(&file, bits);
        refused("others may use it");
    }
    set_mode(&file, 0o600);
    assert_eq!(in_folder(&folder).unwrap().anchors()[0], root);

    let real = folder.join("elsewhere.pem");
    std::fs::rename(&file, &real).unwrap();
    symlink(&real, &file).unwrap();
    refused("symbolic link");
    std::fs::remove_file(&file).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &file,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    refused("not a regular file");
    std::fs::remove_file(&file).unwrap();
    std::fs::rename(&real, &file).unwrap();
    in_folder(&folder).unwrap();

    let link = parent.path().join("link");
    symlink(&folder, &link).unwrap();
    assert!(matches!(in_folder(&link), Err(AuthorityError::Unsafe { .. })));
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
        refused("belongs to user 12345");
    }
}

#[test]
fn what_is_no_authority_is_refused_and_never_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("ca");
    let file = folder.join("authority.pem");
    in_folder(&folder).unwrap();
    let good = std::fs::read_to_string(&file).unwrap();
    let (key, root) = good.split_at(good.find("-----BEGIN CERTIFICATE").unwrap());
    let other_root = make_root(&naming(), &AuthoritySettings::default(), start()).unwrap().1.pem();
    for bad in [
        String::new(),
        "garbage".to_owned(),
        key.to_owned(),
        root.to_owned(),
        format!("{key}{root}{root}"),
        format!("{key}{other_root}"),
        good.replace("MII", "MIJ"),
    ] {
        std::fs::write(&file, &bad).unwrap();
        let error = in_folder(&folder).unwrap_err();
        assert!(matches!(error, AuthorityError::Content { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), bad, "left as it was");
    }
    std::fs::write(&file, &good).unwrap();
    in_folder(&folder).unwrap();
}
