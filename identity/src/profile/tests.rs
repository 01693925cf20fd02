//! What SPIRE makes is believed where SPIRE issues, and nothing looser.

use rcgen::{CertificateParams, DnType, SanType};

use super::*;
use crate::{
    testing::{Mesh, connect, db, web},
    tls::verify_chain,
};

type Change = fn(&mut CertificateParams);
/// As whom a certificate is believed; `None`: as nobody.
type Expected = Option<fn(IdentityName) -> PeerIdentity>;

fn dns(name: &IdentityName) -> SanType {
    SanType::DnsName(name.dns().try_into().unwrap())
}

fn uri(name: &IdentityName) -> SanType {
    SanType::URI(name.spiffe().try_into().unwrap())
}

/// As SPIRE does by itself: a subject, the first DNS name in it, the URI name first.
fn of_spire(params: &mut CertificateParams) {
    params.distinguished_name.push(DnType::CountryName, "US");
    params.distinguished_name.push(DnType::OrganizationName, "SPIRE");
    params.distinguished_name.push(DnType::CommonName, web().dns());
    params.subject_alt_names = vec![uri(&web()), dns(&web())];
}

fn alone(params: &mut CertificateParams) {
    params.distinguished_name.push(DnType::OrganizationName, "SPIRE");
    params.subject_alt_names = vec![uri(&web())];
}

#[test]
fn what_spire_makes_is_believed_where_spire_issues_and_nothing_looser() {
    let (spire, heddle) = (Mesh::of_spire(), Mesh::new());
    let whole: Expected = Some(PeerIdentity::Whole);
    let cases: [(&str, Change, Expected); 9] = [
        ("as Heddle makes it", |_| {}, whole),
        ("as SPIRE makes it", of_spire, whole),
        ("a SPIFFE name alone", alone, Some(PeerIdentity::SpiffeAlone)),
        (
            "another common name",
            |params| {
                of_spire(params);
                params.distinguished_name.push(DnType::CommonName, db().dns());
            },
            None,
        ),
        (
            "a common name and no DNS name",
            |params| {
                alone(params);
                params.distinguished_name.push(DnType::CommonName, web().dns());
            },
            None,
        ),
        ("a second DNS name", |params| params.subject_alt_names.push(dns(&db())), None),
        ("a second URI name", |params| params.subject_alt_names.push(uri(&db())), None),
        ("two identities", |params| params.subject_alt_names = vec![uri(&web()), dns(&db())], None),
        ("a DNS name alone", |params| params.subject_alt_names = vec![dns(&web())], None),
    ];
    for (what, change, expected) in cases {
        let expected = expected.map(|expected| expected(web()));
        let client = |mesh: &Mesh| {
            let peer = mesh.forge(&db(), |_| {});
            let key = mesh.forge(&web(), change);
            let (_, server) = connect(mesh.client(key), &db(), mesh.server(&db(), peer)).ok()?;
            mesh.trust.peer_identity(server.peer_certificates().unwrap()).ok()
        };
        let server = |mesh: &Mesh| {
            let peer = mesh.forge(&db(), |_| {});
            let key = mesh.forge(&web(), change);
            connect(mesh.client(peer), &web(), mesh.server(&web(), key)).is_ok()
        };
        assert_eq!(client(&spire), expected, "{what}, as a client");
        assert_eq!(server(&spire), matches!(expected, Some(PeerIdentity::Whole(_))), "{what}, as a server");
        // Where Heddle issues, nothing but Heddle's own is believed.
        let ours = what == "as Heddle makes it";
        assert_eq!((client(&heddle).is_some(), server(&heddle)), (ours, ours), "{what}, where Heddle issues");
    }
    let chain = &spire.forge(&web(), alone).cert;
    let told = verify_chain(&spire.trust, chain, &web(), crate::testing::start()).unwrap_err();
    assert!(told.contains("the SPIFFE name alone"), "{told}");
    verify_chain(&spire.trust, &spire.forge(&web(), of_spire).cert, &web(), crate::testing::start()).unwrap();
}
