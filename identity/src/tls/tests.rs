use std::{net::IpAddr, sync::Arc, time::Duration};

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::{
    AlertDescription, ClientConfig, Error, HandshakeKind, NamedGroup, ServerConnection,
    client::{ClientSessionMemoryCache, Resumption},
    crypto::aws_lc_rs::{Ticketer, default_provider, kx_group},
    server::ServerSessionMemoryCache,
    version::{TLS12, TLS13},
};

use super::*;
use crate::{
    PeerNameError, Trust,
    testing::{Failed, Mesh, connect, db, handshake, hours, naming, settings_at, start, web},
};

fn forged_pair(mesh: &Mesh) -> (ClientConfig, ServerConfig) {
    (mesh.client(mesh.forge(&web(), |_| {})), mesh.server(&db(), mesh.forge(&db(), |_| {})))
}

fn fault_of(failed: Failed) -> PeerFault {
    let fault = match failed {
        Failed::Client(error) => HandshakeFault::connecting(&error),
        Failed::Server(error) => HandshakeFault::accepting(&error),
    };
    match fault {
        HandshakeFault::Peer(fault) => fault,
        other => panic!("not the peer's fault: {other}"),
    }
}

fn server_refuses(client: ClientConfig, server: ServerConfig) -> PeerFault {
    match connect(client, &db(), server) {
        Err(failed @ Failed::Server(_)) => fault_of(failed),
        other => panic!("the server did not refuse: {other:?}"),
    }
}

fn client_refuses(client: ClientConfig, server: ServerConfig) -> PeerFault {
    match connect(client, &db(), server) {
        Err(failed @ Failed::Client(_)) => fault_of(failed),
        other => panic!("the client did not refuse: {other:?}"),
    }
}

#[test]
fn a_pair_knows_each_other_over_the_hybrid_key_exchange() {
    let mesh = Mesh::new();
    let (client, server) = (mesh.workload(&web()), mesh.workload(&db()));
    let asked = client.client(&db(), start()).unwrap();
    let client = rustls::ClientConnection::new(asked.config, asked.server_name).unwrap();
    let server = ServerConnection::new(server.server_config(start()).unwrap()).unwrap();
    assert!(matches!(confirm(&client, &naming()), Err(HandshakeFault::Misuse(_))));
    let (client, server) = handshake(client, server).unwrap();
    let not_after = start() + hours(24.0);
    assert_eq!(confirm(&client, &naming()).unwrap(), Peer { identity: db(), not_after });
    assert_eq!(confirm(&server, &naming()).unwrap(), Peer { identity: web(), not_after });
    for side in [client.negotiated_key_exchange_group(), server.negotiated_key_exchange_group()] {
        assert_eq!(side.unwrap().name(), NamedGroup::X25519MLKEM768);
    }
    assert_eq!(
        client.handshake_kind(),
        Some(HandshakeKind::Full),
        "no retry: the first share is the one that is used"
    );
}

#[test]
fn a_peer_without_the_hybrid_key_exchange_is_served_too() {
    let mesh = Mesh::new();
    let (_, server) = forged_pair(&mesh);
    let mut tls = settings_at(start());
    let mut old = super::provider();
    old.kx_groups = vec![kx_group::SECP256R1];
    tls.provider = Arc::new(old);
    let client = client_config(mesh.forge(&web(), |_| {}), &mesh.trust, &tls).unwrap();
    let (client, _) = connect(client, &db(), server).unwrap();
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::secp256r1);
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let (client, server) = forged_pair(&mesh);
    let mut bare =
        ClientConfig::builder_with_details(Arc::clone(&mesh.tls.provider), Arc::clone(&mesh.tls.time))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::Servers::new(Arc::clone(&mesh.trust))))
            .with_no_client_auth();
    bare.alpn_protocols = vec![ALPN.to_vec()];
    assert_eq!(server_refuses(bare.clone(), server.clone()), PeerFault::NoCertificate);
    // Control: the same client with a certificate.
    bare.client_auth_cert_resolver = client.client_auth_cert_resolver;
    connect(bare, &db(), server).unwrap();
}

#[test]
fn a_self_made_authority_is_believed_by_neither_side() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let (client, server) = forged_pair(&mesh);
    let strange_client = mesh.client(other.forge(&web(), |_| {}));
    let strange_server = mesh.server(&db(), other.forge(&db(), |_| {}));
    assert!(matches!(server_refuses(strange_client, server.clone()), PeerFault::Untrusted(_)));
    assert!(matches!(client_refuses(client.clone(), strange_server), PeerFault::Untrusted(_)));
    connect(client, &db(), server).unwrap();
}

#[test]
fn a_server_of_another_identity_is_refused_by_the_client() {
    let mesh = Mesh::new();
    let (client, server) = forged_pair(&mesh);
    // Serves under db's name with web's certificate: no honest agent does.
    let impostor = mesh.server(&db(), mesh.forge(&web(), |_| {}));
    let fault = client_refuses(client.clone(), impostor);
    assert!(matches!(&fault, PeerFault::WrongIdentity { expected, .. } if expected == db().dns()), "{fault}");
    assert_eq!(HandshakeFault::from(fault).reason(), heddle_ebpf::codes::Reason::WrongIdentity);
    connect(client, &db(), server).unwrap();
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

type Change = fn(&mut CertificateParams);

/// Certificates of the right authority with one thing wrong, each refused by both sides.
const FORGERIES: &[(&str, Change)] = &[
    ("two URI names", |p| p.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/admin"))),
    ("the same URI name twice", |p| p.subject_alt_names.push(p.subject_alt_names[1].clone())),
    ("an extra DNS name", |p| {
        p.subject_alt_names.push(dns("admin.shop.serviceaccount.identity.linkerd.cluster.local"))
    }),
    ("an IP address", |p| p.subject_alt_names.push(SanType::IpAddress(IpAddr::from([10, 0, 0, 1])))),
    ("a mail address", |p| p.subject_alt_names.push(SanType::Rfc822Name("a@b".try_into().unwrap()))),
    ("a common name", |p| p.distinguished_name.push(DnType::CommonName, "web")),
    ("an organization", |p| p.distinguished_name.push(DnType::OrganizationName, "shop")),
    ("no URI name", |p| p.subject_alt_names.truncate(1)),
    ("URI of another identity", |p| p.subject_alt_names[1] = uri("spiffe://cluster.local/ns/shop/sa/admin")),
    ("URI of another trust domain", |p| p.subject_alt_names[1] = uri("spiffe://evil.local/ns/shop/sa/web")),
    ("URI that would have to be normalized", |p| {
        p.subject_alt_names[1] = uri("spiffe://cluster.local/ns/shop/sa/x/../web");
    }),
    ("the identity's name as URI and a URI as DNS name", |p| {
        p.subject_alt_names =
            vec![uri("web.shop.serviceaccount.identity.linkerd.cluster.local"), dns("spiffe.cluster.local")];
    }),
    ("CA:TRUE", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
    ("may sign certificates", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
    ("no key usage", |p| p.key_usages.clear()),
    ("no extended key usage", |p| p.extended_key_usages.clear()),
    ("any extended key usage", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
    ("for signing code", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
    ("for signing code, too", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning)),
    ("for anything, too", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any)),
    ("for something unknown, too", |p| {
        p.extended_key_usages.push(ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 99999, 1]));
    }),
    ("for key agreement, too", |p| p.key_usages.push(KeyUsagePurpose::KeyAgreement)),
    ("expired", |p| p.not_after = (start() - hours(0.1)).into()),
    ("not yet valid", |p| p.not_before = (start() + hours(0.1)).into()),
];

#[test]
fn forgeries_are_refused_by_both_sides() {
    let mesh = Mesh::new();
    let (client, server) = forged_pair(&mesh);
    // Controls: nothing changed, and the names in the other order, which spell the same.
    connect(client.clone(), &db(), server.clone()).unwrap();
    let swapped = mesh.client(mesh.forge(&web(), |p| p.subject_alt_names.reverse()));
    connect(swapped, &db(), server.clone()).unwrap();
    for (what, change) in FORGERIES {
        let fault = server_refuses(mesh.client(mesh.forge(&web(), change)), server.clone());
        assert!(matches!(fault, PeerFault::Name(_) | PeerFault::Untrusted(_)), "client with {what}: {fault}");
        let fault = client_refuses(client.clone(), mesh.server(&db(), mesh.forge(&db(), change)));
        assert!(
            matches!(fault, PeerFault::Name(_) | PeerFault::Untrusted(_) | PeerFault::WrongIdentity { .. }),
            "server with {what}: {fault}"
        );
    }
}

#[test]
fn a_wildcard_that_covers_the_name_is_refused() {
    let mesh = Mesh::new();
    let (client, server) = forged_pair(&mesh);
    let star: Change =
        |p| p.subject_alt_names[0] = dns("*.shop.serviceaccount.identity.linkerd.cluster.local");
    // webpki alone would accept it: the profile refuses it.
    let fault = client_refuses(client.clone(), mesh.server(&db(), mesh.forge(&db(), star)));
    assert!(matches!(fault, PeerFault::Name(PeerNameError::NotAnIdentity { .. })), "{fault}");
    let fault = server_refuses(mesh.client(mesh.forge(&web(), star)), server);
    assert!(matches!(fault, PeerFault::Name(PeerNameError::NotAnIdentity { .. })), "{fault}");
}

#[test]
fn a_certificate_serves_only_the_side_it_is_for() {
    let mesh = Mesh::new();
    let (client, server) = forged_pair(&mesh);
    let server_only: Change = |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let client_only: Change = |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    server_refuses(mesh.client(mesh.forge(&web(), server_only)), server.clone());
    client_refuses(client.clone(), mesh.server(&db(), mesh.forge(&db(), client_only)));
    connect(mesh.client(mesh.forge(&web(), client_only)), &db(), server).unwrap();
    connect(client, &db(), mesh.server(&db(), mesh.forge(&db(), server_only))).unwrap();
}

#[test]
fn a_server_shows_nothing_to_who_asks_for_another_name() {
    let mesh = Mesh::new();
    let (client, server) = forged_pair(&mesh);
    for name in [web(), naming().name("shop", "db2").unwrap()] {
        match connect(client.clone(), &name, server.clone()) {
            Err(failed @ Failed::Server(_)) => assert_eq!(fault_of(failed), PeerFault::NotOurs),
            other => panic!("asked for {name}: {other:?}"),
        }
    }
    let mut silent = client.clone();
    silent.enable_sni = false;
    assert_eq!(server_refuses(silent, server.clone()), PeerFault::NotOurs);
    connect(client, &db(), server).unwrap();
}

#[test]
fn both_sides_demand_the_mesh_protocol() {
    let mesh = Mesh::new();
    let (client, server) = forged_pair(&mesh);
    for offered in [vec![], vec![b"h2".to_vec()]] {
        let mut other = client.clone();
        other.alpn_protocols = offered;
        assert_eq!(server_refuses(other, server.clone()), PeerFault::NotOurs);
    }
    // A server that chooses no protocol finishes the handshake; the client's confirm notices.
    let mut mute = server.clone();
    mute.alpn_protocols.clear();
    let (mute_client, _) = connect(client.clone(), &db(), mute).unwrap();
    assert_eq!(confirm(&mute_client, &naming()), Err(PeerFault::NotOurs.into()));
    let (client, _) = connect(client, &db(), server).unwrap();
    confirm(&client, &naming()).unwrap();
}

#[test]
fn tls_1_2_is_refused_by_both_sides() {
    let mesh = Mesh::new();
    let (client, server) = forged_pair(&mesh);
    let old = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let mut old =
            ClientConfig::builder_with_details(Arc::new(default_provider()), Arc::clone(&mesh.tls.time))
                .with_protocol_versions(versions)
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verify::Servers::new(Arc::clone(&mesh.trust))))
                .with_client_cert_resolver(Arc::clone(&client.client_auth_cert_resolver));
        old.alpn_protocols = vec![ALPN.to_vec()];
        old
    };
    assert!(matches!(server_refuses(old(&[&TLS12]), server.clone()), PeerFault::Protocol(_)));
    connect(old(&[&TLS13]), &db(), server.clone()).unwrap();
    let mut old_server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&server.cert_resolver));
    old_server.alpn_protocols = vec![ALPN.to_vec()];
    match connect(client, &db(), old_server) {
        Err(failed) => assert!(matches!(fault_of(failed), PeerFault::Protocol(_))),
        Ok(_) => panic!("TLS 1.2 was spoken"),
    }
}

#[test]
fn sessions_are_never_resumed() {
    let mesh = Mesh::new();
    let (client, server) = forged_pair(&mesh);
    // A client that would resume wherever it can, early data included.
    let mut eager = client.clone();
    eager.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
    eager.enable_early_data = true;
    let eager = Arc::new(eager);
    let twice = |server: ServerConfig| {
        let server = Arc::new(server);
        connect(Arc::clone(&eager), &db(), Arc::clone(&server)).unwrap();
        let (again, _) = connect(Arc::clone(&eager), &db(), server).unwrap();
        again.handshake_kind()
    };
    assert_eq!(twice(server.clone()), Some(HandshakeKind::Full));
    // Control: the same client does resume with a server that lets it.
    let mut lenient = server;
    lenient.session_storage = ServerSessionMemoryCache::new(8);
    lenient.ticketer = Ticketer::new().unwrap();
    lenient.send_tls13_tickets = 2;
    assert_eq!(twice(lenient.clone()), Some(HandshakeKind::Resumed));
    // And our client resumes not even there.
    let (client, lenient) = (Arc::new(client), Arc::new(lenient));
    connect(Arc::clone(&client), &db(), Arc::clone(&lenient)).unwrap();
    let (again, _) = connect(client, &db(), lenient).unwrap();
    assert_eq!(again.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn an_anchor_that_is_gone_is_believed_no_longer() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let (client, server) = forged_pair(&mesh);
    let (client, server) = (Arc::new(client), Arc::new(server));
    connect(Arc::clone(&client), &db(), Arc::clone(&server)).unwrap();
    assert_eq!(mesh.trust.generation(), 1);
    mesh.trust.reload(vec![other.authority.anchors()[0].clone()], &[]).unwrap();
    assert_eq!(mesh.trust.generation(), 2);
    connect(Arc::clone(&client), &db(), Arc::clone(&server)).unwrap_err();
    // What cannot be used leaves what is in force as it is.
    mesh.trust.reload(vec![], &[]).unwrap_err();
    connect(Arc::clone(&client), &db(), Arc::clone(&server)).unwrap_err();
    mesh.trust
        .reload(vec![other.authority.anchors()[0].clone(), mesh.authority.anchors()[0].clone()], &[])
        .unwrap();
    connect(client, &db(), server).unwrap();
}

/// A chain through a subordinate authority that may name only what `permitted` says.
fn through_subordinate(permitted: &str, length: usize) -> (Mesh, Arc<CertifiedKey>) {
    let mesh = Mesh::new();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = start().into();
    params.not_after = (start() + hours(24.0)).into();
    let root_key = KeyPair::generate().unwrap();
    let root = params.self_signed(&root_key).unwrap();
    mesh.trust.reload(vec![root.der().clone()], &[]).unwrap();
    let mut issuer = Issuer::new(params.clone(), root_key);
    let mut chain = Vec::new();
    for depth in 0..length {
        let mut sub = params.clone();
        sub.distinguished_name.push(DnType::CommonName, format!("subordinate {depth}"));
        sub.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(permitted.to_owned())],
            excluded_subtrees: vec![],
        });
        let key = KeyPair::generate().unwrap();
        chain.insert(0, sub.signed_by(&key, &issuer).unwrap().into());
        issuer = Issuer::new(sub, key);
    }
    let leaf = crate::authority::leaf_params(&db(), start(), start() + hours(1.0)).unwrap();
    let key = KeyPair::generate().unwrap();
    chain.insert(0, leaf.signed_by(&key, &issuer).unwrap().into());
    let key = mesh.certified(chain, &key);
    (mesh, key)
}

#[test]
fn a_subordinate_names_only_what_it_may() {
    for (permitted, length, accepted) in [
        ("cluster.local", 1, true),
        ("cluster.local", 3, true),
        ("other.local", 1, false),
        ("cluster.local", 4, false),
    ] {
        let (mesh, key) = through_subordinate(permitted, length);
        let outcome = verify_chain(&mesh.trust, &key.cert, &db(), start());
        assert_eq!(outcome.is_ok(), accepted, "{permitted}, {length} subordinates: {outcome:?}");
    }
}

/// Chains made to be slow: as many issuers of one name as fit, each of which may have signed each, and none of which did.
#[test]
fn a_chain_that_is_made_to_be_slow_is_refused_at_once() {
    let mesh = Mesh::new();
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (start().into(), (start() + hours(24.0)).into());
        rcgen::Issuer::new(params.clone(), KeyPair::generate().unwrap())
    };
    let same: Vec<_> = (0..4).map(|_| authority("the same")).collect();
    let signed = |params: &CertificateParams, key: &KeyPair, by: &rcgen::Issuer<'_, KeyPair>| {
        CertificateDer::from(params.signed_by(key, by).unwrap())
    };
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the same");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.not_before, params.not_after) = (start().into(), (start() + hours(24.0)).into());
    let leaf = crate::authority::leaf_params(&db(), start(), start() + hours(1.0)).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut chain = vec![signed(&leaf, &key, &same[0])];
    chain.extend((0..4).map(|at| signed(&params, &KeyPair::generate().unwrap(), &same[at])));
    let judged = |chain: &[CertificateDer<'_>]| {
        let used = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
        };
        let began = used();
        let verdict = verify_chain(&mesh.trust, chain, &db(), start());
        (verdict, used() - began)
    };
    let (verdict, _) = judged(&mesh.workload(&db()).chain());
    verdict.expect("control");
    let (verdict, took) = judged(&chain[..4]);
    assert!(verdict.is_err());
    // Some 2 ms where this is not optimized; without bounds it would be seconds.
    assert!(took < Duration::from_millis(200), "{took:?}");
    // One more is not looked at, and neither is a certificate that is larger than any of ours.
    assert!(judged(&chain).0.unwrap_err().contains("too large"));
    let large = mesh.forge(&db(), |params| {
        params
            .custom_extensions
            .push(rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![0; 9000]));
    });
    assert!(judged(&large.cert).0.unwrap_err().contains("too large"));
}

#[test]
fn trust_is_never_empty_and_never_a_leaf() {
    let mesh = Mesh::new();
    let leaf = mesh.forge(&web(), |_| {}).cert[0].clone();
    let provider = Arc::clone(&mesh.tls.provider);
    for anchors in [vec![], vec![leaf], vec![b"garbage".to_vec().into()]] {
        assert!(Trust::new(naming(), anchors, Arc::clone(&provider)).is_err());
    }
    Trust::new(naming(), vec![mesh.authority.anchors()[0].clone()], provider).unwrap();
}

#[test]
fn faults_are_told_apart() {
    let alert = Error::AlertReceived(AlertDescription::AccessDenied);
    assert!(matches!(HandshakeFault::connecting(&alert), HandshakeFault::Peer(PeerFault::Refused(_))));
    let misuse = HandshakeFault::connecting(&Error::HandshakeNotComplete);
    assert!(matches!(misuse, HandshakeFault::Misuse(_)));
    let machine = HandshakeFault::accepting(&Error::FailedToGetRandomBytes);
    assert!(matches!(machine, HandshakeFault::Configuration(_)));
}

/// The first flight of an honest client.
fn hello(mesh: &Mesh) -> Vec<u8> {
    let (client, _) = forged_pair(mesh);
    let mut client = rustls::ClientConnection::new(Arc::new(client), server_name(&db()).unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Feeds bytes to a server; it ends, whatever they are. Gives how many bytes it wanted to say.
fn feed(server: &ServerConfig, mut bytes: &[u8]) -> Result<usize, Error> {
    let mut server = ServerConnection::new(Arc::new(server.clone())).unwrap();
    let mut outcome = Ok(0);
    while !bytes.is_empty() && outcome.is_ok() {
        match server.read_tls(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(_) => outcome = server.process_new_packets().map(|_| 0),
        }
    }
    let mut said = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut said).unwrap();
    }
    assert!(server.is_handshaking());
    outcome.map(|_| said.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn garbage_and_damaged_hellos_never_spin_or_crash(
        garbage in proptest::collection::vec(any::<u8>(), 0..600),
        place in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mesh = Mesh::new();
        let (_, server) = forged_pair(&mesh);
        let _ = feed(&server, &garbage);
        let mut hello = hello(&mesh);
        let at = place.index(hello.len());
        hello[at] = value;
        let _ = feed(&server, &hello);
        hello.truncate(cut.index(hello.len()));
        let _ = feed(&server, &hello);
    }
}

#[test]
fn alerts_in_any_state_end_the_connection() {
    let mesh = Mesh::new();
    let (_, server) = forged_pair(&mesh);
    let close_notify = [21, 3, 3, 0, 2, 1, 0];
    let fatal = [21, 3, 3, 0, 2, 2, 80];
    assert!(feed(&server, &fatal).is_err());
    let _ = feed(&server, &close_notify.repeat(10_000));
    let warnings = [21, 3, 3, 0, 2, 1, 90].repeat(10_000);
    assert!(feed(&server, &warnings).is_err(), "a flood of warnings is not listened to for ever");
    let hello = hello(&mesh);
    assert!(feed(&server, &hello).unwrap() > 0, "control: an honest hello is answered");
    assert!(feed(&server, &[&hello[..], &fatal].concat()).is_err());
}
