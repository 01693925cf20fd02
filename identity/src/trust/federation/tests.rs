use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use super::*;
use crate::{
    Authority, AuthoritySettings, HandshakeFault, PeerFault, Standings, authority,
    testing::{Failed, Mesh, connect, db, hours, naming, start, web},
};

const EAST: &str = "east.example";

fn of_east() -> IdentityNaming {
    IdentityNaming::new("linkerd", EAST).unwrap()
}

/// The account `web` of the other trust domain: as ours is called, but for the domain.
fn far_web() -> IdentityName {
    of_east().name("shop", "web").unwrap()
}

/// A mesh that believes another trust domain's authority.
struct Pair {
    mesh: Mesh,
    east: Authority,
}

impl Pair {
    fn new() -> Self {
        let (mesh, east) = (Mesh::new(), authority_of(of_east()));
        mesh.trust.federate(EAST, east.anchors().to_vec(), &[]).unwrap();
        Self { mesh, east }
    }

    /// A key with a certificate of `signer` for `identity`, but for what `change` does to it.
    fn signed(
        &self,
        signer: &Authority,
        identity: &IdentityName,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Arc<rustls::sign::CertifiedKey> {
        let mut params = authority::leaf_params(identity, start(), start() + hours(24.0)).unwrap();
        change(&mut params);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let chain = [vec![signer.sign_anything(&params, &key)], signer.anchors()[1..].to_vec()].concat();
        self.mesh.certified(chain, &key)
    }

    /// Shows a certificate to a server of ours; what the server finds.
    fn shown_to_server(&self, key: Arc<rustls::sign::CertifiedKey>) -> Result<IdentityName, PeerFault> {
        let server = self.mesh.server(&db(), self.mesh.forge(&db(), |_| {}));
        match connect(self.mesh.client(key), &db(), server) {
            Ok((_, server)) => {
                Ok(self.mesh.trust.peer_identity(server.peer_certificates().unwrap()).unwrap().name().clone())
            }
            Err(Failed::Server(error)) => Err(fault(HandshakeFault::accepting(&error))),
            Err(Failed::Client(error)) => panic!("{error}"),
        }
    }

    /// Shows a certificate to a client of ours that asks for `name`; what the client finds.
    fn shown_to_client(
        &self,
        key: Arc<rustls::sign::CertifiedKey>,
        name: &IdentityName,
    ) -> Result<IdentityName, PeerFault> {
        let client = self.mesh.client(self.mesh.forge(&db(), |_| {}));
        match connect(client, name, self.mesh.server(name, key)) {
            Ok((client, _)) => {
                Ok(self.mesh.trust.peer_identity(client.peer_certificates().unwrap()).unwrap().name().clone())
            }
            Err(Failed::Client(error)) => Err(fault(HandshakeFault::connecting(&error))),
            Err(Failed::Server(error)) => panic!("{error}"),
        }
    }
}

fn fault(found: HandshakeFault) -> PeerFault {
    match found {
        HandshakeFault::Peer(fault) => fault,
        other => panic!("not the peer's fault: {other}"),
    }
}

fn authority_of(naming: IdentityNaming) -> Authority {
    Authority::in_memory(naming, AuthoritySettings::default(), start()).unwrap()
}

#[test]
fn another_trust_domains_workload_is_known_on_both_sides_by_its_own_anchors() {
    let pair = Pair::new();
    let key = pair.signed(&pair.east, &far_web(), |_| {});
    assert_eq!(pair.shown_to_server(Arc::clone(&key)), Ok(far_web()));
    assert_eq!(pair.shown_to_client(key, &far_web()), Ok(far_web()));
    // Our own are as they were.
    let own = pair.signed(&pair.mesh.authority, &web(), |_| {});
    assert_eq!(pair.shown_to_server(Arc::clone(&own)), Ok(web()));
    assert_eq!(pair.shown_to_client(own, &web()), Ok(web()));
}

/// What one domain's anchors say of another's names, whichever way round and however it is mixed.
#[test]
fn no_domains_anchors_vouch_for_anothers_names() {
    let pair = Pair::new();
    let west = IdentityNaming::new("linkerd", "west.example").unwrap();
    let third = authority_of(west.clone());
    pair.mesh.trust.federate("west.example", third.anchors().to_vec(), &[]).unwrap();
    let own = &pair.mesh.authority;
    let west_web = west.name("shop", "web").unwrap();
    for (signer, identity) in [
        (&pair.east, web()),
        (own, far_web()),
        (&third, far_web()),
        (&pair.east, west_web.clone()),
        (&third, web()),
        (own, west_web),
    ] {
        let key = pair.signed(signer, &identity, |_| {});
        assert!(matches!(pair.shown_to_server(Arc::clone(&key)), Err(PeerFault::Untrusted(_))), "{identity}");
        assert!(matches!(pair.shown_to_client(key, &identity), Err(PeerFault::Untrusted(_))), "{identity}");
    }
    // One name of each: whichever is believed, the other is not its domain's.
    for (signer, dns, uri) in [
        (&pair.east, web(), far_web()),
        (&pair.east, far_web(), web()),
        (own, web(), far_web()),
        (own, far_web(), web()),
    ] {
        let key = pair.signed(signer, &web(), |params| {
            params.subject_alt_names = vec![
                rcgen::SanType::DnsName(dns.dns().try_into().unwrap()),
                rcgen::SanType::URI(uri.spiffe().try_into().unwrap()),
            ];
        });
        pair.shown_to_server(Arc::clone(&key)).unwrap_err();
        pair.shown_to_client(key, &dns).unwrap_err();
    }
    // A second URI name hides nothing.
    let both = pair.signed(&pair.east, &far_web(), |params| {
        params.subject_alt_names.push(rcgen::SanType::URI(web().spiffe().try_into().unwrap()));
    });
    pair.shown_to_server(both).unwrap_err();
}

#[test]
fn a_domain_that_is_not_believed_any_longer_ends_what_rests_on_it_and_nothing_else() {
    let pair = Pair::new();
    let chain = |signer: &Authority, name: &IdentityName| pair.signed(signer, name, |_| {}).cert.clone();
    let standings = Standings::new(Arc::clone(&pair.mesh.trust));
    let far = standings.of(&chain(&pair.east, &far_web()), start());
    let own = standings.of(&chain(&pair.mesh.authority, &web()), start());
    assert!(far.holds() && own.holds());
    let held = pair.mesh.workload(&web());
    // Another anchor of the domain's beside the old one, then in its place.
    let other = authority_of(of_east());
    let both = [pair.east.anchors(), other.anchors()].concat();
    pair.mesh.trust.federate(EAST, both, &[]).unwrap();
    assert!(far.holds());
    assert!(pair.mesh.trust.separate(EAST));
    assert!(!pair.mesh.trust.separate(EAST));
    assert!(!far.holds() && own.holds());
    let key = pair.signed(&pair.east, &far_web(), |_| {});
    assert!(matches!(pair.shown_to_server(key), Err(PeerFault::Untrusted(_))));
    assert!(pair.mesh.trust.parse(far_web().spiffe()).is_err());
    // Nobody's own certificate is renewed for it.
    assert!(pair.mesh.store.due(start() + hours(1.0), 10).is_empty());
    assert!(held.server_config(start()).is_ok());
}

#[test]
fn what_cannot_be_used_leaves_the_last_in_force() {
    let pair = Pair::new();
    let trust = &pair.mesh.trust;
    let before = trust.federated();
    let fresh = || authority_of(of_east()).anchors().to_vec();
    assert!(matches!(trust.federate(EAST, Vec::new(), &[]), Err(FederationError::Trust(TrustError::Empty))));
    let leaf = pair.signed(&pair.east, &far_web(), |_| {}).cert.clone();
    assert!(matches!(trust.federate(EAST, leaf, &[]), Err(FederationError::Trust(_))));
    for name in ["", "East.example", "east..example", "east.example/", "*.example"] {
        assert!(matches!(trust.federate(name, fresh(), &[]), Err(FederationError::Name { .. })), "{name:?}");
    }
    // The own domain, and one whose account `a` of namespace `b` would be our account `a.b.serviceaccount...` of `c`.
    let own = naming().trust_domain().to_owned();
    for name in [own.clone(), format!("c.serviceaccount.identity.linkerd.{own}")] {
        assert!(
            matches!(trust.federate(&name, fresh(), &[]), Err(FederationError::Ambiguous { .. })),
            "{name}"
        );
    }
    assert_eq!(trust.federated(), before);
}

#[test]
fn an_anchor_is_one_domains_alone() {
    let pair = Pair::new();
    let (trust, own) = (&pair.mesh.trust, pair.mesh.authority.anchors().to_vec());
    let shared = FederationError::Shared { with: naming().trust_domain().to_owned() };
    assert_eq!(trust.federate("west.example", own.clone(), &[]), Err(shared));
    let east = pair.east.anchors().to_vec();
    let shared = FederationError::Shared { with: EAST.to_owned() };
    assert_eq!(trust.federate("west.example", east.clone(), &[]), Err(shared));
    assert_eq!(trust.reload([own, east.clone()].concat(), &[]), Err(TrustError::Shared(EAST.to_owned())));
    // The control: once they are nobody's.
    trust.separate(EAST);
    trust.federate("west.example", east, &[]).unwrap();
}

/// A domain's revocation list is its own.
#[test]
fn a_revoked_workload_of_another_domain_is_refused() {
    let pair = Pair::new();
    let key = pair.signed(&pair.east, &far_web(), |_| {});
    assert_eq!(pair.shown_to_server(Arc::clone(&key)), Ok(far_web()));
    let serial = crate::CertificateFacts::of(&key.cert).unwrap().serial;
    let bytes: Vec<u8> = (0..serial.len() / 2)
        .map(|at| u8::from_str_radix(&serial[at * 2..at * 2 + 2], 16).unwrap())
        .collect();
    let at = |hour: f64| time::OffsetDateTime::from(start() + hours(hour));
    let list = pair.east.revoking(&rcgen::CertificateRevocationListParams {
        this_update: at(0.0),
        next_update: at(24.0),
        crl_number: rcgen::SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(&bytes),
            revocation_time: at(0.0),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    });
    pair.mesh.trust.federate(EAST, pair.east.anchors().to_vec(), &[list]).unwrap();
    assert!(matches!(pair.shown_to_server(key), Err(PeerFault::Untrusted(_))));
    let another = pair.signed(&pair.east, &far_web(), |_| {});
    assert_eq!(pair.shown_to_server(another), Ok(far_web()), "control: the other certificate of the account");
}
