use std::{sync::Arc, time::Duration};

use rcgen::{
    CertificateParams, CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint,
    CrlScope, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::{ClientConfig, ServerConfig};

use super::*;
use crate::{
    Standings, TrustError,
    testing::{Failed, Mesh, connect, db, hours, start, web},
};

type Revocations = CertificateRevocationListDer<'static>;

fn serial(certificate: &CertificateDer<'_>) -> SerialNumber {
    SerialNumber::from_slice(profile::parse(certificate).unwrap().raw_serial())
}

fn params(revoked: &[SerialNumber], at: SystemTime) -> CertificateRevocationListParams {
    let entry = |serial: &SerialNumber| RevokedCertParams {
        serial_number: serial.clone(),
        revocation_time: at.into(),
        reason_code: None,
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: at.into(),
        next_update: (at + hours(24.0)).into(),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

/// A mesh with a client and a server that speak to each other, and what each is certified by.
struct Pair {
    mesh: Mesh,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    client_leaf: CertificateDer<'static>,
    server_leaf: CertificateDer<'static>,
}

impl Pair {
    fn new() -> Self {
        let mesh = Mesh::new();
        let (client_key, server_key) = (mesh.forge(&web(), |_| {}), mesh.forge(&db(), |_| {}));
        let (client_leaf, server_leaf) = (client_key.cert[0].clone(), server_key.cert[0].clone());
        let client = Arc::new(mesh.client(client_key));
        let server = Arc::new(mesh.server(&db(), server_key));
        Self { mesh, client, server, client_leaf, server_leaf }
    }

    fn connect(&self) -> Result<(), Failed> {
        connect(Arc::clone(&self.client), &db(), Arc::clone(&self.server)).map(drop)
    }

    fn put(&self, lists: &[Revocations]) -> Result<(), TrustError> {
        self.mesh.trust.reload(self.mesh.authority.anchors().to_vec(), lists)
    }

    fn revoking(&self, revoked: &[SerialNumber], at: SystemTime) -> Revocations {
        self.mesh.authority.revoking(&params(revoked, at))
    }
}

fn is_revocation(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Revoked))
}

#[test]
fn who_is_revoked_is_refused_on_either_side() {
    let pair = Pair::new();
    pair.connect().unwrap();
    pair.put(&[pair.revoking(&[], start())]).unwrap();
    pair.connect().expect("control: a list that names somebody else");
    pair.put(&[pair.revoking(&[serial(&pair.client_leaf)], start())]).unwrap();
    let Failed::Server(error) = pair.connect().unwrap_err() else { panic!("the server refuses") };
    assert!(is_revocation(&error), "{error}");
    pair.put(&[pair.revoking(&[serial(&pair.server_leaf)], start())]).unwrap();
    let Failed::Client(error) = pair.connect().unwrap_err() else { panic!("the client refuses") };
    assert!(is_revocation(&error), "{error}");
}

#[test]
fn what_rests_on_a_revoked_certificate_falls() {
    let pair = Pair::new();
    let standings = Standings::new(Arc::clone(&pair.mesh.trust));
    let chain = [pair.client_leaf.clone()];
    let (revoked, other) =
        (standings.of(&chain, start()), standings.of(std::slice::from_ref(&pair.server_leaf), start()));
    assert!(revoked.holds() && other.holds());
    pair.put(&[pair.revoking(&[serial(&pair.client_leaf)], start())]).unwrap();
    assert!(!revoked.holds());
    assert!(other.holds(), "control: nobody else falls");
}

/// Whatever is wrong with a list, the last one stays in force.
#[test]
fn a_list_that_cannot_be_used_leaves_the_last_in_force() {
    let pair = Pair::new();
    let revoked = [serial(&pair.client_leaf)];
    pair.put(&[pair.revoking(&revoked, start())]).unwrap();
    pair.connect().unwrap_err();
    let good = pair.revoking(&[], start() + hours(1.0));
    let changed = |at: usize| {
        let mut bytes = good.to_vec();
        let at = if at == 0 { bytes.len() - 3 } else { at };
        bytes[at] ^= 1;
        Revocations::from(bytes)
    };
    let partial = CertificateRevocationListParams {
        issuing_distribution_point: Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec!["http://ca/part".to_owned()] },
            scope: Some(CrlScope::UserCertsOnly),
        }),
        ..params(&[], start() + hours(1.0))
    };
    for (what, list) in [
        ("cut", Revocations::from(good[..good.len() - 1].to_vec())),
        ("longer", Revocations::from([&good[..], &[0]].concat())),
        ("another signature", changed(0)),
        ("of before", pair.revoking(&[], start() - hours(1.0))),
        ("a part", pair.mesh.authority.revoking(&partial)),
        ("no list", Revocations::from(pair.client_leaf.to_vec())),
    ] {
        let error = pair.put(&[list]).expect_err(what);
        assert!(matches!(error, TrustError::List(ListError { index: 1, .. })), "{what}: {error}");
        pair.connect().expect_err(what);
    }
    pair.put(&[good]).expect("control: the list that was broken above");
    pair.connect().unwrap();
}

/// Another authority with the same name, as when a root is replaced: its list says nothing of the first one's certificates.
#[test]
fn a_list_speaks_for_its_own_issuer_alone() {
    let (pair, other) = (Pair::new(), Mesh::new());
    let anchors = [pair.mesh.authority.anchors(), other.authority.anchors()].concat();
    let foreign = other.authority.revoking(&params(&[serial(&pair.client_leaf)], start()));
    pair.mesh.trust.reload(anchors.clone(), std::slice::from_ref(&foreign)).unwrap();
    pair.connect().unwrap();
    let own = pair.revoking(&[serial(&pair.client_leaf)], start());
    pair.mesh.trust.reload(anchors, &[foreign, own]).unwrap();
    pair.connect().expect_err("control");
}

/// An issuer between: the root revokes it, and its own list counts along the verified path.
#[test]
fn issuers_are_revoked_too_and_an_issuers_own_list_counts() {
    let mesh = Mesh::new();
    let mut sub = CertificateParams::default();
    sub.distinguished_name.push(rcgen::DnType::CommonName, "between");
    sub.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    sub.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    sub.not_before = start().into();
    sub.not_after = (start() + hours(24.0)).into();
    sub.serial_number = Some(SerialNumber::from(77));
    let mut root = sub.clone();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.distinguished_name.push(rcgen::DnType::OrganizationName, "root");
    let root_key = KeyPair::generate().unwrap();
    let anchor: CertificateDer<'static> = root.self_signed(&root_key).unwrap().into();
    let root = Issuer::new(root, root_key);
    let sub_key = KeyPair::generate().unwrap();
    let between: CertificateDer<'static> = sub.signed_by(&sub_key, &root).unwrap().into();
    let issuer = Issuer::new(sub, sub_key);
    let day = Duration::from_secs(24 * 3600);
    let certified = |identity: &crate::IdentityName| {
        let leaf = crate::authority::leaf_params(identity, start(), start() + day).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf: CertificateDer<'static> = leaf.signed_by(&key, &issuer).unwrap().into();
        (leaf.clone(), mesh.certified(vec![leaf, between.clone()], &key))
    };
    let (leaf, client) = certified(&web());
    let (_, server) = certified(&db());
    let (client, server) = (Arc::new(mesh.client(client)), Arc::new(mesh.server(&db(), server)));
    let connects = || connect(Arc::clone(&client), &db(), Arc::clone(&server)).is_ok();
    let list = |serials: &[SerialNumber], by: &Issuer<'_, KeyPair>| -> Revocations {
        params(serials, start()).signed_by(by).unwrap().into()
    };
    let put = |lists: &[Revocations]| mesh.trust.reload(vec![anchor.clone()], lists).unwrap();
    put(&[list(&[], &root), list(&[], &issuer)]);
    assert!(connects(), "control");
    put(&[list(&[serial(&between)], &root)]);
    assert!(!connects(), "the issuer is revoked");
    put(&[list(&[serial(&leaf)], &issuer)]);
    assert!(!connects(), "the leaf is revoked by its issuer");
    // Its signature is held against the issuer's key when the path is there: it does not hold, and nobody is believed.
    let mut forged = list(&[], &issuer).to_vec();
    let last = forged.len() - 3;
    forged[last] ^= 1;
    put(&[]);
    assert!(connects());
    put(&[Revocations::from(forged)]);
    assert!(!connects());
}

#[test]
fn a_list_whose_successor_is_late_stays_in_force_and_is_told() {
    let pair = Pair::new();
    pair.put(&[pair.revoking(&[serial(&pair.client_leaf)], start())]).unwrap();
    let trust = &pair.mesh.trust;
    assert_eq!(trust.overdue(start() + hours(23.0)), None);
    assert_eq!(trust.overdue(start() + hours(25.0)), Some(start() + hours(24.0)));
    pair.mesh.clock.set(start() + hours(23.9));
    pair.connect().unwrap_err();
    assert!(lists_from_pem(b"").unwrap().is_empty());
    let list = pair.revoking(&[], start());
    let pem = pem::encode(&pem::Pem::new("X509 CRL", list.to_vec()));
    assert_eq!(lists_from_pem(pem.as_bytes()).unwrap(), [list]);
    lists_from_pem(pem.replace("MI", "M!").as_bytes()).unwrap_err();
}

#[test]
fn a_list_that_leaves_the_bundle_is_told_until_it_is_back_or_its_issuer_is_gone() {
    let pair = Pair::new();
    let trust = &pair.mesh.trust;
    let told =
        |at: f64| trust.withdrawn(start() + hours(at)).into_iter().map(|it| it.revoked).collect::<Vec<_>>();
    let list = || pair.revoking(&[serial(&pair.client_leaf)], start());
    pair.put(&[list()]).unwrap();
    assert!(told(1.0).is_empty());
    pair.connect().unwrap_err();

    pair.put(&[]).unwrap();
    pair.connect().unwrap();
    assert_eq!(told(1.0), [1]);
    assert_eq!(trust.withdrawn(start())[0].issuer, "CN=Heddle root of cluster.local");
    pair.put(&[]).unwrap();
    assert_eq!(told(1.0), [1], "another change does not settle it");
    assert!(told(25.0).is_empty(), "its time is over");

    pair.put(&[list()]).unwrap();
    assert!(told(1.0).is_empty(), "it is back");
    pair.connect().unwrap_err();

    // With another anchor beside it, and then without its own.
    let anchors = || pair.mesh.authority.anchors().to_vec();
    let others = Mesh::new().authority.anchors().to_vec();
    trust.reload([anchors(), others.clone()].concat(), &[]).unwrap();
    assert_eq!(told(1.0), [1]);
    trust.reload(anchors(), &[]).unwrap();
    assert_eq!(told(1.0), [1], "its own is still there");
    let elsewhere = Mesh::new().authority.anchors().to_vec();
    trust.reload(elsewhere, &[]).unwrap();
    assert!(told(1.0).is_empty(), "its issuer is gone");
    pair.put(&[pair.revoking(&[], start())]).unwrap();
    pair.put(&[]).unwrap();
    assert!(told(1.0).is_empty(), "a list that revokes nobody is none that is missed");
}
